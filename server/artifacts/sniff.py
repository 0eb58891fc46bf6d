"""The first look at an upload: taken or refused by its leading bytes."""

from __future__ import annotations

from server.artifacts.recognise import HEAD_BYTES, recognise
from server.errors import UnsupportedTypeError

__all__ = ["HEAD_BYTES", "sniff_head"]


def sniff_head(head: bytes) -> str:
    """Return the kind of a file by its first bytes: ``HEAD_BYTES`` of them, or all there are.

    The kind is ``onnx``, ``zip``, ``tar``, ``gzip``, ``zlib``, ``bz2``, ``xz``, ``lzma`` or
    ``pickle``; what is inside is told by the inspection later.

    Raises:
        UnsupportedTypeError: ``artifact_type_unsupported``, with what was ``found``.
    """
    leading = recognise(head)
    if leading.kind is None:
        raise UnsupportedTypeError("artifact_type_unsupported", found=leading.found)
    return leading.kind
