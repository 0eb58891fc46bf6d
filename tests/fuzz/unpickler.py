"""The loading unpickler: a value or a failure with a name, and nothing outside is touched."""

from __future__ import annotations

import io
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz import harness

harness.instrument()

import joblib
import numpy  # noqa: ICN001
import numpy.ma
import numpy.random

from server.model_server.failures import ModelFailure
from server.model_server.unpickling import load_pickle
from tests.corpus.every import every_technique

_PICKLES = ("pickle: what it calls", "pickle: how it is written", "joblib")
_MEMORY = Path("/dev/shm")
_FILE = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)) / "m.pkl"
_LARGEST_SEED = 20_000
# Importing what a list names is allowed; the rest is what a pickle must never reach.
_NEVER = (
    *("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "shelve.", "sqlite3."),
    *("ftplib.", "smtplib.", "urllib.", "http.", "tempfile.", "glob.", "code.", "builtins.input"),
)
_WRITES = frozenset("wax+")
# The standard library's are imported by numpy's, late.
_IMPORTED = {"numpy", "sklearn", "scipy", "xgboost", "lightgbm", "joblib", "lz4"}
_IMPORTED |= sys.stdlib_module_names
_watching = False


class EscapeError(BaseException):
    """Something ran; no handler of the product may take it for a failure of the file."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    # Looking for a module is listing folders.
    if not _watching or event in {"os.listdir", "os.scandir"}:
        return
    if event.startswith(_NEVER):
        raise EscapeError(event, arguments)
    if event == "open" and isinstance(arguments[1], str) and _WRITES & set(arguments[1]):
        raise EscapeError(event, arguments)
    if event == "import" and str(arguments[0]).partition(".")[0] not in _IMPORTED:
        raise EscapeError(event, arguments)


def target(data: bytes) -> None:
    global _watching  # noqa: PLW0603 - an audit hook cannot be taken back
    _FILE.write_bytes(data)
    _watching = True
    try:
        load_pickle(str(_FILE))
    except ModelFailure as failure:
        assert failure.code
    except MemoryError:
        pass
    finally:
        _watching = False


def seeds() -> list[bytes]:
    values = [{"a": [1, 2.5, {3}], "b": ("c", None, True)}, numpy.eye(3), numpy.float32(1.5)]
    values += [numpy.array(["a", {"b": 1}], dtype=object), numpy.random.RandomState(0)]
    values += [numpy.ma.array([1, 2], mask=[0, 1]), numpy.dtype([("a", "<f4"), ("b", "O")])]
    made = [pickle.dumps(value, number) for value in values for number in range(6)]
    for compress in (0, ("zlib", 1), ("gzip", 1), ("bz2", 1), ("xz", 1), ("lz4", 1)):
        for value in values:
            target_file = io.BytesIO()
            joblib.dump(value, target_file, compress=compress)
            made.append(target_file.getvalue())
    harmful = [each.make("mark") for each in every_technique() if each.group in _PICKLES]
    # A bomb among them would take most of the time.
    return [
        content
        for content in [*made, *harmful]
        if len(content) < _LARGEST_SEED and content[:3] != b"BZh"
    ]


if __name__ == "__main__":
    sys.addaudithook(_watch)
    harness.fuzz(target, seeds)
