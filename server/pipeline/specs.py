"""What a model process is told about its model: the same for proving and for serving."""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

from server.cores import usable_cores
from server.engines.base import EngineError, ReplicaSpec
from server.environments.fitting import restore
from server.errors import StepFailedError
from server.pipeline.devices import CPU

if TYPE_CHECKING:
    from pathlib import Path

    from server.environments.build import Environments
    from server.pipeline.devices import Devices
    from server.records import Deployment, DeploymentKey, Params, Preparation, Run
    from server.settings import Settings
    from server.store.state import Store

PACKED = "packed"
"""Name of the folder in a run's own that holds the packed forms of its model."""


def model_spec(
    run: Run,
    made: Preparation,
    settings: Settings,
    folder: Path,
    *,
    environment: str = "",
    version: int = 0,
    replicas: int = 1,
    secret: str | None = None,
) -> Params:
    """Return the JSON that ``server.model_server.spec.ModelSpec`` reads."""
    names = [run.run_id] if run.model == run.run_id else [run.run_id, run.model]
    return {
        "run_id": run.run_id,
        "names": names,
        "kind": made.model_kind,
        "path": str(folder / made.model_file),
        "digest": run.digest,
        "sample": None if made.sample is None else str(folder / made.sample),
        "version": str(version),
        "environment": environment,
        "device": "cpu" if made.device == CPU else "cuda",
        "allow_cpu_fallback": settings.allow_cpu_fallback,
        # Replicas share the cores: more threads than those only get in each other's way.
        "threads": max(1, usable_cores() // replicas),
        "predict_seconds": settings.predict_seconds,
        "drain_seconds": settings.drain_seconds,
        "secret": secret,
        "packed": str(folder / PACKED) if (made.passport or {}).get("packed_bytes") else None,
        "passport": made.passport or {},
    }


class SpecMaker:
    """Describes replicas to the engine."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        environments: Environments,
        devices: Devices,
        tree: Path,
    ) -> None:
        self._settings = settings
        self._store = store
        self._environments = environments
        self._devices = devices
        self._tree = tree
        self._models = settings.data_dir / "models"
        self._key = secrets.token_bytes(32)

    async def make(self, made: Deployment, version: int, run_id: str, ordinal: int) -> ReplicaSpec:
        """Describe a replica of a version of a deployment.

        Raises:
            EngineError: the run or its environment is gone.
        """
        run = self._store.runs.get(run_id)
        if run is None:
            raise EngineError("run_gone", permanent=True)
        prepared = self._store.preparation(run_id)
        passport = prepared.passport or {}
        try:
            # Built at preparation; built again if somebody has cleared the folder since.
            lock = await restore(
                self._environments,
                passport.get("lock", ""),
                passport.get("lock_device", "cpu"),
                str(passport.get("python", "")),
            )
            environment = await self._environments.build(lock, lambda _code, _params: None)
        except StepFailedError as error:
            raise EngineError(error.code, evidence=error.evidence, **error.params) from error
        folder = self._models / run_id
        return ReplicaSpec(
            replica_id=secrets.token_hex(8),
            key=made.key,
            run_id=run_id,
            version=version,
            ordinal=ordinal,
            python=environment.python,
            environment=environment.root,
            tree=self._tree,
            folder=folder,
            gpu="" if prepared.device == CPU else prepared.device,
            nodes=await self._devices.nodes(prepared.device),
            model=model_spec(
                run,
                prepared,
                self._settings,
                folder,
                environment=made.key.environment,
                version=version,
                replicas=made.replicas,
                secret=None if self._settings.inference_is_open else self._secret_of(made.key),
            ),
        )

    def _secret_of(self, key: DeploymentKey) -> str:
        """Return what the gateway shows to all replicas of a deployment, whichever accepts."""
        return hmac.new(self._key, "\0".join(key).encode(), "sha256").hexdigest()
