"""What a model's process says when a model cannot be loaded or proven, whatever its kind."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from server.model_server import prove
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.jobs import guarded
from server.model_server.loading import load_model
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec
from server.model_server.runtimes.onnx import OnnxRuntime
from server.model_server.spec import ModelSpec
from server.model_server.unpickling import load_pickle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ROWS = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
LOADED = Loaded(signature=ROWS, framework="none", framework_version="1", device="cpu")


class Echo(Runtime):
    kind = "onnx"

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        raise NotImplementedError

    def predict(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        del outputs
        return {"y": inputs["x"]}


class Breaks(Echo):
    """Answers, and cannot say what it answered."""

    def describe(self, outputs: Mapping[str, Any]) -> Signature | None:
        raise KeyError("y")


def spec(kind: str = "onnx") -> ModelSpec:
    return ModelSpec(run_id="r1", names=("r1",), kind=kind, path="model.onnx", digest="0" * 64)


def refused(kind: str) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        load_model(spec(kind))
    return caught.value


def events_of(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> list[dict[str, Any]]:
    monkeypatch.setattr(prove, "load_model", lambda _spec: (runtime, LOADED))
    events: list[dict[str, Any]] = []
    prove.run(spec(), events.append)
    return events


def test_a_kind_that_nothing_runs_is_named_with_those_that_are() -> None:
    failure = refused("tensorflow")
    assert (failure.code, failure.params["kind"]) == ("kind_unsupported", "tensorflow")
    assert "onnx" in failure.params["kinds"]


def test_a_framework_that_is_not_installed_is_a_missing_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    failure = refused("onnx")
    assert failure.code == "module_missing"
    assert failure.params == {"module": "onnxruntime", "package": "onnxruntime"}


def test_a_framework_that_is_installed_and_does_not_work_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = "libcudart.so.12: cannot open shared object file"
    (tmp_path / "onnxruntime.py").write_text(f"raise ImportError({cause!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    failure = refused("onnx")
    assert (failure.code, failure.params) == ("framework_missing", {"kind": "onnx"})
    assert cause in failure.evidence


def test_a_package_that_a_pickle_needs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x04cxgboost.sklearn\nXGBClassifier\n.")
    with pytest.raises(ModelFailure) as caught:
        load_pickle(str(path))
    assert caught.value.code == "module_missing"
    assert caught.value.params == {"module": "xgboost", "package": "xgboost"}


def test_a_proof_tells_what_it_is_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(monkeypatch, Echo())
    assert [event.get("code", event["event"]) for event in events] == [
        "model_loading",
        "loaded",
        "smoke_test_running",
        "smoke_test_measuring",
        "passport",
    ]


def test_an_error_of_the_proof_itself_is_an_unexpected_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = events_of(monkeypatch, Breaks())[-1]
    assert (failed["event"], failed["code"]) == ("failed", "model_proof_failed")
    assert failed["evidence"] == "KeyError: 'y'"


class Hungry(Echo):
    """Says what onnxruntime says when there is no memory for a tensor."""

    def predict(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1600000000")


def test_a_lack_of_memory_is_no_fault_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = events_of(monkeypatch, Hungry())[-1]
    assert failed["code"] == "model_memory_exceeded"
    assert "1600000000" in failed["evidence"]
    answer, failure = guarded(lambda: Hungry().predict({}))
    assert answer is None
    assert isinstance(failure, ModelFailure)
    assert failure.code == "model_out_of_memory"


def test_bytes_for_a_model_of_text_have_to_be_text() -> None:
    runtime = OnnxRuntime()
    runtime._text_inputs = {"x"}
    with pytest.raises(BadInputError) as caught:
        runtime.predict({"x": np.array([b"\xff"], dtype=object)})
    assert (caught.value.code, caught.value.params) == ("bytes_not_utf8", {"name": "x"})
