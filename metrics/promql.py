"""The PromQL that a summary needs, as text: sums and quantiles only, in one query.

Ratios are left to ``metrics.slo``, so that both sources share them. Rates come before sums, and
quantiles after them: a restart of one replica must not look like traffic of another.
"""

from __future__ import annotations

import json

from metrics import names
from metrics.slo import QUANTILE, RED_SECONDS

READING = "reading"
"""Label that tells the values of the one answer apart; its values are fields of ``Readings``."""

LONG_SECONDS = 6 * 3600.0
"""Window above which a quantile looks at some samples only: all buckets of a replica over a
month are a hundred million samples, more than Prometheus reads for one query."""

_LONG_STEPS = 288
_LEAST_STEP = 300.0


def quote(value: str) -> str:
    """Write a string literal; PromQL reads those as Go does, JSON's escapes among them."""
    return json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Write a range, in whole milliseconds."""
    return f"{max(round(seconds * 1000), 1)}ms"


def summary(
    run_id: str,
    environment: str | None,
    *,
    slo_window: float,
    red_window: float = RED_SECONDS,
    job: str = names.MODELS_JOB,
) -> str:
    """Ask for every reading of a run, of all its environments or of one.

    Windows in seconds. What Prometheus has nothing for is missing in the answer.
    """
    chosen = [f"job={quote(job)}", f"run_id={quote(run_id)}"]
    if environment is not None:
        chosen.append(f"environment={quote(environment)}")
    requests = _series(names.REQUESTS, chosen)
    errors = _series(names.REQUESTS, [*chosen, f"code={quote(names.ERROR_CLASS)}"])
    buckets = _series(f"{names.DURATION}_bucket", chosen)
    # The service itself can always be scraped; that says nothing about the replicas.
    up = _series("up", [*chosen, f"replica!={quote(names.GATEWAY_REPLICA)}"])
    red, slo = f"[{duration(red_window)}]", f"[{duration(slo_window)}]"
    parts = {
        "rps": f"sum(rate({requests}{red}))",
        "error_rps": f"sum(rate({errors}{red}))",
        "p95_seconds": _quantile(f"rate({buckets}{red})"),
        "slo_total": f"sum(increase({requests}{slo}))",
        "slo_errors": f"sum(increase({errors}{slo}))",
        "slo_p95_seconds": _quantile(f"rate({buckets}{_sparse(slo_window)})"),
        "up": f"avg(avg_over_time({up}{slo}))",
        "samples": f"sum(count_over_time({up}{slo}))",
        "last_scrape_at": f"max(timestamp({up}))",
    }
    return "\nor ".join(
        f'label_replace({expression}, "{READING}", "{name}", "{READING}", "")'
        for name, expression in parts.items()
    )


def _series(name: str, matchers: list[str]) -> str:
    return f"{name}{{{','.join(matchers)}}}"


def _sparse(seconds: float) -> str:
    if seconds <= LONG_SECONDS:
        return f"[{duration(seconds)}]"
    return f"[{duration(seconds)}:{duration(max(seconds / _LONG_STEPS, _LEAST_STEP))}]"


def _quantile(rates: str) -> str:
    return f"histogram_quantile({QUANTILE}, sum by (le) ({rates}))"
