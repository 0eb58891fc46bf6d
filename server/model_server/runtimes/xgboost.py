"""Runs models in XGBoost's own file formats."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Dict, Mapping, Optional, Sequence

import numpy as np

from server.model_server.runtimes.arrays import batched, datatype_of
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec

INPUT = "input"
OUTPUT = "predict"


class XgboostRuntime(Runtime):
    """One booster; its answer is what ``Booster.predict`` gives, in the objective's own scale."""

    kind: ClassVar[str] = "xgboost"
    is_bounded = True

    def __init__(self) -> None:
        self._booster: Any = None
        self._threads = 1
        self._input = TensorSpec(INPUT, "FP32", None)

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Read the booster and put it onto its device."""
        import xgboost

        booster = xgboost.Booster()
        with open(path, "rb") as file:  # noqa: PTH123 - the booster's reader trusts names
            booster.load_model(bytearray(file.read()))
        booster.set_param({"device": device, "nthread": threads})
        self._booster = booster
        self._threads = threads
        self._input = TensorSpec(INPUT, "FP32", (-1, booster.num_features()))
        return Loaded(
            signature=Signature((self._input,), (TensorSpec(OUTPUT, "FP32", None),)),
            framework="xgboost",
            framework_version=str(xgboost.__version__),
            device="cuda" if _device(booster).startswith("cuda") else "cpu",
            packages=("xgboost", "xgboost-cpu", "numpy", "scipy"),
        )

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Answer one array of rows; NaN is a missing value."""
        del outputs
        import xgboost

        rows = xgboost.DMatrix(
            inputs[INPUT],
            nthread=self._threads,
            feature_names=self._booster.feature_names,
            feature_types=self._booster.feature_types,
        )
        return {OUTPUT: np.asarray(self._booster.predict(rows))}

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Take the width of the answer from a first one."""
        answer = outputs[OUTPUT]
        spec = TensorSpec(OUTPUT, datatype_of(answer) or "FP32", batched(answer.shape))
        return Signature((self._input,), (spec,))


def _device(booster: Any) -> str:
    said = json.loads(booster.save_config())
    return str(said.get("learner", {}).get("generic_param", {}).get("device", "cpu"))
