"""Which interpreter a model gets: the first that has all its packages, found again from its lock."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.environments import build as build_module
from server.environments import lock as lock_module
from server.environments import pythons as pythons_module
from server.environments.build import Environments
from server.environments.fitting import fit, restore
from server.environments.lock import lock_of
from server.environments.pythons import Python, own_python
from server.errors import StepFailedError
from tests.support.tiny_environments import World, wants

if TYPE_CHECKING:
    from server.environments.plan import EnvironmentPlan

OTHER = Python(path="/nowhere/python3.9", version="3.9.18", platform="cpython-39 3.9.18")


def plan_for(version: str) -> EnvironmentPlan:
    return wants("tiny-runtime==1.0" if version.startswith("3.9") else "nobody-has-this")


async def test_the_first_interpreter_that_has_all_packages_is_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(*_: Any) -> tuple[Python, ...]:
        return own_python(), OTHER

    asked: list[str] = []
    compiled = Environments._compile

    async def counted(
        self: Environments, lines: Any, options: Any, device: str, python: Python
    ) -> Any:
        asked.append(python.version)
        return await compiled(self, lines, options, device, own_python())

    monkeypatch.setattr(build_module, "found_pythons", found)
    monkeypatch.setattr(Environments, "_compile", counted)
    environments = world.environments()
    lock = await fit(environments, plan_for)
    assert lock.python == OTHER
    assert lock.text.startswith("# python 3.9.18\n")
    assert asked == [own_python().version, "3.9.18"]
    assert await restore(environments, lock.text, "cpu") == lock
    assert lock.digest != lock_of(lock.text, "cpu").digest

    assert await fit(environments, plan_for) == lock
    assert len(asked) == 2, "what is known needs no resolver"


@pytest.mark.parametrize("requires", [">=3.9,<3.10", "==3.9.*", "~=3.9.1"])
async def test_only_interpreters_that_the_upload_admits_are_asked(
    world: World, monkeypatch: pytest.MonkeyPatch, requires: str
) -> None:
    async def found(*_: Any) -> tuple[Python, ...]:
        return own_python(), OTHER

    async def asked(_: Environments, __: Any, ___: Any = None, *, python: Python) -> Any:
        return python

    monkeypatch.setattr(build_module, "found_pythons", found)
    monkeypatch.setattr(Environments, "lock", asked)
    environments = world.environments()
    assert await fit(environments, plan_for, requires=requires) == OTHER
    assert await fit(environments, plan_for, requires=">=3.9") == own_python()
    with pytest.raises(StepFailedError) as caught:
        await fit(environments, plan_for, prefer="3.9.18", requires=">=4")
    assert caught.value.code == "python_version_unavailable"
    assert caught.value.params == {"wanted": ">=4", "pythons": [own_python().version, "3.9.18"]}


async def test_interpreters_of_the_machine_come_after_those_that_are_listed(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def python(name: str, version: str) -> str:
        path = world.folder / name
        said = json.dumps({"path": str(path), "version": version, "platform": version})
        path.write_text(f"#!/bin/sh\necho '{said}'\n")
        path.chmod(0o755)
        return str(path)

    async def installed(*_: Any) -> list[str]:
        return [python("a", "3.10.2"), python("b", "3.9.1"), python("c", "3.6.1"), "/nowhere"]

    monkeypatch.setattr(pythons_module, "_installed", installed)
    environments = world.environments(pythons=(python("listed", "3.9.18"),))
    there = await environments.pythons()
    assert [each.version for each in there] == [own_python().version, "3.9.18", "3.10.2"]
    assert not caplog.records, "nobody has asked for those that do not work"


async def test_uv_tells_which_interpreters_the_machine_has(world: World) -> None:
    environments = world.environments()
    await environments.open()
    environ = {"PATH": str(Path(own_python().path).parent)}
    assert await pythons_module._installed(world.folder, environ)
    assert await pythons_module._installed(world.folder / "none", environ) == []


async def test_a_search_for_interpreters_that_hangs_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(pythons_module, "run", hangs)
    monkeypatch.setattr(pythons_module, "_LIST_SECONDS", 0.01)
    assert await pythons_module._installed(world.folder, {}) == []


async def test_a_lock_of_an_interpreter_that_is_gone_is_named(world: World) -> None:
    with pytest.raises(StepFailedError) as caught:
        await restore(world.environments(), "# python 2.9.1\ntiny-runtime==1.0\n", "cpu")
    assert (caught.value.code, caught.value.params) == ("python_unavailable", {"version": "2.9.1"})


async def test_a_lock_outlives_the_python_that_the_service_ran_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(*_: Any) -> tuple[Python, ...]:
        return own_python(), OTHER

    monkeypatch.setattr(build_module, "found_pythons", found)
    environments, text = world.environments(), "tiny-runtime==1.0\n"
    of_the_time = await restore(environments, text, "cpu", OTHER.version)
    assert (of_the_time.python, of_the_time.text) == (OTHER, text)
    # It is found where it was built.
    monkeypatch.setattr(lock_module, "own_python", lambda: OTHER)
    assert lock_of(text, "cpu").digest == of_the_time.digest
    monkeypatch.undo()
    monkeypatch.setattr(build_module, "found_pythons", found)
    for made_for in ("", own_python().version, "3.8.1"):
        assert (await restore(environments, text, "cpu", made_for)).python == own_python()


async def test_interpreters_that_do_not_work_are_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    old = world.folder / "old"
    old.write_text('#!/bin/sh\necho \'{"path": "x", "version": "3.6.1", "platform": "p"}\'\n')
    old.chmod(0o755)
    environments = world.environments(pythons=("/nowhere/python", str(old), sys.executable))
    assert await environments.pythons() == (own_python(),)
    assert "/nowhere/python" in caplog.text
    assert "older than Python 3.9" in caplog.text


async def test_an_interpreter_that_model_processes_cannot_read_is_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    closed = world.folder / "closed" / "bin" / "python"
    closed.parent.mkdir(parents=True)
    said = json.dumps({"path": str(closed), "version": "3.10.1", "platform": "p"})
    closed.write_text(f"#!/bin/sh\necho '{said}'\n")
    closed.chmod(0o755)
    asked: list[Path] = []

    def may_use(base: Path) -> bool:
        asked.append(base)
        return False

    environments = world.environments(pythons=(str(closed),))
    environments._may_use = may_use
    assert await environments.pythons() == (own_python(),)
    assert asked[0] == closed
    assert "cannot read it" in caplog.text
