"""Engines without processes; each replica is named for how it fails."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from server.engines.base import STUCK, Engine, EngineError, Replica, ReplicaSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from server.records import Deployment, DeploymentKey


class InProcessReplica(Replica):
    """Becomes ready at once and serves until it is told to end."""

    def __init__(self, spec: ReplicaSpec, journal: list[str]) -> None:
        self.spec = spec
        self.port = 20000
        self.journal = journal
        self.end: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()

    def note(self, verb: str) -> None:
        self.journal.append(f"{verb} {self.spec.version}")

    async def ready(self) -> None:
        self.note("ready")

    async def admit(self) -> None:
        self.note("admit")

    async def retreat(self) -> None:
        self.note("retreat")

    async def drain(self) -> None:
        self.note("drain")

    async def stop(self) -> None:
        self.note("stop")
        self.crash("stopped")

    async def ended(self) -> EngineError:
        return await asyncio.shield(self.end)

    async def probe(self) -> None:
        self.note("probe")

    async def scrape(self) -> str:
        return ""

    def hang(self) -> None:
        if not self.end.done():
            self.end.set_result(EngineError(STUCK))

    def crash(self, reason: str = "signal 9") -> None:
        if not self.end.done():
            self.end.set_result(EngineError("replica_ended", reason=reason))


class NeverReady(InProcessReplica):
    async def ready(self) -> None:
        await asyncio.Event().wait()


class RefusesTheModel(InProcessReplica):
    async def ready(self) -> None:
        raise EngineError("onnx_invalid", permanent=True)


class DiesBeforeReady(InProcessReplica):
    async def ready(self) -> None:
        self.crash()
        raise EngineError("replica_ended", reason="signal 9")


class InProcessEngine(Engine):
    """Starts the replicas that ``kinds`` says, by version."""

    def __init__(self) -> None:
        self.kinds: dict[int, type[InProcessReplica]] = {}
        self.replicas: list[InProcessReplica] = []
        self.journal: list[str] = []
        self.listening: set[DeploymentKey] = set()
        self.nobody_home: dict[DeploymentKey, bool] = defaultdict(bool)
        self.refuse_port = False

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def start(self, spec: ReplicaSpec) -> Replica:
        replica = self.kinds.get(spec.version, InProcessReplica)(spec, self.journal)
        self.replicas.append(replica)
        replica.note("start")
        return replica

    async def listen(self, key: DeploymentKey, port: int, *, reserved: Collection[int] = ()) -> int:
        if self.refuse_port:
            raise EngineError("port_taken", port=port)
        self.listening.add(key)
        return port or 20000

    async def attend(self, key: DeploymentKey, *, nobody_home: bool) -> None:
        self.nobody_home[key] = nobody_home

    async def renew(self, key: DeploymentKey) -> None:
        self.journal.append(f"renew {key.model}")

    async def unlisten(self, key: DeploymentKey) -> None:
        self.listening.discard(key)


async def spec_for(made: Deployment, version: int, run_id: str, ordinal: int = 0) -> ReplicaSpec:
    from pathlib import Path

    nowhere = Path("/nonexistent")
    return ReplicaSpec(
        replica_id=f"{version}",
        key=made.key,
        run_id=run_id,
        version=version,
        ordinal=ordinal,
        python=nowhere,
        environment=nowhere,
        tree=nowhere,
        folder=nowhere,
        gpu="",
        model={},
    )


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
