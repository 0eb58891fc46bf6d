from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.sandbox import launch
from server.sandbox.bubblewrap import DEVICES
from server.sandbox.inside.__main__ import EXIT_NOT_CONFINED
from server.sandbox.launch import Launch, Sandbox
from server.sandbox.levels import Level
from server.sandbox.probe import probe
from server.sandbox.users import Users
from server.settings import Settings
from tests.support.confined import lay_tree, script
from tests.support.needs import lacks
from tests.support.pythons import older_python

WRITES = """
import json
try:
    with open(given[0] + "/big", "wb", 0) as file:
        file.truncate(5000)
    print(json.dumps({"errno": 0}))
except OSError as error:
    print(json.dumps({"errno": error.errno}))
"""
ABOUT = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "user": os.getuid(),
    "groups": os.getgroups(),
    "capabilities": status["CapEff"].strip(),
    "environment": sorted(os.environ),
    "arguments": given,
    "open": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "killed_first": int(open("/proc/self/oom_score_adj").read()),
    "tmp": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize,
}))
"""


@pytest.fixture(params=list(Level), ids=lambda level: f"level-{level.value}")
async def sandbox(tmp_path: Path, request: pytest.FixtureRequest) -> Sandbox:
    return await reached(tmp_path, request.param)


async def reached(folder: Path, level: Level) -> Sandbox:
    """Return a sandbox of this level, or end the test where this machine has none."""
    tree = lay_tree(folder / "probe")
    found = await probe(Settings(data_dir=folder), tree, level)
    if found.level is not level:
        lacks("; ".join(found.problems))
    return found


async def said_by(sandbox: Sandbox, what: Launch) -> dict[str, Any]:
    child = await sandbox.start(what)
    line = await child.line()
    code = await child.wait()
    assert code == 0, list(child.log)
    said: dict[str, Any] = json.loads(line or "{}")
    return said


async def test_a_child_is_nobody_and_sees_what_it_was_given(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    about = await said_by(sandbox, script(tmp_path, ABOUT, "a", "b c", env={"LANG": "C.UTF-8"}))

    assert about["capabilities"] == "0" * 16
    assert about["killed_first"] == 1000
    assert set(about["environment"]) - {"LC_CTYPE", "PWD"} == {"LANG", "PYTHONPATH"}
    assert about["arguments"] == ["a", "b c"]
    if sandbox.users is not None:
        assert about["user"] >= Settings().model_users[0]
        assert about["groups"] == []
    if sandbox.level is Level.NAMESPACES:
        assert about["tmp"] <= 1024**3


async def test_a_file_that_grows_over_its_limit_is_cut(sandbox: Sandbox, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()

    said = await said_by(sandbox, script(tmp_path, WRITES, own, writable=[own], file_bytes=4096))

    assert said == {"errno": errno.EFBIG}


async def test_what_a_child_wrote_belongs_to_the_service_when_it_has_ended(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    code = "import os\nos.makedirs(given[0] + '/a/b')\nopen(given[0] + '/a/b/c', 'w').close()"

    child = await sandbox.start(script(tmp_path, code, own, writable=[own]))
    assert await child.wait() == 0

    made = [own, own / "a", own / "a" / "b", own / "a" / "b" / "c"]
    assert {path.stat().st_uid for path in made} == {os.geteuid()}
    assert {bool(path.stat().st_mode & 0o004) for path in made} == {True}


async def test_two_children_at_once_are_two_users_where_the_service_is_root(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give processes other users")
    sandbox = await reached(tmp_path, Level.KERNEL)
    code = "import os, sys, time\nprint(os.getuid(), flush=True)\ntime.sleep(60)"
    launch = script(tmp_path, code)

    children = [await sandbox.start(launch) for _ in range(2)]
    users = [await child.line() for child in children]
    for child in children:
        await child.kill()

    assert None not in users
    assert len({"0", *users}) == 3


async def test_no_more_children_than_users_are_started(tmp_path: Path) -> None:
    users = Users(70000, 70001)
    assert [users.take(), users.take()] == [70000, 70001]
    sandbox = Sandbox(level=Level.KERNEL, users=users)

    with pytest.raises(OSError, match="all users"):
        await sandbox.start(script(tmp_path, "pass"))

    users.give_back(70001)
    users.give_back(70000)
    assert users.take() == 70001


@pytest.mark.parametrize(
    ("options", "does", "problem"),
    [
        ("", "true", "this bubblewrap has no --size"),
        ("--size --perms --unshare-user --die-with-parent", 'exec "$@"', "not level 3: "),
        ("--size --perms --unshare-user --die-with-parent", "exit 3", "exit code 3"),
    ],
    ids=["an old one", "one that confines nothing", "one that fails"],
)
async def test_a_bubblewrap_that_does_not_do_it_is_named_and_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, does: str, problem: str
) -> None:
    shim = tmp_path / "bin" / "bwrap"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/sh\n[ "$1" = --help ] && {{ echo "{options}"; exit 0; }}\n'
        f'while [ "$1" != -- ]; do shift; done\nshift\nexport PYTHONPATH={tmp_path}/probe\n{does}\n',
        encoding="utf-8",
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")

    sandbox = await probe(Settings(data_dir=tmp_path), lay_tree(tmp_path / "probe"))

    assert sandbox.level < Level.NAMESPACES
    assert problem in sandbox.problems[0]


async def test_without_bubblewrap_the_kernel_alone_confines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await reached(tmp_path / "first", Level.KERNEL)
    monkeypatch.setenv("PATH", "")

    sandbox = await probe(Settings(data_dir=tmp_path), lay_tree(tmp_path / "probe"))

    assert sandbox.level is Level.KERNEL
    assert sandbox.problems == ("not level 3: bubblewrap is not installed",)
    assert not (tmp_path / "sandbox-check").exists()


async def test_a_child_whose_parent_died_first_never_runs_its_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch.os, "getpid", lambda: 1)

    child = await Sandbox(level=Level.LIMITS).start(script(tmp_path, "print('ran')"))

    assert await child.line() is None
    assert await child.wait() != 0


async def test_a_plan_that_cannot_be_carried_out_runs_nothing(tmp_path: Path) -> None:
    sandbox = await reached(tmp_path, Level.KERNEL)
    gone = tmp_path / "gone"

    child = await sandbox.start(script(tmp_path, "print('ran')", read_only=[gone]))

    assert await child.line() is None
    assert await child.wait() == EXIT_NOT_CONFINED
    assert "not confined: " in child.log[-1]


OPENS = """
import json
found = {}
for path in given:
    try:
        found[path[-1]] = len(open(path, "rb").read(1))
    except OSError as error:
        found[path[-1]] = error.errno
