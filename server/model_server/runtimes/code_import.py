"""Imports a bundle's ``model.py``, and says of whatever it raises where that was."""

from __future__ import annotations

import importlib.util
import logging
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from server.model_server.evidence import is_out_of_memory
from server.model_server.failures import ModelFailure
from server.scrubbing import scrubbed

logger = logging.getLogger(__name__)

CODE = "model.py"
CLASS = "Model"
METHODS = ("load", "predict")
_NAME = "model"
_MAPS = Path("/proc/self/maps")
_DRIVER = b"libcuda.so"


def model_class(folder: Path) -> Any:
    """Import ``model.py`` of a folder and return its class; other files can be imported by it.

    Raises:
        ModelFailure: ``bundle_code_invalid``, ``bundle_module_missing``,
            ``bundle_import_raised``, ``bundle_class_missing`` or ``bundle_method_missing``.
    """
    spec = importlib.util.spec_from_file_location(_NAME, folder / CODE)
    assert spec is not None  # noqa: S101 - for a .py file there is one
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    # As for a program: what lies beside it comes first.
    sys.path.insert(0, str(folder))
    sys.modules[_NAME] = module
    try:
        with blamed("bundle_import_raised", folder):
            spec.loader.exec_module(module)
    except ModelFailure as failure:
        raise _sharper(failure, folder) from failure.__cause__
    found = getattr(module, CLASS, None)
    if not isinstance(found, type):
        raise ModelFailure("bundle_class_missing", name=CLASS)
    for method in METHODS:
        if not callable(getattr(found, method, None)):
            raise ModelFailure("bundle_method_missing", name=CLASS, method=method)
    return found


def _sharper(failure: ModelFailure, folder: Path) -> ModelFailure:
    cause = failure.__cause__
    if isinstance(cause, SyntaxError):
        file = _inside(cause.filename or "", folder) or CODE
        said = scrubbed(f"{type(cause).__name__}: {cause.msg} ({file}, line {cause.lineno})")
        return ModelFailure("bundle_code_invalid", evidence=said)
    return failure


@contextmanager
def blamed(code: str, folder: Path) -> Iterator[None]:
    """Turn whatever the bundle's code raises into a failure that says what and where.

    Raises:
        ModelFailure: ``code``, or ``bundle_module_missing`` for an import that finds nothing, which
            many a ``load`` makes; the evidence is the exception with its file and line.
        Exception: one that tells of a lack of memory, as it came.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) and _is_out_of_memory(error):
            raise
        logger.warning("the bundle's code raised", exc_info=True)
        evidence = where(error, folder)
        if isinstance(error, ModuleNotFoundError) and error.name:
            name = scrubbed(error.name)[:100]
            raise ModelFailure("bundle_module_missing", evidence=evidence, name=name) from error
        raise ModelFailure(code, evidence=evidence) from error


def _is_out_of_memory(error: Exception) -> bool:
    try:
        return is_out_of_memory(error)
    except BaseException:  # noqa: BLE001 - its text is made by the bundle's code
        return False


def where(error: BaseException, folder: Path) -> str:
    """Return an exception in one line, with the last place in the bundle's own files."""
    said = ": ".join(filter(None, (type(error).__name__, _text(error))))
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = _inside(frame.filename, folder)
        if file:
            place = f" ({file}, line {frame.lineno})"
    # Paths go, and the place stays whole, however long the rest is.
    return scrubbed(scrubbed(said)[: 290 - len(place)] + place)


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except BaseException:  # noqa: BLE001 - it is made by the bundle's code, which may do anything
        return ""


def _inside(filename: str, folder: Path) -> str:
    try:
        return Path(filename).relative_to(folder).as_posix()
    except ValueError:
        return ""


def uses_cuda() -> bool:
    """Tell whether something in this process has opened the GPU's driver.

    What the model's libraries do with a GPU is theirs; one that was never touched is not used.
    """
    try:
        return _DRIVER in _MAPS.read_bytes()
    except OSError:
        return True
