"""Reads the description in a skops file: whether it is whole, and which scikit-learn wrote it.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from server.artifacts.arrays import check_npy
from server.artifacts.failures import InspectionError
from server.artifacts.streams import stream_of
from server.artifacts.torch_zip import SKOPS_SCHEMA
from server.artifacts.zips import CHUNK_BYTES

if TYPE_CHECKING:
    from server.artifacts.limits import Meter
    from server.artifacts.zips import Zip

_MOST_BYTES = 64 * 1024**2
_VERSION = re.compile(
    r'"_sklearn_version":\s*\{[^{}]*?"content":\s*"\\"([0-9][0-9A-Za-z.]{0,30})\\""'
)


def check_skops(archive: Zip, meter: Meter) -> dict[str, str]:
    """Read a skops file through; return which scikit-learn wrote it, as far as it says so.

    Raises:
        InspectionError: ``skops_damaged``; it breaks a limit, or an array in it is a pickle that
            picklescan refuses.
    """
    made_with: dict[str, str] = {}
    for member in archive.members(meter):
        stream = stream_of(member.chunks())
        if member.name == SKOPS_SCHEMA:
            made_with = _made_with(stream.read(_MOST_BYTES))
        elif member.name.endswith(".npy"):
            check_npy(stream, member.name)
        while stream.read(CHUNK_BYTES):
            pass
    return made_with


def _made_with(schema: bytes) -> dict[str, str]:
    try:
        text = schema.decode()
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InspectionError("skops_damaged", evidence=str(error)) from None
    if not isinstance(said, dict) or not {"protocol", "__loader__"} <= said.keys():
        raise InspectionError("skops_damaged", evidence=SKOPS_SCHEMA)
    match = _VERSION.search(text)
    return {} if match is None else {"scikit-learn": match[1]}
