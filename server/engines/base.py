"""Where replicas run: what every engine promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.errors import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from server.records import DeploymentKey


STUCK = "replica_stuck"
"""Code of a replica that ended because a prediction never returned."""


NO_PORT_LEFT = "no_port_left"
"""Code of an address that needs a port of a range, ``low`` to ``high``, which is used up."""


class EngineError(StepFailedError):
    """A replica cannot be started, asked or stopped, for a cause that has a name.

    ``permanent`` says that another try would end the same way, ``refused`` that none is made as
    long as this service runs, whatever has served before it.
    """

    def __init__(
        self,
        code: str,
        /,
        *,
        evidence: str = "",
        permanent: bool = False,
        refused: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(code, evidence=evidence, **params)
        self.permanent = permanent
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One replica to start: which version of which deployment, from which files.

    ``ordinal`` counts the replicas of one version from 0; ``model`` is the description that the
    model process reads; ``gpu`` is a UUID, or empty, ``nodes`` are its device nodes.
    """

    replica_id: str
    key: DeploymentKey
    run_id: str
    version: int
    ordinal: int = 0
    python: Path
    environment: Path
    tree: Path
    folder: Path
    gpu: str
    nodes: tuple[str, ...] = ()
    model: dict[str, Any] = field(repr=False)

    @property
    def place(self) -> str:
        """How logs call it: environment, version and its place among its kind."""
        return f"{self.key.environment}/{self.version}/{self.ordinal}"


class Replica(ABC):
    """One model process of one version. Methods raise EngineError and nothing else."""

    spec: ReplicaSpec
    port: int
    """Where it listens: its deployment's own port, save while another program has that one."""

    @abstractmethod
    async def ready(self) -> None:
        """Wait until the replica has answered a real inference; it takes no traffic yet."""

    @abstractmethod
    async def admit(self) -> None:
        """Let it take traffic."""

    @abstractmethod
    async def retreat(self) -> None:
        """Let it accept no further connection; those that it has go on. Already gone is success."""

    @abstractmethod
    async def drain(self) -> None:
        """Let it finish what it has; it takes nothing new. Already gone is success."""

    @abstractmethod
    async def stop(self) -> None:
        """End the process with everything it started. Already gone is success."""

    @abstractmethod
    async def ended(self) -> EngineError:
        """Wait until the process has ended, and return why."""

    @abstractmethod
    async def probe(self) -> None:
        """Let it answer the passport's warm-up as a real inference that nobody counts."""

    @abstractmethod
    async def scrape(self) -> str:
        """Return its metrics as Prometheus text."""


class Engine(ABC):
    """A place where replicas run."""

    @abstractmethod
    async def open(self) -> None:
        """Make ready; nothing is running yet."""

    @abstractmethod
    async def close(self) -> None:
        """End everything that was started."""

    @abstractmethod
    async def start(self, spec: ReplicaSpec) -> Replica:
        """Start a replica on its deployment's address.

        Raises:
            EngineError: the process or its address cannot be had.
        """

    @abstractmethod
    async def listen(self, key: DeploymentKey, port: int, *, reserved: Collection[int] = ()) -> int:
        """Open a deployment's address and return its port; being open is success.

        ``port`` zero takes a free one of the settings' range that is not ``reserved``. A port that another program has
        taken stays the deployment's; until it is free the replicas listen elsewhere, where only
        the gateway looks for them.

        Raises:
            EngineError: no port is left, or the address cannot be had.
            OSError: the machine has no open files left.
        """

    @abstractmethod
    async def attend(self, key: DeploymentKey, *, nobody_home: bool) -> None:
        """Answer 503 on a deployment's address, or leave it to its replicas."""

    @abstractmethod
    async def renew(self, key: DeploymentKey) -> None:
        """Tell a deployment's replicas which tokens predict at its address now.

        Returns when all of them know, or after some seconds; who does not know by then is told
        again until it does.
        """

    @abstractmethod
    async def unlisten(self, key: DeploymentKey) -> None:
        """Close a deployment's address; being closed is success."""
