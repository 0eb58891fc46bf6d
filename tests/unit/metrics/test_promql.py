from __future__ import annotations

from dataclasses import fields

from metrics import promql
from metrics.slo import Readings


def test_one_query_asks_for_every_reading() -> None:
    text = promql.summary("r1", None, slo_window=600)

    for name in {field.name for field in fields(Readings)} - {"at"}:
        assert f'"{promql.READING}", "{name}"' in text
    assert text.count("label_replace(") == len(fields(Readings)) - 1


def test_rates_come_before_sums_and_buckets_are_merged() -> None:
    text = promql.summary("r1", None, slo_window=600)

    assert (
        'sum(rate(inference_requests_total{job="persephone-models",run_id="r1"}[60000ms]))' in text
    )
    assert "histogram_quantile(0.95, sum by (le) (rate(" in text
    assert "/ " not in text


def test_an_environment_narrows_every_part() -> None:
    text = promql.summary("r1", "prod", slo_window=600)

    assert text.count('environment="prod"') == text.count('run_id="r1"') == 9


def test_the_services_own_refusals_do_not_count_as_a_replica_that_is_up() -> None:
    text = promql.summary("r1", None, slo_window=600)

    assert text.count("up{") == text.count('replica!="gateway"') == 3


def test_names_cannot_leave_their_quotes() -> None:
    text = promql.summary('x"} or up{a="\\', "line\nbreak", slo_window=600)

    assert r'run_id="x\"} or up{a=\"\\"' in text
    assert r'environment="line\nbreak"' in text


def test_a_quantile_over_a_long_window_looks_at_some_samples_only() -> None:
    assert "[21600000ms])))" in promql.summary("r", None, slo_window=6 * 3600)
    day = promql.summary("r", None, slo_window=86_400)
    assert "[86400000ms:300000ms]" in day
    assert day.count("86400000ms:") == 1
    assert "[2592000000ms:9000000ms]" in promql.summary("r", None, slo_window=30 * 86_400)
