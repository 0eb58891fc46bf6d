"""Runs hostile pickles in a sandbox, and tells what they got; needs nothing but the sandbox itself.

As a program it does so for the user that runs it and prints JSON: for users that cannot read the
tests' own environment. ``PYTHON TREE MODEL…`` proves TorchScript models instead, in the environment of
that interpreter, which is not run itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import sys
import tempfile
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from server.sandbox.launch import Launch, Sandbox, base_python  # noqa: E402
from server.sandbox.levels import Level  # noqa: E402
from server.sandbox.model_process import ModelProcess, launch_of  # noqa: E402
from server.sandbox.probe import probe  # noqa: E402
from tests.support.confined import lay_tree  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from server.sandbox.child import Child

PAYLOAD = ROOT / "tests" / "support" / "escapes.py"
PLACE = "/var/tmp"
"""Where the data folder is laid out: /tmp is one of the process's own, so writing there is allowed."""
MEMORY_BYTES = 512 << 20
USERS = (60706, 61183)

# The loader of the product without its list of names, so that the sandbox alone is asked.
RECKLESS = """
import pickle, sys

def main(arguments):
    with open(arguments[0], "rb") as file:
        pickle.load(file)
    return 0
"""
SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


class Payload:
    """Runs a text as Python when it is unpickled."""

    def __init__(self, code: str) -> None:
        self._code = code

    def __reduce__(self) -> Any:
        return exec, (self._code, {"__name__": "payload"})


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a hostile process ended: what it told, its exit code, its last words."""

    told: list[dict[str, Any]]
    code: int
    log: list[str] = field(default_factory=list)


class Ground:
    """A data folder as the service has it, with a service, another run and another replica."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.outside = folder / "outside"
        self.tree = self.data / "trees" / "reckless"
        self.model = self.data / "models" / "own" / "model.pkl"
        self.replica = self.data / "replicas" / "own"
        self._kept = ExitStack()
        self.arrived: list[str] = []

    def lay_out(self) -> None:
        """Make the folders and listen on every kind of socket that could be reached."""
        self.outside.mkdir(mode=0o777)
        # Whoever gets this far may write.
        self.outside.chmod(0o777)
        for name in ("models/own", "models/other", "replicas/own", "replicas/other"):
            (self.data / name).mkdir(parents=True)
        lay_tree(self.tree, reckless=RECKLESS)
        (self.data / "models" / "other" / "model.bin").write_bytes(b"secret")
        (self.data / "replicas" / "other" / "spec.json").write_bytes(b"secret")
        database = self.data / "persephone.db"
        database.write_bytes(b"secret")
        database.chmod(0o600)
        self.data.chmod(0o700)
        self._listen()

    def _listen(self) -> None:
        self.tcp = self._kept.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self.tcp.getsockname()[1]
        self.udp = self._kept.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.bind(("127.0.0.1", self.port))
        self.abstract = f"persephone-{os.getpid()}-{self.port}"
        self.control = self.data / "replicas" / "other" / "control"
        self.datagrams = self.data / "replicas" / "other" / "datagrams"
        listeners = [("abstract", f"\0{self.abstract}"), ("control", str(self.control))]
        self._unix = []
        for _, address in listeners:
            sock = self._kept.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(address)
            sock.listen()
            self._unix.append(sock)
        self._datagrams = self._kept.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._datagrams.bind(str(self.datagrams))
        for path in (self.control, self.datagrams):
            path.chmod(0o777)
        # The address that a replica inherits.
        self.inherited = self._kept.enter_context(socket.create_server(("127.0.0.1", 0)))

    def close(self) -> None:
        self._kept.close()

    def came_through(self) -> list[str]:
        """Name what is outside now and should not be."""
        found = [str(path.relative_to(self.outside)) for path in self.outside.iterdir()]
        found += [path.name for path in self.data.rglob("left-behind*")]
        database = self.data / "persephone.db"
        if not database.exists() or database.read_bytes() != b"secret":
            found.append("the database was changed")
        for name, sock in zip(("tcp", "abstract", "control"), (self.tcp, *self._unix), strict=True):
            sock.setblocking(False)
            try:
                sock.accept()[0].close()
                found.append(f"a connection: {name}")
            except BlockingIOError:
                pass
        for name, sock in (("udp", self.udp), ("unix", self._datagrams)):
            sock.setblocking(False)
            try:
                sock.recv(10)
                found.append(f"a datagram: {name}")
            except BlockingIOError:
                pass
        return found

    def launch(self, code: str, **more: Any) -> Launch:
        """Write a hostile model; return how a model process with it is started."""
        self.model.write_bytes(pickle.dumps(Payload(code)))
        self.model.chmod(0o644)
        settings = {"memory_bytes": MEMORY_BYTES, "file_bytes": 64 << 20, **more}
        return Launch(
            tree=self.tree,
            target="reckless",
            arguments=[str(self.model)],
            read_only=[self.model.parent],
            private=[self.replica],
            pass_fds=[self.inherited.fileno()],
            **settings,
        )

    def given(self, sibling: int) -> dict[str, Any]:
        return {
            "data": str(self.data),
            "own": str(self.model),
            "tree": str(self.tree),
            "outside": str(self.outside),
            "service": os.getpid(),
            "sibling": sibling,
            "port": self.port,
            "abstract": self.abstract,
            "control": str(self.control),
            "datagrams": str(self.datagrams),
            "inherited": self.inherited.fileno(),
            "folders": ["/tmp", "/dev/shm", str(self.replica), str(self.model.parent)],
        }


