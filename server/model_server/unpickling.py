"""Loads pickles and joblib files of scikit-learn models, and nothing else that a pickle can do.

Every global that a pickle names is looked up here: names of an exact list, numpy's ufuncs and
scalar types, and classes of ``sklearn`` of a few known bases. Never a package as a whole: a
package's functions read and write files. The list stops payloads that call things, and what numpy
is given is looked at; compiled code of other packages trusts its state, so loading still belongs
into the sandbox.
"""

from __future__ import annotations

import inspect
import pickle
import re
import warnings
from pathlib import Path
from typing import IO, Any, Callable, ClassVar, Dict, List, Optional, Tuple

from server.model_server.allowed_globals import AllowedGlobals
from server.model_server.array_states import check_state
from server.model_server.compressed import ERRORS, opened
from server.model_server.evidence import one_line
from server.model_server.failures import ModelFailure
from server.scrubbing import scrubbed

_InPython: Any = pickle._Unpickler


# What the unpickler says inside of a frame, and outside of one.
_CUT_OFF = re.compile("truncated|exhausted")


class _JoblibFileError(Exception):
    """The pickle has joblib's arrays between its opcodes; it needs joblib's own reader."""


class _PlainUnpickler(_InPython):  # type: ignore[misc]
    """The reader of files without joblib's arrays.

    It is the one written in Python, like joblib's: the other gives objects their state without
    asking, and numpy's take it without looking.
    """

    dispatch: ClassVar[Dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, source: IO[bytes], allowed: AllowedGlobals) -> None:
        super().__init__(source)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if module == "joblib.numpy_pickle":
            raise _JoblibFileError
        return self._allowed.find(module, name)

    def load_build(self) -> None:
        check_state(self.stack[-2], self.stack[-1])
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _joblib_load(source: IO[bytes], allowed: AllowedGlobals) -> Any:
    from joblib import numpy_pickle

    # An argument about the byte order came with joblib 1.5, both here and below.
    newer = "ensure_native_byte_order" in inspect.signature(numpy_pickle.NumpyUnpickler).parameters
    byte_order: Tuple[Any, ...] = (True,) if newer else ()

    class Reader(numpy_pickle.NumpyUnpickler):  # type: ignore[misc]
        """joblib's reader over the same list of names."""

        dispatch: ClassVar[Dict[int, Any]] = dict(numpy_pickle.NumpyUnpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
                return Wrapper
            return allowed.find(module, name)

        def load_build(self) -> None:
            check_state(self.stack[-2], self.stack[-1])
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

    class Wrapper(numpy_pickle.NumpyArrayWrapper):  # type: ignore[misc]
        """An array between the opcodes; never mapped from the file.

        An array of objects is a pickle of its own. Older joblib hands it to plain
        ``pickle.load``, so it is read here, through the same list.
        """

        def read(self, unpickler: Any, *_: Any) -> Any:
            if self.dtype.hasobject:
                return Reader("", unpickler.file_handle, *byte_order).load()
            return self.read_array(unpickler, *byte_order)

    return Reader("", source, *byte_order).load()


def _read(path: str, load: Callable[[IO[bytes]], Any]) -> Any:
    with Path(path).open("rb") as file:
        source = opened(file)
        value = load(source)
        if source.read(1):
            raise ModelFailure("pickle_trailing_bytes")
    return value


def _load_either(path: str, allowed: AllowedGlobals) -> Any:
    try:
        return _read(path, lambda source: _PlainUnpickler(source, allowed).load())
    except _JoblibFileError:
        return _read(path, lambda source: _joblib_load(source, allowed))


def load_pickle(path: str) -> Tuple[Any, Optional[str]]:
    """Load one pickle or joblib file, compressed or not.

    Returns the object, and the version of scikit-learn that made it where that differs from
    the running one.

    Raises:
        ModelFailure: ``unsafe_pickle`` for a name off the list; ``pickle_trailing_bytes``,
            ``pickle_truncated``, ``pickle_compression_unsupported``, ``sklearn_name_missing``,
            ``sklearn_version_mismatch``, ``pickle_not_loadable``.
        MemoryError: the file asks for more than there is.
    """
    allowed = AllowedGlobals()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = _load_either(path, allowed)
        except (ModelFailure, MemoryError):
            raise
        except ERRORS as error:
            raise ModelFailure("pickle_truncated", evidence=one_line(error)) from error
        except Exception as error:
            raise _not_loadable(error, _made_with(caught)) from error
    return value, _made_with(caught)


def _not_loadable(error: Exception, made_with: Optional[str]) -> ModelFailure:
    if isinstance(error, pickle.UnpicklingError) and _CUT_OFF.search(str(error)):
        return ModelFailure("pickle_truncated", evidence=one_line(error))
    if made_with is not None:
        return ModelFailure(
            "sklearn_version_mismatch", evidence=one_line(error), made_with=made_with
        )
    return ModelFailure("pickle_not_loadable", evidence=one_line(error))


def _made_with(caught: List[warnings.WarningMessage]) -> Optional[str]:
    """Version in scikit-learn's own warning about a model made by another version."""
    for warning in caught:
        version = getattr(warning.message, "original_sklearn_version", None)
        if version is not None:
            return scrubbed(str(version))[:32]
    return None
