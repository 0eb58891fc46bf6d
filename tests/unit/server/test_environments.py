"""Environments: built by the real installer from tiny wheels, once per lock, whatever happens."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.environments import build as build_module
from server.environments.build import Environments
from server.environments.lock import lock_of
from server.environments.plan import EnvironmentPlan
from server.errors import StepFailedError
from server.settings import Settings
from tests.support.tiny_wheels import empty_index, wheel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(__file__).parents[3]


def wants(*requirements: str, device: str = "cpu", is_pinned: bool = True) -> EnvironmentPlan:
    return EnvironmentPlan(
        kind="onnx", device=device, requirements=requirements, is_pinned=is_pinned
    )


def quiet(_code: str, _params: dict[str, Any]) -> None:
    pass


class World:
    """A folder of wheels, an index without packages, and environments that know no others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.root = folder / "environments"
        self.settings = Settings(
            wheel_links=(str(self.wheels),), wheel_index=empty_index(folder / "index")
        )
        self.opened: list[Environments] = []

    def environments(self, **changes: Any) -> Environments:
        settings = Settings(
            **{
                "wheel_links": self.settings.wheel_links,
                "wheel_index": self.settings.wheel_index,
                **changes,
            }
        )
        made = Environments(settings, self.root, cache=self.folder / "cache")
        self.opened.append(made)
        return made

    @property
    def built(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name[0] != ".")


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    base = tmp_path / "requirements.in"
    base.write_text('# of the model server\ntiny-server>=1\nodd; python_version < "3"\n')
    monkeypatch.setattr(build_module, "MODEL_SERVER_REQUIREMENTS", base)
    made = World(tmp_path)
    wheel(made.wheels, "tiny-server", "1.0")
    wheel(made.wheels, "tiny-runtime", "1.0", requires=("tiny-base>=2",))
    wheel(made.wheels, "tiny-runtime", "2.0", requires=("tiny-base>=2",))
    wheel(made.wheels, "tiny-base", "2.5")
    yield made
    for environments in made.opened:
        await environments.close()


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
    assert await environments.build(lock, quiet) == environment


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
