from __future__ import annotations

import re
from typing import Any

from metrics import promql
from metrics.reading import Question


def query(*questions: Question, run: str = "r1") -> str:
    return promql.query(run, questions)


def ask(**more: Any) -> Question:
    return Question(**{"seconds": 600, **more})


WHOLE = ask(quantiles=(0.5, 0.95), bound=0.25, health=True, recent=True, in_progress=True)


def test_one_query_asks_all_questions_and_tells_their_values_apart() -> None:
    text = query(WHOLE, ask(seconds=60))

    labels = re.findall(r'"reading", "([^"]+)", "reading", ""\)', text)
    assert labels == [
        "0.requests",
        "0.overloaded",
        "0.timed",
        "0.quick",
        "0.durations.0",
        "0.durations.1",
        "0.good_scrapes",
        "0.scrapes",
        "0.last_scrape_at",
        "0.probes",
        "0.recent_scrapes",
        "0.in_progress",
        "1.requests",
        "1.overloaded",
    ]
    assert text.count("label_replace(") == len(labels)


def test_increases_come_before_sums_and_buckets_are_merged() -> None:
    text = query(WHOLE)
    chosen = 'job="persephone-models",run_id="r1"'

    assert f"sum by (code) (increase(inference_requests_total{{{chosen}}}[10m]))" in text
    assert "histogram_quantile(0.95, sum by (le) (rate(" in text
    assert (
        'inference_request_duration_seconds_bucket{job="persephone-models",run_id="r1",le="0.25"'
        in (text)
    )
    assert "/ " not in text


def test_an_environment_narrows_every_part() -> None:
    text = query(ask(environment="prod", health=True, in_progress=True))

    assert text.count('environment="prod"') == text.count('run_id="r1"') == 7


def test_the_services_own_refusals_do_not_count_as_a_replica_that_is_up() -> None:
    text = query(WHOLE)

    assert text.count("up{") == text.count('replica!="gateway"') == 4
    assert "count_over_time(up{" in text
    assert "}[5m])" in text


def test_how_long_was_watched_is_counted_in_cells_of_the_window() -> None:
    text = query(ask(environment="prod", seconds=864_000, watched=True))
    up = 'up{job="persephone-models",run_id="r1",environment="prod",replica="gateway"}'
    cells = f"count_over_time(count by (environment) (count_over_time({up}[50m]))[10d:50m])"

    assert f"sum(clamp_max({cells} / 288, 1)) * 864000" in text
    assert "[5m:15s]) / 20, 1)) * 300" in query(ask(seconds=300, watched=True))


def test_a_series_may_be_of_a_moment() -> None:
    series = promql.Series("r1", ask(seconds=604_800), at=1_700_000_000.25)
    texts = (series.requests(), series.quantile(0.5), series.scrapes("avg_over_time"))

    assert all("] @ 1700000000.250)" in text for text in texts)
    assert "[1d:5m] @ 1700000000.250 offset 1h)" in texts[1]


def test_names_cannot_leave_their_quotes() -> None:
    text = query(ask(environment="line\nbreak"), run='x"} or up{a="\\')

    assert r'run_id="x\"} or up{a=\"\\"' in text
    assert r'environment="line\nbreak"' in text


def test_a_quantile_over_a_long_window_looks_at_some_samples_only() -> None:
    assert "[6h])))" in query(ask(seconds=6 * 3600, quantiles=(0.95,)))
    day = query(ask(seconds=86_400, quantiles=(0.95,)))
    assert re.findall(r"bucket{[^}]*}(\[[^)]*)\)", day.partition("durations.0")[0]) == [
        "[1d]",
        "[1h]",
        "[23h:5m] offset 1h",
    ]
    month = query(ask(seconds=30 * 86_400 + 90_000, quantiles=(0.95,)))
    assert "[1h])" in month
    assert "[1d:5m] offset 1h)" in month
    assert "[30d:2h30m] offset 1d1h)" in month
    # How many they are says whether something is missing.
    assert '"0.sketched"' in month
    assert "sketched" not in query(ask(seconds=6 * 3600, quantiles=(0.95,)))
