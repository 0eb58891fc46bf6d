"""Runs MLflow's models from code, by MLflow itself, which is in the model's environment.

What goes in was read from the signature in ``MLmodel`` by the inspection.
"""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from server.model_server.evidence import is_out_of_memory
from server.model_server.failures import BadInputError, ModelFailure, named_absence
from server.model_server.runtimes import code_import
from server.model_server.runtimes.arrays import (
    batched,
    datatype_of,
    decode_text,
    encode_text,
    numpy_dtype,
    plain,
)
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec, tensor_specs

logger = logging.getLogger(__name__)

OUTPUT = "predict"
"""Name of an answer that has none of its own."""

_DATE = "datetime"
_SOME_DATE = "2000-01-31T12:00:00"
_BEGINS_WITH_A_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_EXAMPLE = "serving_input_example.json"
_PACKAGES = (
    *("mlflow", "mlflow-skinny", "numpy", "pandas", "torch", "transformers", "tensorflow"),
    *("onnxruntime", "scikit-learn", "scipy", "xgboost", "xgboost-cpu", "lightgbm", "catboost"),
)
_CAUSES = 4


class MlflowRuntime(Runtime):
    """One model as ``mlflow.pyfunc`` loads it; it is asked by one thread at a time."""

    kind: ClassVar[str] = "mlflow"
    names_failures: ClassVar[bool] = True

    def __init__(self) -> None:
        self._folder = Path()
        self._model: Any = None
        self._form = ""
        self._inputs: List[Dict[str, Any]] = []
        self._names: List[str] = []
        self._proven: Dict[str, TensorSpec] = {}

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Let MLflow load the folder, which imports the code and makes its model.

        Raises:
            ModelFailure: ``mlflow_load_raised``, ``module_missing``.
        """
        del threads  # its libraries read OMP_NUM_THREADS
        # It would ask its makers' server what to tell them; there is no network here.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow.pyfunc

        declared = json.loads(Path(path).read_text(encoding="utf-8"))
        self._form, self._inputs = declared["form"], declared["inputs"]
        self._names = declared["outputs"]
        self._folder = Path(path).parent / "files"
        with _blamed("mlflow_load_raised", self._folder):
            self._model = mlflow.pyfunc.load_model(str(self._folder), suppress_warnings=True)
        return Loaded(
            signature=Signature(tensor_specs(self._inputs), ()),
            framework="mlflow",
            framework_version=str(mlflow.__version__),
            device="cuda" if device == "cuda" and code_import.uses_cuda() else "cpu",
            packages=_PACKAGES,
        )

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Ask the model, and make arrays of whatever it answers.

        Raises:
            BadInputError: ``tensor_shape`` for columns of unequal lengths, ``tensor_value`` for text
                that is no date.
            ModelFailure: ``mlflow_predict_raised``, ``mlflow_output_differs``, ``module_missing``.
        """
        given = self._given(inputs)
        with _blamed("mlflow_predict_raised", self._folder):
            answers = {name: plain(item) for name, item in self._named(self._model.predict(given))}
        for name, spec in self._proven.items():
            answers[name] = _as_proven(answers.get(name), spec)
        wanted = list(self._proven) or list(answers)
        return {name: answers[name] for name in wanted if outputs is None or name in outputs}

    def candidates(self) -> List[Dict[str, Any]]:
        """Return the example that was saved with the model, if it fits what it declares.

        Without one, dates have to be dates.
        """
        try:
            example = json.loads((self._folder / _EXAMPLE).read_text(encoding="utf-8"))
            return [{each["name"]: _example(each, example) for each in self._inputs}]
        except (OSError, ValueError, LookupError, TypeError, OverflowError):
            dated = any(each["type"] == _DATE for each in self._inputs)
            return [{each["name"]: _dated(each) for each in self._inputs}] if dated else []

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Say what came out: a signature of MLflow need not, and nothing holds the code to it."""
        specs = tuple(
            TensorSpec(name, datatype_of(array) or "BYTES", batched(array.shape))
            for name, array in outputs.items()
        )
        self._proven = {spec.name: spec for spec in specs}
        return Signature(tensor_specs(self._inputs), specs)

    def adopt(self, signature: Signature) -> None:
        """Hold answers to the outputs that were proven."""
        self._proven = {spec.name: spec for spec in signature.outputs}

    def _given(self, inputs: Mapping[str, Any]) -> Any:
        arrays = [_own(each, inputs[each["name"]]) for each in self._inputs]
        if self._form == "tensor":
            return arrays[0]
        names = [each["name"] for each in self._inputs]
        if self._form == "tensors":
            return dict(zip(names, arrays))
        rows = len(arrays[0])
        for name, array in zip(names, arrays):
            if len(array) != rows:
                raise BadInputError(
                    "tensor_shape", tensor=name, expected=f"[{rows}]", found=f"[{len(array)}]"
                )
        if self._form == "list":
            return arrays[0].tolist()
        import pandas as pd

        return pd.DataFrame(dict(zip(names, arrays)))

    def _named(self, answer: Any) -> Iterator[Tuple[str, Any]]:
        """Yield what an answer holds by name: columns, entries, or the answer itself."""
        if hasattr(answer, "columns") and hasattr(answer, "to_numpy"):
            columns = list(answer.columns)
            names = [str(name) for name in columns]
            if len(columns) == 1 and not isinstance(columns[0], str):
                names = [self._own_name()]
            for number, name in enumerate(names):
                yield name, answer.iloc[:, number].to_numpy()
        elif isinstance(answer, Mapping):
            for key, item in answer.items():
                yield str(key), _plain(item)
        else:
            yield self._own_name(), _plain(answer)

    def _own_name(self) -> str:
        return self._names[0] if len(self._names) == 1 else OUTPUT


@contextmanager
def _blamed(code: str, folder: Path) -> Iterator[None]:
    """Turn whatever the model's code raises into a failure that says what and where.

    Raises:
        ModelFailure: ``code``, or ``module_missing`` for an import that finds nothing.
        Exception: one that tells of a lack of memory, as it came.
    """
    try:
        yield
    except BaseException as error:
        cause = _cause(error)
        if isinstance(cause, Exception) and _is_out_of_memory(cause):
            raise
        logger.warning("the model's code raised", exc_info=True)
        absence = named_absence(cause)
        if absence is not None:
            raise absence from error
        raise ModelFailure(code, evidence=code_import.where(cause, folder)) from error


def _cause(error: BaseException) -> BaseException:
    """Return what the code raised: MLflow wraps it into an error of its own."""
    for _ in range(_CAUSES):
        if type(error).__name__ != "MlflowException" or error.__cause__ is None:
            break
        error = error.__cause__
    return error


def _is_out_of_memory(error: Exception) -> bool:
    try:
        return is_out_of_memory(error)
    except BaseException:  # noqa: BLE001 - its text is made by the model's code
        return False


def _own(declared: Mapping[str, Any], array: Any) -> Any:
    """Return an array that is the model's to change, with text as the signature calls it."""
    if declared["datatype"] != "BYTES":
        return array if array.flags.writeable else array.copy()
    if declared["type"] in {"binary", "bytes"}:
        return array
    return _dates(declared["name"], array) if declared["type"] == _DATE else decode_text(array)


