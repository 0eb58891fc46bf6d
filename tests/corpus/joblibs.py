"""Harm inside joblib's files: behind compressions, and in the arrays between the opcodes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import zlib
from typing import TYPE_CHECKING, Any

from lz4 import frame

from tests.corpus.opcodes import PROTOCOL, STOP, Raw, call, in_model, model, name, pickle_of, value
from tests.corpus.technique import INSPECTION, LOADER, Technique

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[str], bytes]

_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "lz4": frame.compress,
}
_OBJECTS, _BYTES = "O8", "u1"


def _harm(mark: str) -> bytes:
    return pickle_of(call("os:mkdir", mark))


def _quiet_harm(mark: str) -> bytes:
    """Harm that picklescan does not know."""
    return pickle_of(call("io:open", mark, "w"))


def _array(body: bytes, *, kind: str = _OBJECTS, shape: Any = (1,), **state: Any) -> Raw:
    """Push one of joblib's arrays; its bytes follow the opcode that gives it its state."""
    dtype = Raw(
        call("numpy:dtype", kind, False, True)
        + value((3, "|", None, None, None, -1, -1, 63 if kind == _OBJECTS else 0))
        + b"b"
    )
    fields = {
        "subclass": name("numpy:ndarray"),
        "shape": shape,
        "order": "C",
        "dtype": dtype,
        "allow_mmap": kind != _OBJECTS,
        "numpy_array_alignment_bytes": None,
        **state,
    }
    wrapper = name("joblib.numpy_pickle:NumpyArrayWrapper")
    return Raw(wrapper + b")\x81" + value(fields) + b"b" + body)


def _in_array(inner: Callable[[str], bytes]) -> Make:
    return lambda mark: in_model(_array(inner(mark)))


def _deeper(mark: str) -> bytes:
    return in_model(_array(pickle_of(_array(pickle_of(_array(_harm(mark)))))))


def _behind_numbers(mark: str) -> bytes:
    """Bytes of an array that look like the end of the pickle, before a harmful one."""
    return in_model(Raw(value([_array(b"." * 64, kind=_BYTES, shape=(64,)), _array(_harm(mark))])))


def _packed(compress: Callable[[bytes], bytes], inner: Make) -> Make:
    return lambda mark: compress(inner(mark))


def _subclass(mark: str) -> bytes:
    foreign = name("pathlib:Path")
    return in_model(_array(b"\x00", kind=_BYTES, subclass=foreign)) + mark.encode()[:0]


def _shape(*axes: int) -> Make:
    return lambda _: in_model(_array(b"", kind=_BYTES, shape=axes))


def _old_wrapper(_: str) -> bytes:
    """Joblib before 0.10 kept arrays in other files, by name."""
    state = {"filename": "/etc/hostname", "subclass": name("numpy:ndarray"), "allow_mmap": True}
    wrapper = name("joblib.numpy_pickle_compat:NDArrayWrapper")
    return in_model(Raw(wrapper + b")\x81" + value(state) + b"b"))


def _old_zipped(_: str) -> bytes:
    """The same, compressed: its reader unpickles what the other file says."""
    state = {"filename": "/etc/hostname", "init_args": (), "state": None}
    wrapper = name("joblib.numpy_pickle_compat:ZNDArrayWrapper")
    return in_model(Raw(wrapper + b")\x81" + value(state) + b"b"))


def _behind_stream(mark: str) -> bytes:
    return zlib.compress(pickle_of(model())) + _harm(mark)


def _two_streams(mark: str) -> bytes:
    return gzip.compress(pickle_of(model())) + gzip.compress(_harm(mark))


def _bomb(_: str) -> bytes:
    size = 64 * 1024**2
    head = PROTOCOL + b"\x8e" + size.to_bytes(8, "little")
    return bz2.compress(head + bytes(size) + b"0" + model() + STOP)


def _cut(mark: str) -> bytes:
    packed = zlib.compress(_harm(mark) + pickle.dumps(list(range(5000))))
    return packed[: len(packed) // 2]


def _method(mark: str) -> bytes:
    """An outdated ``.Z`` in joblib's place."""
    return b"ZF0x1   " + zlib.compress(_harm(mark))


def techniques() -> list[Technique]:
    group = "joblib"

    def inspected(
        title: str, make: Make, code: str, alone: str, *, runs: bool = False
    ) -> Technique:
        return Technique(
            group=group,
            name=title,
            make=make,
            code=code,
            stopped_by=INSPECTION,
            unpickler=alone,
            runs=runs,
        )

    def loaded(title: str, make: Make, code: str, *, runs: bool = False) -> Technique:
        return Technique(
            group=group,
            name=title,
            make=make,
            code=code,
            stopped_by=LOADER,
            unpickler=code,
            runs=runs,
        )

    harm, quiet = _in_array(_harm), _in_array(_quiet_harm)
    return [
        *(
            inspected(
                f"packed by {kind}",
                _packed(pack, lambda mark: in_model(call("os:mkdir", mark))),
                "pickle_dangerous",
                "unsafe_pickle",
                runs=True,
            )
            for kind, pack in _COMPRESSIONS.items()
        ),
        inspected("in an array of objects", harm, "pickle_dangerous", "unsafe_pickle", runs=True),
        inspected(
            "in an array in an array", _deeper, "pickle_dangerous", "unsafe_pickle", runs=True
        ),
        inspected(
            "behind an array's numbers",
            _behind_numbers,
            "pickle_dangerous",
            "unsafe_pickle",
            runs=True,
        ),
        inspected(
            "in an array, packed",
            _packed(zlib.compress, harm),
            "pickle_dangerous",
            "unsafe_pickle",
            runs=True,
        ),
        inspected(
            "behind the compressed stream", _behind_stream, "archive_damaged", "pickle_truncated"
        ),
        inspected(
            "in a second compressed stream",
            _two_streams,
            "pickle_dangerous",
            "pickle_trailing_bytes",
        ),
        inspected(
            "in a compressed stream that is cut off",
            _cut,
            "pickle_dangerous",
            "unsafe_pickle",
            runs=True,
        ),
        inspected("a bomb", _bomb, "archive_ratio", ""),
        inspected(
            "an array with a negative size", _shape(-5), "pickle_damaged", "pickle_not_loadable"
        ),
        inspected(
            "an array without an end", _shape(1 << 40), "pickle_damaged", "model_memory_exceeded"
        ),
        inspected(
            "the container of joblib before 0.10",
            _method,
            "artifact_type_unsupported",
            "pickle_not_loadable",
        ),
        loaded("in an array, unknown to the scanner", quiet, "unsafe_pickle", runs=True),
        loaded("the same, packed", _packed(lzma.compress, quiet), "unsafe_pickle", runs=True),
        loaded("an array of a foreign class", _subclass, "unsafe_pickle"),
        loaded("an array in another file", _old_wrapper, "unsafe_pickle"),
        loaded("a packed array in another file", _old_zipped, "unsafe_pickle"),
    ]
