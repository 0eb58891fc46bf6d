"""Environments: built by the real installer from tiny wheels, once per lock, whatever happens."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.environments import build as build_module
from server.environments.build import Environments
from server.environments.install import Installer, _Downloads
from server.environments.lock import lock_of
from server.environments.pythons import own_python
from server.environments.uv import Moment
from server.errors import StepFailedError
from server.pipeline.bundle import LEFT_OUT, environment_shown
from tests.support.tiny_environments import World, quiet, wants
from tests.support.tiny_wheels import wheel

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_uv(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def fail() -> str:
            raise AssertionError("uv was asked for")

        monkeypatch.setattr(build_module, "find_uv_bin", fail)

    return forbid


async def test_a_plan_is_locked_together_with_the_model_servers_needs(world: World) -> None:
    lock = await world.environments().lock(wants("tiny-runtime==1.0"))
    assert lock.text == "tiny-base==2.5\ntiny-runtime==1.0\ntiny-server==1.0\n"


async def test_an_environment_is_built_and_its_packages_are_there(world: World) -> None:
    environments = world.environments()
    lock = await environments.lock(wants("tiny-runtime==1.0"))
    heard: list[str] = []
    environment = await environments.build(lock, lambda code, _: heard.append(code))
    program = "import sys, tiny_runtime; print(tiny_runtime.VERSION, sys.prefix)"
    ended = subprocess.run(
        [environment.python, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["1.0", str(environment.root)]
    assert environment.digest == lock.digest
    assert list((environment.site / "tiny_runtime").glob("__pycache__/*.pyc"))
    assert "environment_installing" in heard
    heard.clear()
    assert await environments.build(lock, lambda code, _: heard.append(code)) == environment
    assert heard == ["environment_cached"]


async def test_an_environment_is_made_again_from_what_a_support_bundle_says(world: World) -> None:
    lock = await world.environments().lock(wants("tiny-runtime==1.0"))
    passport = {"python": lock.python.version, "lock_device": "cpu", "environment": lock.digest}
    said = environment_shown(passport, world.settings)
    assert str(world.folder) not in json.dumps(said)

    (world.folder / "lock.txt").write_text(lock.text)
    kept = iter([world.settings.wheel_index, *world.settings.wheel_links])
    for command in said["commands"]:
        words = [next(kept) if word == LEFT_OUT else word for word in shlex.split(command)]
        places = (sys.executable, own_python().path)
        path = os.pathsep.join(str(Path(each).parent) for each in places)
        environ = {"PATH": path, "HOME": str(world.folder)}
        subprocess.run(words, cwd=world.folder, env=environ, check=True, capture_output=True)
    python = world.folder / "environment" / "bin" / "python"
    program = "import tiny_runtime; print(tiny_runtime.VERSION)"
    ended = subprocess.run(
        [python, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "1.0\n"


async def test_a_resolver_and_compilers_that_take_their_time_say_what_they_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.environments.uv._TICK_SECONDS", 0.001)
    environments = world.environments()
    heard: list[str] = []
    lock = await environments.lock(wants("tiny-runtime==1.0"), lambda code, _: heard.append(code))
    await environments.build(lock, lambda code, _: heard.append(code))
    assert list(dict.fromkeys(heard)) == [
        "environment_resolving",
        "environment_installing",
        "environment_compiling",
    ]


def test_what_the_installer_downloads_is_told_by_its_lines() -> None:
    lock = lock_of("numpy==1.0\n", "cpu", own_python())
    downloads = _Downloads()
    heard: list[tuple[str, Any]] = []

    def tell(line: str) -> None:
        downloads.note(line)
        moment = Moment(line=line, written_bytes=3 * 1024**2)
        Installer._tell(lock, downloads, moment, lambda *said: heard.append(said), 0.0)

    tell("Downloading numpy (16.4 MiB)")
    tell(" Downloaded numpy")
    (first, params), (second, _) = heard
    assert (first, second) == ("environment_downloading", "environment_installing")
    assert (params["names"], params["size"], params["megabytes"]) == (["numpy"], 16, 3)


async def test_a_second_model_of_a_kind_needs_neither_resolver_nor_network(
    world: World, no_uv: Callable[[], None]
) -> None:
    first = world.environments()
    lock = await first.lock(wants("tiny-runtime==1.0"))
    environment = await first.build(lock, quiet)
    no_uv()
    second = world.environments()
    assert await second.lock(wants("tiny-runtime==1.0")) == lock
    assert await second.build(lock, quiet) == environment


async def test_environments_share_the_bytes_of_their_files(world: World) -> None:
    environments = world.environments()
    sites = []
    for version in ("1.0", "2.0"):
        lock = await environments.lock(wants(f"tiny-runtime=={version}"))
        sites.append((await environments.build(lock, quiet)).site)
    files = [(site / "tiny_base" / "__init__.py").stat() for site in sites]
    assert files[0].st_ino == files[1].st_ino


async def test_many_callers_of_one_lock_wait_for_one_build(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs = []
    original = build_module.Installer.install

    async def counted(self: Any, *arguments: Any) -> None:
        installs.append(1)
        await original(self, *arguments)

    monkeypatch.setattr(build_module.Installer, "install", counted)
    environments = world.environments()
    lock = await environments.lock(wants("tiny-runtime==1.0"))
    made = await asyncio.gather(*(environments.build(lock, quiet) for _ in range(20)))
    assert len(installs) == 1
    assert len({environment.root for environment in made}) == 1


async def test_a_cancelled_caller_does_not_end_the_build_of_the_others(world: World) -> None:
    environments = world.environments()
    lock = await environments.lock(wants("tiny-runtime==1.0"))
    impatient = asyncio.create_task(environments.build(lock, quiet))
    patient = asyncio.create_task(environments.build(lock, quiet))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).python.exists()
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_code_that_a_wheel_starts_with_the_interpreter_does_not_run_during_the_build(
    world: World,
) -> None:
    mark = world.folder / "ran"
    hook = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    wheel(world.wheels, "sneaky", "1.0", files={"sneaky.pth": hook, "sneaky/bad.py": "not python"})
    environments = world.environments()
    lock = await environments.lock(wants("sneaky==1.0"))
    environment = await environments.build(lock, quiet)
    assert (environment.site / "sneaky.pth").exists()
    assert not mark.exists()


async def test_settings_of_strangers_do_not_reach_the_installer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = world.folder / "hostile"
    wheel(hostile, "tiny-runtime", "1.0.1")
    monkeypatch.setenv("UV_FIND_LINKS", str(hostile))
    monkeypatch.setenv("UV_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    lock = await world.environments().lock(wants("tiny-runtime<2", is_pinned=False))
    assert lock.packages["tiny-runtime"] == "1.0"


@pytest.mark.parametrize(
    ("requirements", "code"),
    [
        (("tiny-runtime==1.0", "tiny-base==1.0"), "dependency_conflict"),
        (("tiny-runtime==9.0",), "package_unavailable"),
        (("nobody-has-this",), "package_unavailable"),
    ],
)
async def test_what_cannot_be_resolved_is_named(
    world: World, requirements: tuple[str, ...], code: str
) -> None:
    with pytest.raises(StepFailedError) as caught:
        await world.environments().lock(wants(*requirements))
    assert caught.value.code == code
    assert "Because" in caught.value.evidence
    assert str(world.folder) not in caught.value.evidence


async def test_cuda_wheels_for_a_cpu_stop_before_anything_is_installed(
    world: World, no_uv: Callable[[], None]
) -> None:
    wheel(world.wheels, "torch", "2.13.0", requires=("nvidia-cublas-cu12",))
    wheel(world.wheels, "nvidia-cublas-cu12", "12.1")
    environments = world.environments()
    with pytest.raises(StepFailedError, match="cuda_wheels_on_cpu"):
        await environments.lock(wants("torch==2.13.0"))
    no_uv()
    fabricated = lock_of("nvidia-cublas-cu12==12.1\ntorch==2.13.0\n", "cuda")
    forged = type(fabricated)(
        text=fabricated.text,
        digest=fabricated.digest,
        packages=fabricated.packages,
        device="cpu",
    )
    with pytest.raises(StepFailedError, match="cuda_wheels_on_cpu"):
        await environments.build(forged, quiet)
    assert world.built == []


async def test_a_gpu_gets_no_build_for_the_cpu(world: World) -> None:
    wheel(world.wheels, "torch", "2.13.0+cpu")
    wheel(world.wheels, "torch", "2.13.0", requires=("nvidia-cublas-cu12",))
    wheel(world.wheels, "nvidia-cublas-cu12", "12.1")
    environments = world.environments()
    assert (await environments.lock(wants("torch==2.13.0"))).packages["torch"] == "2.13.0+cpu"
    lock = await environments.lock(wants("torch==2.13.0", device="cuda"))
    assert lock.packages["torch"] == "2.13.0"
    assert "nvidia-cublas-cu12" in lock.packages


async def test_an_unreachable_index_says_what_is_missing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    environments = world.environments(wheel_index="http://127.0.0.1:9/simple", wheel_links=())
    with pytest.raises(StepFailedError) as caught:
        await environments.lock(wants("tiny-runtime==1.0", device="cuda"))
    assert caught.value.code == "packages_offline"
    assert caught.value.params["packages"]


async def test_an_old_lock_serves_while_the_index_is_unreachable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = world.environments()
    plan = wants("tiny-runtime", is_pinned=False)
    lock = await environments.lock(plan)
    (remembered,) = (world.root / ".locks").glob("*.json")
    remembered.write_text(remembered.read_text().replace('"at": ', '"at": 0, "was": '))

    async def unreachable(*_: Any) -> Any:
        return build_module.Finished(exit_code=2, output="Failed to fetch: x\ndns error")

    monkeypatch.setattr(Environments, "_compile", unreachable)
    assert await environments.lock(plan) == lock


async def test_an_environment_without_its_marker_is_built_again(world: World) -> None:
    environments = world.environments()
    lock = await environments.lock(wants("tiny-runtime==1.0"))
    environment = await environments.build(lock, quiet)
    (environment.root / "COMPLETE").unlink()
    again = await environments.build(lock, quiet)
    assert (again.root / "COMPLETE").is_file()


async def test_the_deadline_ends_the_installer_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = world.environments(environment_seconds=0.5)
    lock = lock_of("tiny-base==2.5\n", "cpu")
    slow = world.folder / "uv"
    slow.write_text('#!/bin/sh\necho $$ > "$(dirname "$0")/pid"; sleep 60 & wait\n')
    slow.chmod(0o755)
    monkeypatch.setattr(build_module, "find_uv_bin", lambda: str(slow))
    with pytest.raises(StepFailedError, match="environment_timed_out"):
        await environments.build(lock, quiet)
    pid = int((world.folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert world.built == []


async def test_a_full_disk_is_named_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = world.environments()
    lock = await environments.lock(wants("tiny-runtime==1.0"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, "write_whole", full)
    with pytest.raises(StepFailedError, match="disk_full"):
        await environments.build(lock, quiet)
    assert world.built == []


async def test_a_half_built_environment_is_never_used(world: World) -> None:
    environments = world.environments()
    lock = await environments.lock(wants("tiny-runtime==1.0"))
    leftover = world.root / lock.digest[:32]
    (leftover / "bin").mkdir(parents=True)
    (leftover / "bin" / "python").write_text("#!/bin/false")
    environment = await environments.build(lock, quiet)
    assert environment.python.is_symlink()


async def test_leftovers_are_swept_at_the_start_but_not_what_others_are_building(
    world: World,
) -> None:
    await world.environments().open()
    for name in ("dead", "alive"):
        (world.root / name).mkdir()
    (world.root / ".tmp" / "old").mkdir()
    with (world.root / ".guards" / "alive").open("w") as guard:
        fcntl.flock(guard.fileno(), fcntl.LOCK_EX)
        await world.environments().open()
        assert world.built == ["alive"]
        assert list((world.root / ".tmp").iterdir()) == []


async def test_another_process_building_the_same_is_waited_for(world: World) -> None:
    environments = world.environments()
    lock = await environments.lock(wants("tiny-runtime==1.0"))
    waiting = asyncio.Event()

    def hear(code: str, _params: dict[str, Any]) -> None:
        if code == "environment_waiting":
            waiting.set()

    with (world.root / ".guards" / lock.digest[:32]).open("w") as guard:
        fcntl.flock(guard.fileno(), fcntl.LOCK_EX)
        building = asyncio.create_task(environments.build(lock, hear))
        await waiting.wait()
        assert world.built == []
    assert (await building).python.exists()


async def test_a_service_killed_during_a_build_leaves_no_installer_and_no_environment(
    world: World,
) -> None:
    slow = world.folder / "uv"
    slow.write_text('#!/bin/sh\necho $$ > "$(dirname "$0")/pid"\nexec sleep 60\n')
    slow.chmod(0o755)
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from server.environments import build
        from server.environments.lock import lock_of
        from server.settings import Settings
        build.find_uv_bin = lambda: sys.argv[2]
        environments = build.Environments(Settings(), Path(sys.argv[1]))
        lock = lock_of("tiny-base==2.5", "cpu")
        asyncio.run(environments.build(lock, lambda *_: None))
        """
    )
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(world.root), str(slow)), cwd=ROOT
    )
    pid_file = world.folder / "pid"
    while not pid_file.exists() or not pid_file.read_text().strip():
        await asyncio.sleep(0.02)
    service.kill()
    await service.wait()
    pid = int(pid_file.read_text())
    while Path(f"/proc/{pid}").exists():
        await asyncio.sleep(0.02)
    await world.environments().open()
    assert world.built == []


async def test_no_framework_is_imported_by_the_service() -> None:
    program = (
        "import sys, server.environments.build, server.environments.trees, server.artifacts.sniff;"
        "bad = {'torch', 'numpy', 'onnxruntime', 'sklearn', 'joblib', 'scipy'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    assert await process.wait() == 0
