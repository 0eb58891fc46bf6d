"""Why a replica of this machine does not come to be, and why it ends."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from server.engines import addresses
from server.engines.addresses import bind_again, bind_free
from server.engines.base import EngineError, ReplicaSpec
from server.engines.control import ControlSocket
from server.engines.local import LocalEngine
from server.engines.local_replica import LocalReplica
from server.messages import Messages
from server.model_server.serve import EXIT_STUCK
from server.records import DeploymentKey
from server.sandbox.launch import Sandbox
from server.sandbox.levels import Level
from server.settings import Settings
from tests.support.confined import script

if TYPE_CHECKING:
    from pathlib import Path

KEY = DeploymentKey(owner="somebody", model="iris", environment="dev")
NOBODYS_ADDRESS = "192.0.2.1"


def test_a_range_without_a_free_port_says_which_it_is() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError) as caught:
            bind_free("127.0.0.1", (port, port), ())
    assert (caught.value.code, caught.value.params) == ("no_port_left", {"low": port, "high": port})


async def test_an_address_that_is_not_of_this_machine_names_the_port_and_the_error() -> None:
    with pytest.raises(EngineError) as caught:
        await bind_again(NOBODYS_ADDRESS, 20000)
    assert (caught.value.code, caught.value.params) == ("port_unusable", {"port": 20000})
    assert "assign" in caught.value.evidence


async def test_a_port_that_another_program_has_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_BIND_PAUSE_SECONDS", 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert await bind_again("127.0.0.1", taken.getsockname()[1]) is None


async def test_a_replica_whose_files_cannot_be_written_says_why(tmp_path: Path) -> None:
    async def no_room() -> bool:
        return False

    engine = LocalEngine(
        Settings(data_dir=tmp_path),
        Sandbox(level=Level.LIMITS),
        Messages(),
        lambda _key: None,
        make_room=no_room,
        admitted=cast("Any", None),
        used=lambda _token: None,
        hear=lambda _spec: lambda _line: None,
    )
    await engine.open()
    (tmp_path / "replicas").rmdir()
    spec = ReplicaSpec(
        replica_id="r1",
        key=KEY,
        run_id="r1",
        version=1,
        python=tmp_path / "python",
        environment=tmp_path,
        tree=tmp_path,
        folder=tmp_path,
        gpu="",
        model={"kind": "onnx", "threads": 1},
    )
    with pytest.raises(EngineError) as caught:
        await engine.start(spec)
    await engine.close()
    assert caught.value.code == "replica_not_started"
    assert caught.value.evidence == "No such file or directory"
    assert not caught.value.permanent


async def test_a_replica_that_gave_itself_up_says_that_a_prediction_hung(tmp_path: Path) -> None:
    child = await Sandbox(level=Level.LIMITS).start(
        script(tmp_path, f"import os; os._exit({EXIT_STUCK})")
    )
    control = ControlSocket(str(tmp_path / "control"))
    replica = LocalReplica(cast("Any", None), 1, child, control, Settings(data_dir=tmp_path))
    async with asyncio.timeout(20):
        assert (await replica.ended()).code == "replica_stuck"
    await replica.stop()
