from __future__ import annotations

from dataclasses import replace

from metrics.explain import explain
from metrics.objectives import BURN_SECONDS, Objective, stand
from metrics.reading import RED, SLO, Asked, Name, Reading
from metrics.slo import red_question, summarise

NOW = 1_700_000_000.0
PROD = Objective(availability=99.9, latency_seconds=0.5, latency_share=99.0)


def asked(*, requests: float = 100.0) -> dict[Name, Asked]:
    def answer(question) -> Asked:
        reading = Reading(
            at=NOW,
            seconds=question.seconds,
            requests=requests,
            timed=0.8 * requests,
            errors=1.0,
            scrapes=29.6,
            last_scrape_at=NOW - 1.5,
            probes_passed=9.0,
            probes_failed=1.0,
        )
        return Asked(question=question, reading=reading, source="embedded")

    found = {Name(RED): red_question(None), Name(SLO): red_question(None, 7200)}
    for name, seconds in {SLO: 7200.0, **BURN_SECONDS}.items():
        found[Name(name, "prod")] = PROD.question("prod", seconds)
    return {name: answer(question) for name, question in found.items()}


def explained(known: dict[Name, Asked]):
    summary = summarise(known[Name(RED)].reading, known[Name(SLO)].reading)
    burning = {name: known[Name(name, "prod")].reading for name in BURN_SECONDS}
    standing = stand("prod", PROD, known[Name(SLO, "prod")].reading, burning)
    return explain("r1", summary, [standing], known, NOW + 1)


def test_every_figure_has_its_promql_window_samples_age_and_source() -> None:
    found = explained(asked())

    contract = {"red.rps", "red.errorsPercent", "red.p95DurationMs"}
    contract |= {"slo.availability", "slo.latencyP95Ms"}
    assert contract < found.keys()
    for kind in ("availability", "latency"):
        for figure in ("attainedPercent", "budgetLeftPercent", "exhaustedInSeconds"):
            assert f"objectives.prod.{kind}.{figure}" in found
        for window in BURN_SECONDS:
            assert f"objectives.prod.{kind}.burnRates.{window}" in found
    for one in found.values():
        assert one["samples"] == 30
        assert one["ageSeconds"] == 2.5
        assert one["source"] == "embedded"
        assert one["promql"].count("(") == one["promql"].count(")")
    # A duration has only what the model was given.
    assert (found["red.rps"]["requests"], found["red.p95DurationMs"]["requests"]) == (100, 80)
    assert found["objectives.prod.latency.burnRates.1h"]["requests"] == 80
    assert found["red.rps"]["window"] == "1m"
    assert found["slo.availability"]["window"] == "2h"
    assert found["objectives.prod.latency.burnRates.3d"]["window"] == "3d"


def test_what_is_not_shown_is_not_explained() -> None:
    known = asked(requests=0.0)
    for name, one in known.items():
        quiet = replace(one.reading, errors=0.0, probes_passed=0.0, probes_failed=0.0, scrapes=0.0)
        known[name] = replace(one, reading=quiet)
    found = explained(known)

    for kind in ("availability", "latency"):
        assert f"objectives.prod.{kind}.budgetLeftPercent" in found
        for figure in ("attainedPercent", "exhaustedInSeconds"):
            assert f"objectives.prod.{kind}.{figure}" not in found


def test_each_figure_is_explained_by_the_source_and_the_moment_it_came_from() -> None:
    known = asked()
    hour = known[Name("1h", "prod")]
    reading = replace(hour.reading, at=NOW - 5, watched=3590.0)
    known[Name("1h", "prod")] = replace(hour, reading=reading, source="prometheus")
    found = explained(known)

    rate = found["objectives.prod.availability.burnRates.1h"]
    assert (rate["source"], rate["watchedSeconds"]) == ("prometheus", 3590)
    assert found["objectives.prod.availability.burnRates.6h"]["source"] == "embedded"
    # Made of two windows, each up to its own moment.
    lasts = found["objectives.prod.availability.exhaustedInSeconds"]["promql"]
    assert lasts.startswith("clamp(")
    assert lasts.count(f"[2h] @ {NOW:.3f}") == lasts.count(f"[1h] @ {NOW - 5:.3f}") == 2


def test_promql_is_of_the_run_and_of_the_environment_that_was_asked() -> None:
    found = explained(asked())

    assert found["red.rps"]["promql"] == (
        'sum(rate(inference_requests_total{job="persephone-models",run_id="r1"}[1m]))'
    )
    assert 'environment="prod"' in found["objectives.prod.latency.attainedPercent"]["promql"]
    assert 'le="0.5"' in found["objectives.prod.latency.attainedPercent"]["promql"]
    assert found["objectives.prod.availability.burnRates.1h"]["promql"].endswith(" / 0.001")


def test_without_requests_the_promql_is_that_of_the_probes() -> None:
    found = explained(asked(requests=0.0))

    for figure in ("slo.availability", "objectives.prod.availability.burnRates.6h"):
        assert 'inference_probes_total{job="persephone-models"' in found[figure]["promql"]


def test_of_a_run_that_was_never_deployed_there_is_nothing_to_explain() -> None:
    known = asked()
    summary = summarise(known[Name(RED)].reading, known[Name(SLO)].reading)

    assert explain("r1", summary, [], {}, NOW) == {}
