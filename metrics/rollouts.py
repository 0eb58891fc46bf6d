"""What the service says of a deployment's roll-out: how often it crashed, whether it failed."""

from __future__ import annotations

from metrics import names


def exposition(*, restarts: int, failed: bool) -> str:
    """Write the standing of one version in Prometheus' text format.

    ``restarts`` are replicas started again after a crash; ``failed`` says that the version is the
    wanted one and was given up before it served.
    """
    return (
        f"# HELP {names.ROLLOUT_RESTARTS} Replicas started again after a crash.\n"
        f"# TYPE {names.ROLLOUT_RESTARTS} counter\n"
        f"{names.ROLLOUT_RESTARTS} {restarts:.1f}\n"
        f"# HELP {names.ROLLOUT_FAILED} Whether this version was given up before it served.\n"
        f"# TYPE {names.ROLLOUT_FAILED} gauge\n"
        f"{names.ROLLOUT_FAILED} {failed:.1f}\n"
    )
