"""What a weightless service really is, held against what is believed of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from server import keys
from server.states import Phase, Wanted
from tests.support.beliefs import CPU, Beliefs, Key, Rollout, Run, Version
from tests.support.weightless import Model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.records import Deployment, Lease
    from server.store.state import Store
    from tests.support.weightless import Machine, WeightlessService

Found = dict[str, tuple[Any, Any]]
"""What is not as believed, by name: what is, and what was believed."""


class Observer:
    """Looks inside a service; ``owners`` says whose number an owner of the service has."""

    def __init__(self, service: WeightlessService) -> None:
        self._service = service
        self.owners: dict[str, int] = {}

    @property
    def _store(self) -> Store:
        return self._service.store

    @property
    def _machine(self) -> Machine:
        return self._service.machine

    def key_of(self, key: Any) -> Key:
        """Return a deployment's key as beliefs have it."""
        return Key(self.owners[key.owner], key.model, key.environment)

    def _serving(self, made: Deployment) -> int | None:
        return self._service.app[keys.RECONCILER].seen(made).serving

    def _phase(self, made: Deployment) -> Phase:
        return self._service.app[keys.DEPLOY].phase(made)

    def _alive(self) -> Counter[tuple[Key, Version]]:
        return Counter(
            (self.key_of(one.spec.key), Version(one.spec.run_id, one.spec.version))
            for one in self._machine.serving
        )

    # ── held against beliefs

    def differences(self, believed: Beliefs) -> Found:
        """Return what is not as believed."""
        if set(self._store.runs) != set(believed.runs):
            return {"runs": (set(self._store.runs), set(believed.runs))}
        leases = {card: lease.run_id for card, lease in self._store.leases.items()}
        compared: Found = {"leases": (leases, believed.leases)}
        for run_id, run in believed.runs.items():
            made = self._store.preparation(run_id)
            compared[f"preparation {run_id}"] = (
                (made.phase, made.attempt, made.device, made.resumed),
                (run.phase, run.attempt, run.device, run.resumed),
            )
        compared |= self._deployments(believed)
        return {name: pair for name, pair in compared.items() if pair[0] != pair[1]}

    def _deployments(self, believed: Beliefs) -> Found:
        made_by_key = {self.key_of(key): made for key, made in self._store.deployments.items()}
        compared: Found = {"deployments": (set(made_by_key), set(believed.rollouts))}
        alive = self._alive()
        for key in set(made_by_key) & set(believed.rollouts):
            made, rollout = made_by_key[key], believed.rollouts[key]
            compared[f"deployment {key}"] = (
                (self._phase(made), made.version, made.run_id),
                (rollout.phase, rollout.newest.number, rollout.newest.run_id),
            )
            live = None if rollout.live is None else rollout.live.number
            compared[f"live {key}"] = (self._serving(made), live)
            if not rollout.is_up:
                # What served must not stand in for a later version that fails.
                compared[f"forgotten {key}"] = (_remembered(made), (None, None))
            if rollout.live is not None and rollout.live == rollout.newest:
                compared[f"replicas {key}"] = (alive[key, rollout.live], rollout.replicas)
        stray = {
            (key, version)
            for key, version in alive
            if key not in believed.rollouts or version not in believed.rollouts[key].tried
        }
        return compared | {"stray replicas": (stray, set())}

    def assert_cards_are_not_shared(self, believed: Beliefs) -> None:
        """Every process on a card belongs to the run that holds it."""
        by_card: dict[str, set[str]] = defaultdict(set)
        for replica in self._machine.serving:
            by_card[replica.spec.gpu].add(replica.spec.run_id)
        for card in self._machine.cards:
            assert by_card[card] <= {believed.leases.get(card)}, (card, by_card, believed.leases)

    # ── held against itself

    def contradictions(self) -> list[str]:
        """Return what may not stay so once nothing is under way any more."""
        return [*self._of_preparations(), *self._of_leases(), *self._of_deployments()]

    def _of_preparations(self) -> Iterator[str]:
        for run_id in self._store.runs:
            if self._store.preparation(run_id).phase is Phase.RUNNING:
                yield f"the preparation of {run_id} is under way"
        for run_id, count in self._machine.preparing.items():
            if count:
                yield f"{run_id} is being prepared"

    def _of_leases(self) -> Iterator[str]:
        for card, lease in self._store.leases.items():
            made = self._store.preparation(lease.run_id)
            if lease.run_id not in self._store.runs:
                yield f"{card} is held by a run that is gone"
            elif (made.phase, made.device) != (Phase.SUCCEEDED, card):
                yield f"{card} is held by {lease.run_id}: {made.phase} on {made.device}"
            elif self._is_over(lease):
                yield f"{card} is held by {lease.run_id}, which is deployed no more"
            elif self._is_leaving(lease.run_id):
                yield f"{lease.run_id} is leaving and holds {card} still"

    def _is_over(self, lease: Lease) -> bool:
        """Whether a run keeps its card though its last deployment was stopped."""
        found = self._store.deployments_of(lease.run_id)
        prepared_at = self._store.preparation(lease.run_id).updated_at or lease.taken_at
        since = max(lease.taken_at, prepared_at)
        is_idle = all(made.wanted is Wanted.STOPPED for made in found)
        return is_idle and any(made.wanted_at >= since for made in found)

    def _is_leaving(self, run_id: str) -> bool:
        """Whether a keeper has something to do yet for a run that its deployment is done with."""
        keepers = self._service.app[keys.RECONCILER]._keepers
        for key, made in self._store.deployments.items():
            is_named = made.wanted is Wanted.UP and run_id in {made.run_id, made.serving_run_id}
            if not is_named and key in keepers and keepers[key].holds(run_id):
                return True
        return False

    def _of_deployments(self) -> Iterator[str]:
        serving = set()
        for key, made in self._store.deployments.items():
            if self._phase(made) is Phase.RUNNING:
                yield f"the roll-out of {made.run_id} is under way"
            number = self._serving(made)
            if number is not None:
                serving.add((self.key_of(key), Version(made.serving_run_id or "", number)))
            if made.wanted is Wanted.UP:
                yield from self._of_devices(made)
            elif _remembered(made) != (None, None):
                yield f"{made.key} was stopped and is not forgotten yet"
        alive = set(self._alive())
        if alive != serving:
            yield f"replicas of {alive}, not of {serving}"

    def _of_devices(self, made: Deployment) -> Iterator[str]:
        for run_id in {made.run_id, made.serving_run_id or made.run_id}:
            device = self._store.preparation(run_id).device
            holder = self._store.leases.get(device)
            if device != CPU and (holder is None or holder.run_id != run_id):
                yield f"{run_id} is deployed without its {device}"

    # ── believed anew

    def adopt(self, believed: Beliefs) -> None:
        """Let ``believed`` be what is, after it could have become one of several things."""
        runs = {run.run_id: self._run(run) for run in self._store.runs.values()}
        believed.deleted |= set(believed.runs) - set(runs)
        believed.runs = runs
        believed.leases = {card: lease.run_id for card, lease in self._store.leases.items()}
        before = believed.rollouts
        believed.rollouts = {}
        for key, made in self._store.deployments.items():
            name = self.key_of(key)
            rollout = believed.rollouts[name] = self._rollout(made)
            old = before.get(name)
            if old is not None and old.newest == rollout.newest:
                rollout.crashes, rollout.crashed = old.crashes, old.crashed

    def _run(self, run: Any) -> Run:
        made = self._store.preparation(run.run_id)
        return Run(
            run_id=run.run_id,
            owner=self.owners[run.owner],
            name=run.model,
            content=Model(run.file_name),
            phase=made.phase,
            device=made.device,
            attempt=made.attempt,
            resumed=made.resumed,
        )

    def _rollout(self, made: Deployment) -> Rollout:
        served = None
        if made.serving_run_id is not None and made.serving_version is not None:
            served = Version(made.serving_run_id, made.serving_version)
        return Rollout(
            Version(made.run_id, made.version),
            is_up=made.wanted is Wanted.UP,
            has_failed=made.failed_version == made.version,
            replicas=made.replicas,
            served=served,
            live=None if self._serving(made) is None else served,
        )


def _remembered(made: Deployment) -> tuple[int | None, int | None]:
    return made.serving_version, made.failed_version
