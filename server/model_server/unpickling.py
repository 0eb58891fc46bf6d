"""Loads pickles and joblib files of scikit-learn models, and nothing else that a pickle can do.

Every global that a pickle names is looked up here: names of an exact list, numpy's ufuncs and
scalar types, and classes of ``sklearn`` of a few known bases. Never a package as a whole: a
package's functions read and write files. The list stops payloads that call things; it cannot
make numpy safe against forged array headers, so loading still belongs into the sandbox.
"""

from __future__ import annotations

import bz2
import gzip
import inspect
import io
import lzma
import pickle
import warnings
import zlib
from pathlib import Path
from typing import IO, Any, Callable, List, Optional, Tuple

from server.model_server.allowed_globals import AllowedGlobals
from server.model_server.evidence import one_line, scrub
from server.model_server.failures import ModelFailure

_CHUNK = 1 << 18


class _JoblibFileError(Exception):
    """The pickle has joblib's arrays between its opcodes; it needs joblib's own reader."""


class _ZlibReader(io.RawIOBase):
    """Inflates one zlib stream; the standard library reads only gzip, bz2 and lzma as files."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._inflate.eof:
            raw = self._inflate.unconsumed_tail or self._source.read(_CHUNK)
            data = self._inflate.decompress(raw, len(buffer))
            if not raw and not data and not self._inflate.eof:
                raise EOFError("the compressed stream ends early")
        buffer[: len(data)] = data
        return len(data)


def _opened(source: IO[bytes]) -> Any:
    """Undo joblib's compression, told by the first bytes."""
    head = source.read(6)
    source.seek(0)
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=source)
    if head[:3] == b"BZh":
        return bz2.BZ2File(source)
    if head[:6] == b"\xfd7zXZ\x00" or head[:3] == b"\x5d\x00\x00":
        return lzma.LZMAFile(source)
    if head[:1] == b"\x78":
        return io.BufferedReader(_ZlibReader(source), _CHUNK)
    if head[:4] == b"\x04\x22\x4d\x18":
        raise ModelFailure("pickle_compression_unsupported", compression="lz4")
    return source


class _PlainUnpickler(pickle.Unpickler):
    """The fast reader, for files without joblib's arrays."""

    def __init__(self, source: IO[bytes], allowed: AllowedGlobals) -> None:
        super().__init__(source)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if module == "joblib.numpy_pickle":
            raise _JoblibFileError
        return self._allowed.find(module, name)


def _joblib_load(source: IO[bytes], allowed: AllowedGlobals) -> Any:
    from joblib import numpy_pickle

    # An argument about the byte order came with joblib 1.5, both here and below.
    newer = "ensure_native_byte_order" in inspect.signature(numpy_pickle.NumpyUnpickler).parameters
    byte_order: Tuple[Any, ...] = (True,) if newer else ()

    class Reader(numpy_pickle.NumpyUnpickler):  # type: ignore[misc]
        """joblib's reader over the same list of names."""

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
                return Wrapper
            return allowed.find(module, name)

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
        source = _opened(file)
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
    """
    allowed = AllowedGlobals()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = _load_either(path, allowed)
        except (ModelFailure, MemoryError):
            raise
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ModelFailure("pickle_truncated", evidence=one_line(error)) from error
        except Exception as error:
            raise _not_loadable(error, _made_with(caught)) from error
    return value, _made_with(caught)


def _not_loadable(error: Exception, made_with: Optional[str]) -> ModelFailure:
    if isinstance(error, pickle.UnpicklingError) and "truncated" in str(error):
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
            return scrub(str(version))[:32]
    return None