print(json.dumps(found))
"""


async def test_a_gpu_process_sees_the_nodes_of_its_own_gpu_and_no_others(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    sandbox = await reached(tmp_path, Level.NAMESPACES)
    nodes = [tmp_path / f"nvidia{number}" for number in range(2)]
    for node in nodes:
        os.mknod(node, 0o20666, os.makedev(1, 5))
        node.chmod(0o666)

    own = script(tmp_path, OPENS, *nodes, has_gpu=True, gpu=[str(nodes[1])])

    assert await said_by(sandbox, own) == {"0": errno.ENOENT, "1": 1}


@pytest.mark.parametrize("level", [Level.NAMESPACES, Level.KERNEL])
def test_devices_are_granted_by_name_whatever_the_level(tmp_path: Path, level: Level) -> None:
    given = script(tmp_path, "pass", has_gpu=True, gpu=["/dev/tty", "/dev/nvidia-not-there"])

    plan = Sandbox(level=level)._plan(given, 0, ())

    assert set(plan.devices) - {"/dev/tty"} == set(DEVICES)
    assert "AS" not in plan.limits


@pytest.mark.parametrize(
    ("level", "is_lenient", "kind", "admitted"),
    [
        (Level.NAMESPACES, False, "sklearn", True),
        (Level.KERNEL, False, "torchscript", True),
        (Level.LIMITS, False, "onnx", True),
        (Level.LIMITS, False, "sklearn", False),
        (Level.LIMITS, False, "torchscript", False),
        (Level.LIMITS, False, "of tomorrow", False),
        (Level.LIMITS, True, "sklearn", True),
    ],
)
def test_models_that_can_hold_code_run_only_where_they_are_shut_in(
    level: Level, is_lenient: bool, kind: str, admitted: bool
) -> None:
    refusal = Sandbox(level=level, is_lenient=is_lenient).refusal(kind)

    assert refusal == (None if admitted else {"kind": kind, "sandbox": level.value})


async def test_a_machine_with_lower_limits_than_ours_starts_children_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _limit: (64, 128))
    code = "import json, resource\nprint(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))"
    child = await Sandbox(level=Level.LIMITS).start(script(tmp_path, code))
    assert await child.line() == "[128, 128]"
    assert await child.wait() == 0


async def test_a_child_of_an_older_python_is_confined_the_same(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    code = """
import json, sys
print(json.dumps({"version": list(sys.version_info[:2]), "path": sys.path, "given": given}))
"""
    asked = [older_python("3.9", "3.10"), "-c", "import sys; print(sys.executable)"]
    told = await asyncio.to_thread(subprocess.run, asked, check=True, capture_output=True)
    base = Path(told.stdout.decode().strip()).resolve()
    what = script(tmp_path, code, "a", base=base)
    if not sandbox.may_use(base):
        lacks(f"{base} is not to be read by the users of model processes")
    said = await said_by(sandbox, what)
    assert said["version"] < [3, 11]
    assert said["given"] == ["a"]
    assert said["path"][0] == str(what.tree)
    assert not {"", ".", "/"} & set(said["path"])


def test_an_interpreter_of_another_python_has_to_be_readable(tmp_path: Path) -> None:
    base = tmp_path / "prefix" / "bin" / "python"
    (tmp_path / "prefix").mkdir(mode=0o700)
    as_others = Sandbox(level=Level.KERNEL, users=Users(1000, 1001))
    assert not as_others.may_use(base)
    assert replace(as_others, reaches=True).may_use(base)
    assert Sandbox(level=Level.KERNEL).may_use(base)
