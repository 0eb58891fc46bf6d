"""Runs scikit-learn estimators."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from server.model_server.evidence import one_line
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes import sklearn_inputs
from server.model_server.runtimes.arrays import (
    batched,
    datatype_of,
    decode_text,
    plain,
)
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec
from server.model_server.unpickling import load_pickle

logger = logging.getLogger(__name__)

INPUT = "input"
"""Name of the one input."""

_PACKAGES = (
    *("scikit-learn", "numpy", "scipy", "joblib", "pandas"),
    *("lightgbm", "xgboost", "xgboost-cpu"),
)


class SklearnRuntime(Runtime):
    """One fitted estimator: ``predict`` and ``predict_proba``, or ``transform``."""

    kind: ClassVar[str] = "sklearn"
    is_bounded = True

    def __init__(self) -> None:
        self._model: Any = None
        self._input = TensorSpec(INPUT, "FP64", None)
        self._methods: Tuple[str, ...] = ()
        self._columns: Optional[List[str]] = None
        self._rows: List[Any] = []
        self._limit: Any = None

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        """Read the estimator through the allow list; scikit-learn knows no GPU."""
        del device
        import sklearn
        from sklearn.base import BaseEstimator
        from threadpoolctl import threadpool_limits

        self._limit = threadpool_limits(limits=threads)
        model, made_with = self._read(path)
        if not isinstance(model, BaseEstimator):
            raise ModelFailure("not_an_estimator", found=type(model).__name__[:100])
        _check_fitted(model)
        sklearn_inputs.tame(model)
        self._model = model
        self._methods = _methods(model)
        self._read_inputs(model)
        warnings: Tuple[Dict[str, Any], ...] = ()
        if made_with is not None:
            params = {"made_with": made_with, "running": str(sklearn.__version__)}
            warnings = ({"code": "sklearn_version_differs", "params": params},)
        return Loaded(
            signature=Signature((self._input,), self._outputs()),
            framework="scikit-learn",
            framework_version=str(sklearn.__version__),
            device="cpu",
            packages=_PACKAGES,
            warnings=warnings,
        )

    def _read(self, path: str) -> Tuple[Any, Optional[str]]:
        """Return the object of the file, and which scikit-learn made it if not the running one."""
        return load_pickle(path)

    def _read_inputs(self, model: Any) -> None:
        layout = sklearn_inputs.layout(model)
        self._input = TensorSpec(INPUT, layout.datatype, layout.shape)
        self._rows = layout.rows
        if layout.needs_frame:
            try:
                import pandas as pd  # noqa: F401 - only whether it is there
            except ImportError:
                raise ModelFailure("sklearn_needs_dataframe") from None
            self._columns = layout.columns

    def _outputs(self) -> Tuple[TensorSpec, ...]:
        """Say what can be said before the first answer."""
        specs = []
        for method in self._methods:
            if method == "predict":
                specs.append(_predict_spec(self._model))
            elif method == "predict_proba":
                specs += _proba_specs(self._model)
            else:
                specs.append(TensorSpec(method, "FP64", (-1, -1)))
        return tuple(specs)

    def predict(
        self, inputs: Mapping[str, Any], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Any]:
        """Call the estimator's methods on one array of rows."""
        rows = self._arranged(inputs[INPUT])
        answers: Dict[str, Any] = {}
        for method in self._methods:
            if outputs is None or any(_belongs(name, method) for name in outputs):
                answers.update(_named(method, getattr(self._model, method)(rows)))
        if outputs is None:
            return answers
        return {name: answers[name] for name in outputs if name in answers}

    def _arranged(self, rows: Any) -> Any:
        if rows.dtype.kind == "O":
            try:
                rows = decode_text(rows)
            except UnicodeDecodeError:
                raise BadInputError("bytes_not_utf8", name=INPUT) from None
        elif rows.dtype.name in ("float16", "bool"):
            rows = rows.astype(np.float64)
        if self._columns is None:
            return rows
        import pandas as pd

        return pd.DataFrame(rows, columns=self._columns)

    def candidates(self) -> List[Dict[str, Any]]:
        """Rows that are known to the model's encoders, or text for its vectorizers."""
        return [{INPUT: row} for row in self._rows]

    def describe(self, outputs: Mapping[str, Any]) -> Optional[Signature]:
        """Take types and widths from a first answer."""
        specs = tuple(
            TensorSpec(name, datatype_of(array) or "BYTES", batched(array.shape))
            for name, array in outputs.items()
        )
        return Signature((self._input,), specs)


