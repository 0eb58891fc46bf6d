from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from metrics import names
from metrics.places import Crowd
from metrics.service import ServiceInstruments


def instruments(*, process: bool = False) -> ServiceInstruments:
    return ServiceInstruments(
        CollectorRegistry(),
        routes=("/upload", "/runs/{runId}"),
        environments=("dev", "prod"),
        steps=("load", "smoke-test"),
        actions=("start", "admit"),
        process=process,
    )


def samples(of: ServiceInstruments) -> dict[tuple[str, frozenset[str]], float]:
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(of.text().decode())
        for sample in family.samples
    }


def test_closed_sets_of_labels_exist_at_zero_from_the_start() -> None:
    found = samples(instruments())

    assert found[names.UPLOADS, frozenset({"accepted"})] == 0
    assert found[names.PREPARE_STEPS, frozenset({"load", "Failed"})] == 0
    assert found[names.DEPLOYS, frozenset({"prod", "succeeded"})] == 0
    assert found[names.REPLICA_RESTARTS, frozenset({"dev"})] == 0
    assert found[names.DEPLOY_DURATION + "_count", frozenset({"prod"})] == 0
    assert found[names.RECONCILE_DURATION + "_count", frozenset({"admit"})] == 0
    assert found[names.RECONCILE_FAILURES, frozenset({"start"})] == 0
    assert found[names.DEPLOYMENTS, frozenset({"dev", "Running"})] == 0
    assert found[names.BACKEND_UP, frozenset({"prometheus"})] == 0
    assert found[names.SCRAPES, frozenset({"failed"})] == 0
    assert found[names.HTTP_DURATION + "_count", frozenset({"/upload"})] == 0
    assert found[names.GPUS, frozenset()] == 0


def test_every_name_is_the_services_own_and_none_is_a_time_of_creation() -> None:
    text = instruments().text().decode()
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]

    assert set(families) == set(names.SERVICE_METRICS)
    assert "_created" not in text


def test_the_process_is_measured_too() -> None:
    text = instruments(process=True).text().decode()

    assert "process_resident_memory_bytes " in text
    assert "python_info{" in text


def test_requests_are_counted_by_route_method_and_status() -> None:
    service = instruments()
    for _ in range(3):
        service.request("/upload", "POST", 201, 0.02)

    found = samples(service)
    assert found[names.HTTP_REQUESTS, frozenset({"/upload", "POST", "201"})] == 3
    assert found[names.HTTP_DURATION + "_count", frozenset({"/upload"})] == 3


def test_a_caller_cannot_add_series() -> None:
    service = instruments()
    for number in range(200):
        service.request(f"/made/up/{number}", f"VERB{number}", 404, 0.001)

    made_up = [key for key in samples(service) if key[0] == names.HTTP_REQUESTS]
    assert made_up == [(names.HTTP_REQUESTS, frozenset({"other", "404"}))]
    assert service._request_children == {}


def test_the_rest_is_counted_where_it_belongs() -> None:
    service = instruments()
    service.upload("accepted")
    service.upload("something new")
    service.step("load", "Succeeded", 1.5)
    service.deploy("dev", "failed")
    service.deployed("dev", 2.5)
    service.reconciled("start", 0.2, ok=True)
    service.reconciled("start", 0.3, ok=False)
    service.restart("dev")
    service.deployments({("dev", "Running"): 2})
    service.deployments({("prod", "Failed"): 1})
    service.runs(7)
    service.gpus(4, 3)
    service.backend("embedded", up=True)
    service.scrape(0.01, ok=False)
    service.scrape_targets(5)
    service.history(Crowd(7, 1, 0), unreadable=2)

    found = samples(service)
    assert found[names.UPLOADS, frozenset({"accepted"})] == 1
    assert found[names.UPLOADS, frozenset({"failed"})] == 1
    assert found[names.PREPARE_STEP_DURATION + "_sum", frozenset({"load"})] == 1.5
    assert found[names.DEPLOYS, frozenset({"dev", "failed"})] == 1
    assert found[names.DEPLOY_DURATION + "_sum", frozenset({"dev"})] == 2.5
    assert found[names.RECONCILE_DURATION + "_sum", frozenset({"start"})] == 0.5
    assert found[names.RECONCILE_FAILURES, frozenset({"start"})] == 1
    assert found[names.REPLICA_RESTARTS, frozenset({"dev"})] == 1
    assert found[names.DEPLOYMENTS, frozenset({"dev", "Running"})] == 0
    assert found[names.DEPLOYMENTS, frozenset({"prod", "Failed"})] == 1
    assert found[names.RUNS, frozenset()] == 7
    assert (found[names.GPUS, frozenset()], found[names.GPUS_FREE, frozenset()]) == (4, 3)
    assert found[names.BACKEND_UP, frozenset({"embedded"})] == 1
    assert found[names.SCRAPES, frozenset({"failed"})] == 1
    assert found[names.SCRAPE_TARGETS, frozenset()] == 5
    assert found[names.HISTORY_UNREADABLE, frozenset()] == 2
    assert found[names.HISTORY_TARGETS, frozenset({"whole"})] == 7
    assert found[names.HISTORY_TARGETS, frozenset({"brief"})] == 1


def test_an_unknown_backend_is_not_a_new_series() -> None:
    with pytest.raises(KeyError):
        instruments().backend("graphite", up=True)
