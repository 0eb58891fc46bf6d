"""Decides which source answers: Prometheus while it does, the embedded monitor else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metrics.reading import Source

FAILURES = 3
"""Failures in a row after which Prometheus is not asked any more."""

PROBE_SECONDS = 5.0
"""How often it is looked whether Prometheus is back."""


class SourceChoice:
    """A circuit breaker without I/O; times in seconds of any clock that never goes back.

    While Prometheus is asked, one failed question is answered by the embedded monitor too;
    after ``failures`` of them nobody waits for it any more, until a probe finds it ready. If it
    fails then at once, it is given up again without any more waiting.
    """

    __slots__ = (
        "_configured",
        "_failed",
        "_failures",
        "_open",
        "_probe_seconds",
        "_probed_at",
        "_trial",
    )

    def __init__(
        self,
        *,
        prometheus: bool,
        failures: int = FAILURES,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._configured = prometheus
        self._failures = failures
        self._probe_seconds = probe_seconds
        self._failed = 0
        self._open = False
        self._trial = False
        self._probed_at = 0.0

    @property
    def current(self) -> Source:
        """The source to ask now."""
        return "prometheus" if self._configured and not self._open else "embedded"

    @property
    def prometheus_is_up(self) -> bool | None:
        """Whether Prometheus answers, as far as known; None if there is none to ask."""
        return None if not self._configured else not self._open and self._failed == 0

    def succeeded(self) -> None:
        """Note that Prometheus answered."""
        self._failed = 0
        self._open = self._trial = False

    def returned(self) -> None:
        """Note that a probe found it ready."""
        self._trial = self._open
        self._failed = 0
        self._open = False

    def failed(self, now: float) -> None:
        """Note that Prometheus did not answer, or that a probe found it not ready."""
        self._failed += 1
        if not self._open and (self._trial or self._failed >= self._failures):
            self._open, self._trial = True, False
            self._probed_at = now

    def probe_due(self, now: float) -> bool:
        """Whether the caller should probe now; saying yes counts as the probe's start."""
        if not self._configured or not self._open or now - self._probed_at < self._probe_seconds:
            return False
        self._probed_at = now
        return True
