"""Measures what the reconciler does."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from metrics.rollouts import exposition
from server.logs import request_id_var, trace_id_var
from server.records import now
from server.states import Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from metrics.service import ServiceInstruments
    from metrics.targets import Target
    from server.records import Deployment, DeploymentKey
    from server.states import Wanted
    from server.store.state import Store
    from server.tracing import Tracing

logger = logging.getLogger(__name__)

# The reconciler looks every few seconds; only what it does is worth a span and a line.
_LOOKS = frozenset({Action.NOTHING, Action.WAIT, Action.BACK_OFF})


_Version = tuple[str, str, str]


def _serving(made: Deployment) -> _Version:
    return made.serving_run_id or made.run_id, made.key.environment, str(made.serving_version)


class _Request(NamedTuple):
    """Who asked for something, and for what."""

    version: int
    wanted: Wanted
    request_id: str
    trace_id: str
    headers: Mapping[str, str] | None
    """Which trace it is a part of, as a request would say it."""


class Observing:
    """Tells logs, metrics and traces of steps and roll-outs."""

    def __init__(
        self, store: Store, instruments: ServiceInstruments, tracing: Tracing | None = None
    ) -> None:
        self._store = store
        self._instruments = instruments
        self._tracing = tracing
        # By run, environment and version.
        self._restarts: Counter[_Version] = Counter()
        self._requests: dict[DeploymentKey, _Request] = {}

    def asked(self, made: Deployment) -> None:
        """Take the request that is answered now for who wants this of a deployment.

        What is done for it belongs to that request until it has come to its end.
        """
        # Deleted before they came to an end.
        for gone in self._requests.keys() - self._store.deployments.keys():
            del self._requests[gone]
        self._requests[made.key] = _Request(
            made.version,
            made.wanted,
            request_id_var.get(),
            trace_id_var.get(),
            None if self._tracing is None else self._tracing.headers(),
        )

    @contextmanager
    def around(self, made: Deployment, action: Action) -> Iterator[None]:
        """Enclose one step."""
        request = self._requests.get(made.key)
        if request is None or (made.version, made.wanted) != request[:2]:
            with self._measured(made, action, None):
                yield
            return
        ids = (request_id_var.set(request.request_id), trace_id_var.set(request.trace_id))
        try:
            with self._measured(made, action, request.headers):
                yield
        finally:
            for variable, token in zip((request_id_var, trace_id_var), ids, strict=True):
                variable.reset(token)

    @contextmanager
    def _measured(
        self, made: Deployment, action: Action, caller: Mapping[str, str] | None
    ) -> Iterator[None]:
        began = time.perf_counter()
        ok = False
        try:
            if self._tracing is None or action in _LOOKS:
                yield
            else:
                ids = {"persephone.run_id": made.run_id, "persephone.deployment_id": made.id}
                name = f"reconcile {action}"
                with self._tracing.span(name, attributes={**ids}, caller=caller):
                    yield
            ok = True
        finally:
            seconds = time.perf_counter() - began
            self._instruments.reconciled(action.value, seconds, ok=ok)
            if action not in _LOOKS:
                logger.info("reconcile %s took %.2f s", action, seconds)

    def restarted(self, key: DeploymentKey) -> None:
        """Count a replica that is started again after a crash."""
        self._instruments.restart(key.environment)
        live = {_serving(made) for made in self._store.deployments.values()}
        for gone in self._restarts.keys() - live:
            del self._restarts[gone]
        made = self._store.deployments.get(key)
        if made is not None:
            self._restarts[_serving(made)] += 1

    def text(self, target: Target) -> str:
        """Write what there is to say of a deployment's version, for Prometheus."""
        version = (target.run_id, target.environment, target.version)
        failed = any(
            made.failed_version == made.version != made.serving_version
            and version == (made.run_id, made.key.environment, str(made.version))
            for made in self._store.deployments_of(target.run_id)
        )
        return exposition(restarts=self._restarts[version], failed=failed)

    def ended(self, key: DeploymentKey, result: str) -> None:
        """Count a roll-out that has ended, one way or another."""
        # What becomes of it later was nobody's wish.
        self._requests.pop(key, None)
        self._instruments.deploy(key.environment, result)
        made = self._store.deployments.get(key)
        # Falling back to the version before is no roll-out of the one that was wanted.
        if result == "succeeded" and made is not None and made.serving_version == made.version:
            self._instruments.deployed(key.environment, (now() - made.wanted_at).total_seconds())
