"""Runs models in LightGBM's own text format."""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Mapping, Optional, Sequence

import numpy as np

from server.model_server.runtimes.arrays import batched, datatype_of
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec

INPUT = "input"
OUTPUT = "predict"


class LightgbmRuntime(Runtime):
    """One booster; its answer is what ``Booster.predict`` gives, in the objective's own scale."""

    kind: ClassVar[str] = "lightgbm"
    is_bounded = True

    def __init__(self) -> None:
        self._booster: Any = None
        self._threads = 1
        self._input = TensorSpec(INPUT, "FP64", None)

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Read the booster; its predictions run on the CPU, whatever trained it."""
        del device
        import lightgbm

        self._booster = lightgbm.Booster(model_file=path)
        self._threads = threads
        self._input = TensorSpec(INPUT, "FP64", (-1, self._booster.num_feature()))
        return Loaded(
            signature=Signature((self._input,), (TensorSpec(OUTPUT, "FP64", None),)),
            framework="lightgbm",
            framework_version=str(lightgbm.__version__),
            device="cpu",
            packages=("lightgbm", "numpy", "scipy"),
        )

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Answer one array of rows; NaN is a missing value."""
        del outputs
        answer = self._booster.predict(inputs[INPUT], num_threads=self._threads)
        return {OUTPUT: np.asarray(answer)}

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Take the width of the answer from a first one."""
        answer = outputs[OUTPUT]
        spec = TensorSpec(OUTPUT, datatype_of(answer) or "FP64", batched(answer.shape))
        return Signature((self._input,), (spec,))
