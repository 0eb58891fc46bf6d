"""What a caller may believe of the service, as a pure model: no I/O, no clock, no tasks.

It knows models by what becomes of them (``Model``) and the gates by ``is_held``: while they are
shut, preparations stay under way and new versions do not get ready.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from server.states import Phase
from tests.support.weightless import Model

CPU = "cpu"
RESUMES = 2
CRASHES = 5


class Answer(NamedTuple):
    """What a request is answered: its status, and its code where it is refused."""

    status: int
    code: str = ""


OK = Answer(200)
UNKNOWN = Answer(404, "run_unknown")


class Key(NamedTuple):
    """Whose model, where."""

    owner: int
    model: str
    environment: str


class Version(NamedTuple):
    """One version of a deployment."""

    run_id: str
    number: int


@dataclass
class Run:
    """One run that was uploaded and not deleted."""

    run_id: str
    owner: int
    name: str
    content: Model
    phase: Phase = Phase.PENDING
    device: str = ""
    attempt: int = 0
    resumed: int = 0


@dataclass
class Rollout:
    """One deployment.

    ``served`` is the version that served last, and would again; ``live`` the one that does now.
    """

    newest: Version
    is_up: bool = True
    has_failed: bool = False
    replicas: int = 1
    served: Version | None = None
    live: Version | None = None
    crashes: int = 0
    crashed: int = 0
    """The version that the crashes are of."""

    @property
    def phase(self) -> Phase:
        if not self.is_up:
            return Phase.PENDING
        if self.has_failed:
            return Phase.FAILED
        return Phase.SUCCEEDED if self.live == self.newest else Phase.RUNNING

    @property
    def tried(self) -> set[Version]:
        """The versions that may have processes: the newest, and the one to serve in its place."""
        if not self.is_up:
            return set()
        newest = set() if self.has_failed else {self.newest}
        return newest | ({self.served} if self.served is not None else set())

    @property
    def runs(self) -> set[str]:
        """The runs that it wants or is served by."""
        return {version.run_id for version in (self.newest, self.served) if version is not None}


@dataclass
class Beliefs:
    """Everything that was acknowledged, and what follows from it."""

    cards: tuple[str, ...]
    busy: set[str] = field(default_factory=set)
    is_held: bool = False
    runs: dict[str, Run] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    rollouts: dict[Key, Rollout] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)

    # ── devices

    def lease_of(self, run_id: str) -> str | None:
        return next((card for card, holder in self.leases.items() if holder == run_id), None)

    def why_not_free(self, card: str, run_id: str) -> str:
        holder = self.leases.get(card)
        if holder is not None and holder != run_id:
            return "gpu_taken"
        return "gpu_busy" if holder is None and card in self.busy else ""

    def options(self, run_id: str) -> list[str]:
        """The cards that the run may take, best first."""
        return [card for card in self.cards if not self.why_not_free(card, run_id)]

    def _lease(self, run_id: str, card: str | None) -> None:
        before = self.lease_of(run_id)
        if before is not None:
            del self.leases[before]
        if card is not None:
            self.leases[card] = run_id

    def is_deployed(self, run_id: str) -> bool:
        return any(made.is_up and run_id in made.runs for made in self.rollouts.values())

    def _release_if_idle(self, run_id: str) -> None:
        run = self.runs.get(run_id)
        if run is not None and run.phase is Phase.SUCCEEDED and not self.is_deployed(run_id):
            self._lease(run_id, None)

    # ── what a caller does

    def uploaded(self, run_id: str, owner: int, name: str, content: Model) -> None:
        self.runs[run_id] = Run(run_id, owner, name or run_id, content)

    def start_preparation(self, run_id: str, gpu: str | None) -> Answer:
        run = self.runs[run_id]
        if gpu not in {None, CPU, run.device, *self.cards}:
            return Answer(400, "gpu_unknown")
        return self._start_preparation(run_id, run, gpu)

    def _start_preparation(self, run_id: str, run: Run, gpu: str | None) -> Answer:
        is_same = gpu is None or gpu == run.device
        if run.phase is Phase.RUNNING:
            return OK if is_same else Answer(409, "preparation_under_way")
        if run.phase is Phase.SUCCEEDED:
            if is_same:
                return OK
            if self.is_deployed(run_id):
                return Answer(409, "device_in_use_by_deployment")
        if gpu is None:
            gpu = next(iter(self.options(run_id)), CPU)
        elif gpu != CPU:
            if gpu not in self.cards:
                return Answer(400, "gpu_unknown")
            if reason := self.why_not_free(gpu, run_id):
                return Answer(409, reason)
        run.attempt, run.resumed = run.attempt + 1, 0
        run.phase, run.device = Phase.RUNNING, gpu
        self._lease(run_id, None if gpu == CPU else gpu)
        self._prepare(run)
        return OK

    def start_deployment(self, run_id: str, environment: str, replicas: int) -> Answer:
        run = self.runs[run_id]
        key = Key(run.owner, run.name, environment)
        if run.phase is not Phase.SUCCEEDED:
            return Answer(409, "not_prepared")
        known = self.rollouts.get(key)
        if known is not None and known.newest.run_id == run_id and known.phase is Phase.RUNNING:
            return OK
        if run.device != CPU and self.lease_of(run_id) is None:
            if reason := self.why_not_free(run.device, run_id):
                return Answer(409, reason)
            self._lease(run_id, run.device)
        if known is None:
            known = self.rollouts[key] = Rollout(Version(run_id, 1))
            before = run_id
        else:
            before = known.newest.run_id
            known.newest = Version(run_id, known.newest.number + 1)
        known.is_up, known.has_failed, known.replicas = True, False, replicas
        self._roll_out(known)
        self._release_if_idle(before)
        return OK

    def stop_deployment(self, run_id: str, environment: str) -> Answer:
        run = self.runs[run_id]
        known = self.rollouts.get(Key(run.owner, run.name, environment))
        if known is None or known.newest.run_id != run_id or not known.is_up:
            return Answer(404, "not_deployed")
        self._stop(known)
        return OK

    def _stop(self, made: Rollout) -> None:
        runs = made.runs
        made.is_up = made.has_failed = False
        made.served = made.live = None
        made.crashes = 0
        for run_id in runs:
            self._release_if_idle(run_id)

    def delete(self, run_id: str) -> Answer:
        for made in list(self.rollouts.values()):
            if run_id in made.runs:
                self._leave(made, run_id)
        for key in [key for key, made in self.rollouts.items() if made.newest.run_id == run_id]:
            del self.rollouts[key]
        self._lease(run_id, None)
        del self.runs[run_id]
        self.deleted.add(run_id)
        return OK

    def _leave(self, made: Rollout, run_id: str) -> None:
        """Take a run out of a deployment that another run shares."""
        if made.newest.run_id != run_id:
            if made.has_failed:
                self._stop(made)
            else:
                made.served = made.live = None
        elif made.is_up and made.served is not None and made.served.run_id != run_id:
            made.newest = Version(made.served.run_id, made.newest.number + 1)
            made.has_failed = False
            self._roll_out(made)

    # ── what goes on by itself

    def let_go(self) -> None:
        self.is_held = False
        for run in self.runs.values():
            if run.phase is Phase.RUNNING:
                self._prepare(run)
        for made in self.rollouts.values():
            if made.is_up:
                self._roll_out(made)

    def _prepare(self, run: Run) -> None:
        if run.content is not Model.UNREADABLE and self.is_held:
            return
        is_sound = run.content in {Model.SOUND, Model.UNSERVABLE}
        run.phase = Phase.SUCCEEDED if is_sound else Phase.FAILED
        if not is_sound:
            self._lease(run.run_id, None)

    def _roll_out(self, made: Rollout) -> None:
        if self.is_held:
            return
        if made.phase is Phase.RUNNING:
            if self.runs[made.newest.run_id].content is Model.UNSERVABLE:
                made.has_failed = True
                made.crashes = 0
            else:
                before = made.served
                made.served = made.live = made.newest
                if before is not None:
                    self._release_if_idle(before.run_id)
        if made.has_failed:
            made.live = made.served if made.served != made.newest else None

    def crashed(self, key: Key) -> None:
        """One replica of what is live has died, while the gates are open."""
        made = self.rollouts[key]
        assert made.live is not None
        if made.crashed != made.live.number:
            made.crashed, made.crashes = made.live.number, 0
        made.crashes += 1
        if made.crashes < CRASHES * made.replicas:
            return
        made.crashes = 0
        if made.live == made.newest:
            made.has_failed = True
        else:
            before, made.served = made.live, None
            self._release_if_idle(before.run_id)
        made.live = None

    def expire_leases(self) -> None:
        """So much time has passed that whoever is deployed nowhere loses its card."""
        for run_id in list(self.leases.values()):
            self._release_if_idle(run_id)

    def restarted(self) -> None:
        for run in self.runs.values():
            if run.phase is Phase.RUNNING:
                run.resumed += 1
                if run.resumed > RESUMES:
                    run.phase = Phase.FAILED
                    self._lease(run.run_id, None)
                else:
                    self._prepare(run)
        for made in self.rollouts.values():
            made.live = None
            made.crashes = 0
            if made.is_up:
                self._roll_out(made)
