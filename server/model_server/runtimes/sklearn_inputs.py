"""Finds out what a fitted scikit-learn estimator wants to be given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from server.model_server.failures import ModelFailure
from server.model_server.runtimes.arrays import encode_text

_TEXT = "text"
_MANY = 20_000
_FAMILY = ("sklearn", "xgboost", "lightgbm")


@dataclass(frozen=True)
class Layout:
    """The one input: its type and shape, and rows that the model should know."""

    datatype: str
    shape: Tuple[int, ...]
    rows: List[Any] = field(default_factory=list)
    needs_frame: bool = False
    columns: Optional[List[str]] = None


def layout(model: Any) -> Layout:
    """Read the input's layout off the estimator.

    Raises:
        ModelFailure: ``sklearn_input_unsupported`` for dictionaries and images,
            ``signature_unknown`` where the number of features is not kept.
    """
    width = _width(model)
    if width is None:
        return _without_width(model)
    cells: Dict[int, Any] = {}
    for column, value in _known_cells(model, range(width)):
        cells.setdefault(column, value)
    text = any(isinstance(value, str) for value in cells.values())
    return Layout(
        datatype="BYTES" if text else "FP64",
        shape=(-1, width),
        rows=[_row(cells, width, text)] if cells else [],
        needs_frame=_needs_frame(model),
        columns=_column_names(model),
    )


def _width(model: Any) -> Optional[int]:
    width = getattr(model, "n_features_in_", None)
    if width is None and hasattr(model, "X_thresholds_"):
        return 1
    return int(width) if isinstance(width, (int, np.integer)) else None


def _without_width(model: Any) -> Layout:
    readers = list(_readers(model))
    if readers and all(_reads_text(reader) for reader in readers):
        return Layout("BYTES", (-1,), [encode_text(np.array([_TEXT], dtype=object))])
    names = ", ".join(sorted({type(reader).__name__ for reader in readers}))[:100]
    if any(_wants_other_things(reader) for reader in readers):
        raise ModelFailure("sklearn_input_unsupported", name=names)
    raise ModelFailure("signature_unknown", inputs="input")


def _wants_other_things(reader: Any) -> bool:
    kind = type(reader).__name__
    return kind in ("DictVectorizer", "FeatureHasher", "MultiLabelBinarizer", "PatchExtractor")


def _reads_text(step: Any) -> bool:
    return hasattr(step, "analyzer") and hasattr(step, "ngram_range")


def _inner(step: Any) -> List[Any]:
    """Estimators that are handed the very input of this one."""
    if hasattr(step, "steps"):
        real = [inner for _, inner in step.steps if inner not in (None, "passthrough")]
        return real[:1]
    if hasattr(step, "transformer_list"):
        return [inner for _, inner in step.transformer_list if not isinstance(inner, str)]
    for name in ("best_estimator_", "estimator_", "transformer_"):
        if hasattr(step, name):
            return [getattr(step, name)]
    for calibrated in getattr(step, "calibrated_classifiers_", ())[:1]:
        return [calibrated.estimator]
    several = getattr(step, "estimators_", None)
    if isinstance(several, list) and several:
        return several[:1]
    return []


def _readers(step: Any) -> Iterator[Any]:
    inner = _inner(step)
    if not inner:
        yield step
    for one in inner:
        yield from _readers(one)


def _selected(step: Any) -> Iterator[Tuple[Any, List[int]]]:
    """Parts of a ColumnTransformer with the numbers of their columns."""
    indices = getattr(step, "_transformer_to_input_indices", {})
    for name, inner, _ in getattr(step, "transformers_", ()):
        if not isinstance(inner, str):
            yield inner, [int(number) for number in indices.get(name, ())]


def _known_cells(step: Any, columns: Any) -> Iterator[Tuple[int, Any]]:
    """Values that the encoders have seen, by number of the input's column."""
    columns = list(columns)
    for reader in _readers(step):
        if hasattr(reader, "transformers_"):
            for inner, chosen in _selected(reader):
                yield from _known_cells(inner, [columns[n] for n in chosen if n < len(columns)])
        elif _reads_text(reader):
            yield from ((column, _TEXT) for column in columns)
        elif isinstance(getattr(reader, "categories_", None), list):
            for column, values in zip(columns, reader.categories_):
                if len(values):
                    yield column, _value(values[0])
        elif getattr(getattr(reader, "statistics_", None), "dtype", None) == np.dtype(object):
            yield from zip(columns, (_value(value) for value in reader.statistics_))


def _value(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float, np.number, np.bool_)) else str(value)


def _row(cells: Dict[int, Any], width: int, text: bool) -> Any:
    values = [cells.get(column, 0) for column in range(width)]
    if text:
        return encode_text(np.array([values], dtype=object))
    return np.array([values], dtype=np.float64)


def _column_transformers(step: Any) -> Iterator[Any]:
    for reader in _readers(step):
        if hasattr(reader, "transformers_"):
            yield reader
            for inner, _ in _selected(reader):
                yield from _column_transformers(inner)


def _needs_frame(model: Any) -> bool:
    """Columns that were chosen by name can only be chosen in a data frame."""
    for step in _column_transformers(model):
        for _, inner, chosen in step.transformers_:
            if isinstance(inner, str) and inner == "drop":
                continue
            if any(
                isinstance(name, str) for name in np.atleast_1d(np.asarray(chosen, dtype=object))
            ):
                return True
    return False


def _column_names(model: Any) -> Optional[List[str]]:
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]


def tame(model: Any) -> None:
    """Set ``n_jobs`` to 1 wherever it stands, and refuse vectorizers that open files.

    Other values of ``n_jobs`` start threads or processes for every prediction; several requests
    run side by side instead.

    Raises:
        ModelFailure: ``sklearn_reads_files`` if a caller's text would be taken for a file's name.
    """
    seen = set()
    waiting = [model]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if type(item).__module__.split(".")[0] in _FAMILY and hasattr(item, "__dict__"):
            if "n_jobs" in vars(item):
                item.n_jobs = 1
            if vars(item).get("_Booster") is not None and hasattr(item, "get_booster"):
                # XGBoost keeps the number that it was fitted with.
                item.get_booster().set_param({"nthread": 1})
            if _reads_text(item) and getattr(item, "input", "content") != "content":
                raise ModelFailure("sklearn_reads_files", name=type(item).__name__)
            waiting.extend(vars(item).values())
        else:
            waiting.extend(_members(item))


def _members(item: Any) -> List[Any]:
    """List what a container holds; a vocabulary of a million words holds no estimator."""
    if isinstance(item, np.ndarray):
        item = item.ravel().tolist() if item.dtype == object and item.size < _MANY else ()
    if isinstance(item, dict):
        item = list(item.values())
    return list(item) if isinstance(item, (list, tuple)) and len(item) < _MANY else []