def _dates(name: str, array: Any) -> Any:
    texts = decode_text(array)
    refusal = BadInputError(
        "tensor_value", tensor=name, datatype="BYTES", expected=_SOME_DATE, found="string"
    )
    if not all(map(_BEGINS_WITH_A_DATE.match, texts.ravel().tolist())):
        raise refusal
    try:
        wide = np.array(texts.tolist(), dtype="datetime64[us]")
    except (ValueError, OverflowError):
        raise refusal from None
    # Nanoseconds reach from 1677 to 2262 only, and numpy makes other dates of what is beyond.
    narrow = wide.astype("datetime64[ns]")
    if (narrow.astype(wide.dtype) != wide).any():
        raise refusal
    return narrow


def _dated(declared: Mapping[str, Any]) -> Any:
    if declared["type"] == _DATE:
        return np.full(1, _SOME_DATE.encode(), dtype=object)
    if declared["datatype"] == "BYTES":
        return np.full(1, b"0", dtype=object)
    return np.zeros(1, dtype=numpy_dtype(declared["datatype"]))


def _plain(item: Any) -> Any:
    """Take tensors off their device; everything else numpy reads."""
    return item.detach().cpu().numpy() if hasattr(item, "detach") else item


def _as_proven(array: Any, spec: TensorSpec) -> Any:
    """Give an answer the type that was proven, where that loses nothing.

    Raises:
        ModelFailure: ``mlflow_output_differs``.
    """
    found = None if array is None else datatype_of(array)
    if found == spec.datatype:
        return array
    if array is not None and found != "BYTES" and spec.datatype != "BYTES":
        converted = array.astype(numpy_dtype(spec.datatype))
        if converted.dtype.kind == array.dtype.kind == "f" or np.array_equal(converted, array):
            return converted
    raise ModelFailure(
        "mlflow_output_differs", name=spec.name, expected=spec.datatype, found=found or "—"
    )


def _example(declared: Mapping[str, Any], example: Mapping[str, Any]) -> Any:
    """Read one input from the example that MLflow's own server would be sent.

    Raises:
        LookupError, TypeError, ValueError: it is not in there, or something else.
    """
    if "dataframe_split" in example:
        table = example["dataframe_split"]
        names = [str(name) for name in table["columns"]]
        column = names.index(declared["name"]) if declared["name"] in names else names.index("0")
        values = [row[column] for row in table["data"]]
    else:
        inputs = example["inputs"]
        values = inputs[declared["name"]] if isinstance(inputs, dict) else inputs
    array = np.array(values, dtype=numpy_dtype(declared["datatype"]))
    if len(array.shape) != len(declared["shape"]):
        raise ValueError(declared["name"])
    return encode_text(array) if declared["datatype"] == "BYTES" else array
