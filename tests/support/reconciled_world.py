"""One deployment's reconciler on a real store and an engine without processes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from server.reconcile.hooks import Hooks
from server.reconcile.reconciler import Reconciler
from server.records import Deployment, DeploymentKey, Run, now
from server.states import Phase, Wanted, public_phase
from server.store.database import Database
from server.store.state import Store
from tests.support.engines import InProcessEngine, spec_for, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.engines.base import Replica

KEY = DeploymentKey("me", "model", "dev")


class World:
    """A store, an engine, a reconciler, and what the hooks were told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.engine = InProcessEngine()
        self.unused: list[str] = []
        self.results: list[str] = []
        self.restarts = 0
        self.reconciler = self.fresh_reconciler()

    def fresh_reconciler(self) -> Reconciler:
        async def silent(_replica: Replica) -> None:
            return

        async def unused(run_id: str) -> None:
            self.unused.append(run_id)

        def restarted(_key: DeploymentKey) -> None:
            self.restarts += 1

        hooks = Hooks(
            make_spec=spec_for,
            joined=silent,
            left=silent,
            unused=unused,
            restarted=restarted,
            ended=lambda _key, result: self.results.append(result),
        )
        return Reconciler(self.store, self.engine, hooks)

    @property
    def made(self) -> Deployment:
        return self.store.deployments[KEY]

    @property
    def phase(self) -> Phase:
        made = self.made
        return public_phase(made.wanted, made.version, self.reconciler.seen(made))

    async def want(self, version: int, wanted: Wanted = Wanted.UP, replicas: int = 1) -> None:
        made = Deployment(
            key=KEY,
            port=0,
            wanted=wanted,
            version=version,
            run_id=f"run{version}",
            wanted_at=now(),
            first_wanted_at=now(),
            replicas=replicas,
        )
        if made.run_id not in self.store.runs:
            await self.store.add_run(
                Run(
                    run_id=made.run_id,
                    owner=KEY.owner,
                    model=KEY.model,
                    file_name="model.onnx",
                    size_bytes=1,
                    digest="d",
                    created_at=now(),
                )
            )
        await self.store.want(made)
        self.reconciler.poke(KEY)

    async def reach(self, phase: Phase) -> None:
        await until(lambda: self.phase is phase)

    @classmethod
    @asynccontextmanager
    async def on(cls, folder: Path) -> AsyncIterator[Self]:
        """Have one with a database of its own in a folder."""
        database = Database(f"sqlite+aiosqlite:///{folder / 'test.db'}")
        await database.open()
        made = cls(Store(database))
        yield made
        await made.reconciler.close()
        await database.close()
