from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import metrics
from metrics import names
from metrics.instruments import InferenceInstruments

FOLDER = Path(metrics.__file__).parent


def samples(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_all_series_exist_at_zero_before_the_first_request() -> None:
    found = samples(InferenceInstruments(None).text())

    for code in names.CODE_CLASSES:
        assert found[f"inference_requests_total{{code={code}}}"] == 0
    assert len([name for name in found if name.startswith(names.DURATION + "_bucket")]) == 352
    assert found["inference_requests_in_progress{}"] == 0
    assert found["inference_requests_overloaded_total{}"] == 0
    assert not any("_created" in name or "model_info" in name for name in found)


def test_its_own_rendering_says_what_the_registry_says() -> None:
    registry = CollectorRegistry()
    instruments = InferenceInstruments(
        registry,
        framework="onnx",
        framework_version='1.0 "odd\\name"\n',
        digest="ab" * 32,
        started_at=1_700_000_000.25,
        probes=True,
    )
    for milliseconds in range(1, 400):
        code = "2xx" if milliseconds % 7 else "5xx"
        instruments.observe(code, milliseconds / 1000, overloaded=milliseconds % 14 == 0)
        instruments.probe(passed=milliseconds % 5 != 0)

    assert samples(instruments.text()) == samples(generate_latest(registry).decode())


def test_overload_is_counted_beside_its_class_and_probes_apart() -> None:
    instruments = InferenceInstruments(None, probes=True)
    instruments.observe("5xx", 0.01)
    instruments.observe("5xx", None, overloaded=True)
    instruments.probe(passed=True)
    instruments.probe(passed=False)
    instruments.probe(passed=True)
    found = samples(instruments.text())

    assert found["inference_requests_total{code=5xx}"] == 2
    assert found["inference_requests_overloaded_total{}"] == 1
    assert found["inference_probes_total{result=passed}"] == 2
    assert found["inference_probes_total{result=failed}"] == 1
    # A refusal has no duration.
    assert found["inference_request_duration_seconds_count{}"] == 1
    assert found["inference_request_duration_seconds_sum{}"] == 0.01


def test_a_replica_counts_no_probes() -> None:
    instruments = InferenceInstruments(None)

    assert "inference_probes_total" not in instruments.text()
    with pytest.raises(KeyError):
        instruments.probe(passed=True)


def test_a_request_falls_into_the_first_bucket_that_is_not_below_it() -> None:
    instruments = InferenceInstruments(None)
    instruments.observe("2xx", 0.0002)
    instruments.observe("4xx", 0.000201)
    instruments.observe("5xx", 61.0)
    found = samples(instruments.text())

    assert found["inference_request_duration_seconds_bucket{le=0.0002}"] == 1
    assert found["inference_request_duration_seconds_bucket{le=0.0002059}"] == 2
    assert found["inference_request_duration_seconds_bucket{le=60.0}"] == 2
    assert found["inference_request_duration_seconds_bucket{le=+Inf}"] == 3
    assert found["inference_request_duration_seconds_count{}"] == 3
    assert found["inference_request_duration_seconds_sum{}"] == pytest.approx(61.000401)
    assert found["inference_requests_total{code=5xx}"] == 1


def test_requests_under_way_are_counted_also_when_they_fail() -> None:
    instruments = InferenceInstruments(None)
    instruments.in_progress.inc()
    with contextlib.suppress(RuntimeError), instruments.in_progress:
        assert "inference_requests_in_progress 2.0" in instruments.text()
        raise RuntimeError
    instruments.in_progress.dec()

    assert instruments.in_progress.value == 0


def test_an_unknown_class_is_refused_and_counts_nothing() -> None:
    instruments = InferenceInstruments(None)
    before = instruments.text()
    with pytest.raises(KeyError):
        instruments.observe("3xx", 0.1)

    assert instruments.text() == before


@pytest.mark.parametrize("name", ["names.py", "instruments.py", "__init__.py"])
def test_what_runs_in_model_environments_keeps_to_python_3_9(name: str) -> None:
    tree = ast.parse((FOLDER / name).read_text(), feature_version=(3, 9))

    strict = [
        keyword.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in {"strict", "slots", "kw_only"}
    ]
    assert strict == []