@contextmanager
def laid_out(folder: Path) -> Iterator[Ground]:
    """Lay a ground out in a folder, which is made if it is not there."""
    folder.mkdir(exist_ok=True)
    ground = Ground(folder)
    ground.lay_out()
    try:
        yield ground
    finally:
        ground.close()


def payload(last: str) -> str:
    return f"{PAYLOAD.read_text(encoding='utf-8')}\n\n{last}\n"


async def sandbox_of(ground: Ground, level: Level) -> Sandbox:
    """Return a sandbox of exactly this level; problems are told by its own level."""
    settings = SimpleNamespace(data_dir=ground.data, model_users=USERS, allow_unsandboxed=False)
    return await probe(settings, ground.tree, level)  # type: ignore[arg-type]


@asynccontextmanager
async def sleeping(ground: Ground, sandbox: Sandbox) -> AsyncIterator[int]:
    """Another model process of the same kind; yields its pid as the machine knows it."""
    child = await sandbox.start(ground.launch(SLEEP))
    try:
        assert await child.line() is not None, list(child.log)
        yield innermost(child.pid)
    finally:
        await child.kill()


def innermost(pid: int) -> int:
    """Follow the only children of a process to the last one."""
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return pid
        pid = int(children[0])


async def ending(child: Child, seconds: float = 60) -> Ending:
    """Wait for the end of a hostile process."""
    told = []
    try:
        async with asyncio.timeout(seconds):
            while (line := await child.line()) is not None:
                told.append(json.loads(line))
            code = await child.wait()
    finally:
        await child.kill()
    return Ending(told=told, code=code, log=list(child.log))


async def escapes(ground: Ground, sandbox: Sandbox) -> dict[str, str]:
    """Try everything but the bombs; return what each attempt met, ``open`` where it got through."""
    async with sleeping(ground, sandbox) as sibling:
        launch = ground.launch(payload(f"report({ground.given(sibling)!r})"))
        ended = await ending(await sandbox.start(launch))
    assert ended.code in {0, 3}, (ended.code, ended.told[-1:], ended.log)
    tried = [line["trying"] for line in ended.told if "trying" in line]
    met = [line["met"] for line in ended.told if "met" in line]
    # The last one may have put another program in the place of this one.
    return dict(zip_longest(tried, met, fillvalue="open"))


async def explode(ground: Ground, sandbox: Sandbox, name: str, **more: Any) -> Ending:
    """Let one bomb go off inside."""
    given = ground.given(os.getpid())
    return await ending(
        await sandbox.start(ground.launch(payload(f"bomb({name!r}, {given!r})"), **more))
    )


async def everything(folder: Path) -> dict[str, Any]:
    """Return for each level the one that was reached, what got through, and what arrived."""
    found: dict[str, Any] = {}
    for level in (Level.NAMESPACES, Level.KERNEL, Level.LIMITS):
        with laid_out(folder / str(level.value)) as ground:
            sandbox = await sandbox_of(ground, level)
            met = await escapes(ground, sandbox)
            found[str(level.value)] = {
                "level": sandbox.level.value,
                "problems": sandbox.problems,
                "met": met,
                "arrived": ground.came_through(),
            }
    return found


async def prove_all(folder: Path, python: Path, tree: Path, models: Sequence[Path]) -> Any:
    """Return for each level and model the last event of the process that was to prove it."""
    found: dict[str, Any] = {}
    for level in (Level.NAMESPACES, Level.KERNEL):
        with laid_out(folder / str(level.value)) as ground:
            sandbox = await sandbox_of(ground, level)
            sandbox = replace(sandbox, interpreter=Path(base_python()))
            found[str(sandbox.level.value)] = {
                model.stem: await _proven(ground, sandbox, python, tree, model) for model in models
            }
    return found


async def _proven(ground: Ground, sandbox: Sandbox, python: Path, tree: Path, model: Path) -> Any:
    spec = {"run_id": "r1", "names": ["r1"], "kind": "torchscript", "digest": "0" * 64}
    (ground.replica / "spec.json").write_text(json.dumps({**spec, "path": str(model)}))
    process = ModelProcess(
        command="prove",
        python=python,
        environment=python.parents[1],
        tree=tree,
        folder=model.parent,
        spec=ground.replica / "spec.json",
        memory_bytes=3 << 30,
    )
    # The sandbox brings the interpreter: whoever runs this may not read the environment's own.
    launch = replace(launch_of(process), base=None)
    ended = await ending(await sandbox.start(launch))
    return {"code": ended.code, "last": ended.told[-1] if ended.told else ended.log[-1:]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=PLACE) as made:
        # Root that may not mount has to let the users of its models pass.
        Path(made).chmod(0o711)
        given = [Path(argument) for argument in sys.argv[1:]]
        work = prove_all(Path(made), *given[:2], given[2:]) if given else everything(Path(made))
        sys.stdout.write(json.dumps(asyncio.run(work)))
