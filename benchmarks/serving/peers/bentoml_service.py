"""BentoML's service: an array in, an array out."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np  # noqa: TC002 - BentoML looks at the annotations
from oip_session import RowsModel


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Model:
    def __init__(self) -> None:
        self.model: Any = RowsModel(os.environ["MODEL_PATH"])

    @bentoml.api
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.model(inputs)  # type: ignore[no-any-return]