def _check_fitted(model: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    checked = _that_can_tell(model)
    if isinstance(checked, str):
        return
    try:
        check_is_fitted(checked)
    except NotFittedError as error:
        raise ModelFailure(
            "sklearn_not_fitted", name=type(model).__name__[:100], evidence=one_line(error)
        ) from error
    except TypeError:
        # Says that it is no estimator with a fit method; the missing predict says more.
        return


def _that_can_tell(model: Any) -> Any:
    """Return what knows whether a model is fitted: before scikit-learn 1.0 no pipeline did.

    It may be a word that stands for no step.
    """
    while hasattr(model, "steps") and not hasattr(model, "__sklearn_is_fitted__"):
        model = model.steps[-1][1]
    return "passthrough" if model is None else model


def _methods(model: Any) -> Tuple[str, ...]:
    """Methods that become outputs; an attribute may be there and still refuse to be used."""
    if callable(getattr(model, "predict", None)):
        proba = callable(getattr(model, "predict_proba", None)) and _gives_probabilities(model)
        return ("predict", "predict_proba") if proba else ("predict",)
    if callable(getattr(model, "transform", None)):
        return ("transform",)
    raise ModelFailure("sklearn_no_predict", name=type(model).__name__[:100])


def _gives_probabilities(model: Any) -> bool:
    """Tell whether an SVC that has the method was fitted for it; its setting can change later."""
    last = model
    while hasattr(last, "steps") and last.steps:
        last = last.steps[-1][1]
    fitted = getattr(last, "_probA", None)
    return fitted is None or getattr(fitted, "size", 1) > 0


def _label_type(classes: Any) -> str:
    return datatype_of(plain(np.asarray(classes))) or "BYTES"


def _class_lists(model: Any) -> List[Any]:
    """Classes of each output; one list for a plain classifier, none for a regressor."""
    classes = getattr(model, "classes_", None)
    if classes is None:
        return []
    return list(classes) if isinstance(classes, list) else [classes]


def _predict_spec(model: Any) -> TensorSpec:
    """Say the type only: whether there is one answer per row or several, the first answer says."""
    from sklearn.base import is_classifier

    lists = _class_lists(model)
    if is_classifier(model) and lists:
        return TensorSpec("predict", _label_type(lists[0]), None)
    counted = hasattr(model, "labels_") or hasattr(model, "offset_")
    return TensorSpec("predict", "INT64" if counted else "FP64", None)


def _proba_specs(model: Any) -> List[TensorSpec]:
    """Say nothing about a model with several outputs: some answer a list, others an array."""
    lists = _class_lists(model)
    if len(lists) != 1:
        return []
    return [TensorSpec("predict_proba", "FP64", (-1, len(lists[0])))]


def _belongs(name: str, method: str) -> bool:
    return name == method or (name.startswith(f"{method}_") and name[len(method) + 1 :].isdigit())


def _named(method: str, answer: Any) -> Dict[str, Any]:
    """Name what a method answers; one name per output of a model with several."""
    if isinstance(answer, (list, tuple)) and answer and hasattr(answer[0], "shape"):
        return {f"{method}_{number}": plain(_dense(item)) for number, item in enumerate(answer)}
    return {method: plain(_dense(answer))}


def _dense(answer: Any) -> Any:
    return answer.toarray() if hasattr(answer, "toarray") else answer
