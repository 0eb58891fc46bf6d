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


class EngineError(StepFailedError):
    """A replica cannot be started, asked or stopped, for a cause that has a name.

    ``permanent`` says that another try would end the same way.
    """

    def __init__(
        self, code: str, /, *, evidence: str = "", permanent: bool = False, **params: Any
    ) -> None:
        super().__init__(code, evidence=evidence, **params)
        self.permanent = permanent


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One replica to start: which version of which deployment, from which files.

    ``ordinal`` counts the replicas of one version from 0; ``model`` is the description that the
    model process reads; ``gpu`` is a UUID, or empty.
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
    model: dict[str, Any] = field(repr=False)


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
        """

    @abstractmethod
    async def attend(self, key: DeploymentKey, *, nobody_home: bool) -> None:
        """Answer 503 on a deployment's address, or leave it to its replicas."""

    @abstractmethod
    async def unlisten(self, key: DeploymentKey) -> None:
        """Close a deployment's address; being closed is success."""
