"""Reads the headers of numpy's files, to find arrays of objects: those are pickles.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import ast
from typing import IO, TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.streams import stream_of
from server.artifacts.tripwire import scanned_pickle
from server.artifacts.zips import CHUNK_BYTES

if TYPE_CHECKING:
    from server.artifacts.limits import Meter
    from server.artifacts.zips import Zip

MAGIC = b"\x93NUMPY"

_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
_HEADER_BYTES = 64 * 1024


class _HeaderError(Exception):
    """The header is none that numpy writes."""


def check_npz(archive: Zip, name: str, meter: Meter, *, is_sample: bool) -> None:
    """Read every array of an ``.npz`` through; a sample may hold no arrays of objects.

    Raises:
        InspectionError: it is damaged or over a limit, or not what may be read.
    """
    for member in archive.members(meter):
        stream = stream_of(member.chunks())
        inside = f"{name}/{member.name}"
        if is_sample:
            _check_sample(stream, inside)
        else:
            check_npy(stream, inside)
        while stream.read(CHUNK_BYTES):
            pass


def check_npy(stream: IO[bytes], name: str) -> None:
    """Scan the pickle that an array of objects is; nobody will read the file.

    Raises:
        InspectionError: ``pickle_dangerous``, ``pickle_scan_failed`` or ``pickle_damaged``.
    """
    try:
        is_pickle = _holds_objects(stream)
    except _HeaderError:
        return
    if is_pickle:
        scanned_pickle(stream, name)


def _check_sample(stream: IO[bytes], name: str) -> None:
    try:
        if _holds_objects(stream):
            raise InspectionError("sample_holds_objects", name=shown(name))
    except _HeaderError as error:
        raise InspectionError("sample_damaged", name=shown(name), evidence=str(error)) from None


def _holds_objects(stream: IO[bytes]) -> bool:
    """Read an array's header, as numpy writes it."""
    head = stream.read(8)
    width = _LENGTH_BYTES.get((head[6], head[7])) if head[:6] == MAGIC and len(head) == 8 else None
    if width is None:
        raise _HeaderError("no numpy array")
    length = int.from_bytes(stream.read(width), "little")
    if length > _HEADER_BYTES:
        raise _HeaderError("a header that is too long")
    text = stream.read(length)
    if len(text) < length:
        raise _HeaderError("a header that is cut off")
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
        return _names_objects(header["descr"])
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        raise _HeaderError("a malformed header") from None


def _names_objects(description: Any) -> bool:
    if isinstance(description, str):
        return "O" in description
    if isinstance(description, tuple) and description:
        return _names_objects(description[0])
    if isinstance(description, list):
        # A structured type: fields of (name, type) or (name, type, shape).
        return any(_names_objects(field[1]) for field in description)
    raise TypeError(type(description).__name__)
