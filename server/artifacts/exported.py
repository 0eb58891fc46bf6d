"""Looks into a program of ``torch.export`` without PyTorch: what wrote it, what cannot be served.

Runs in the inspecting child too: standard library and picklescan.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from typing import IO, TYPE_CHECKING, Any

from server.artifacts.failures import InspectionError
from server.artifacts.limits import Names, shown
from server.artifacts.pickles import DamagedPickleError
from server.artifacts.recognise import HEAD_BYTES, recognise
from server.artifacts.streams import stream_of
from server.artifacts.torch_zip import OLD_PROGRAM, check_members
from server.artifacts.tripwire import scanned_pickle
from server.artifacts.zips import CHUNK_BYTES, open_zip

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.artifacts.limits import Meter
    from server.artifacts.zips import Zip

_PROGRAM = re.compile(r"[^/]+/models/([^/]+)\.json")
# What torch.export.load looks for.
_PROGRAM_NAME = "model"
_COMPILED = re.compile(r"[^/]+/data/aotinductor/.")
# Pickled objects of classes that only their own library knows.
_OBJECT = re.compile(r"[^/]+/data/constants/(?:custom|opaque)_obj_.*")
_PROGRAM_BYTES = 128 * 1024**2
_MUTATIONS = {
    "buffer_mutation": "buffer_name",
    "parameter_mutation": "parameter_name",
    "user_input_mutation": "user_input_name",
}
_VERSION = re.compile(r"\d{1,4}(?:\.\d{1,6}){1,3}")


def check_exported(archive: Zip, meter: Meter) -> dict[str, str]:
    """Read a program through once; return the version of torch that wrote it, if it says so.

    Raises:
        InspectionError: ``exported_program_compiled``, ``exported_program_custom_object``,
            ``exported_program_changes_itself``, ``exported_program_damaged``,
            ``archive_several_models``, or the archive breaks a rule or a limit or holds what
            picklescan refuses.
    """
    wanted = _program_name(archive.names)
    names = Names(meter.limits, is_model=True)
    program = b""
    for member in archive.members(meter):
        names.admit(member.name, is_folder=member.is_folder)
        stream = stream_of(member.chunks())
        if member.name == wanted:
            program = _bounded(stream)
        else:
            _scan(stream, member.name, meter)
        while stream.read(CHUNK_BYTES):
            pass
    return _made_with(_parsed(program))


def _program_name(names: Iterable[str]) -> str:
    files = list(names)
    for name in files:
        if _COMPILED.match(name):
            raise InspectionError("exported_program_compiled")
        if _OBJECT.fullmatch(name):
            raise InspectionError("exported_program_custom_object", name=shown(name))
    programs = [name for name in files if _PROGRAM.fullmatch(name)]
    if len(programs) > 1:
        raise InspectionError("archive_several_models", models=[shown(name) for name in programs])
    if OLD_PROGRAM in files:
        return OLD_PROGRAM
    if not programs or posixpath.basename(programs[0]) != f"{_PROGRAM_NAME}.json":
        raise _damaged(shown(programs[0]) if programs else f"models/{_PROGRAM_NAME}.json")
    return programs[0]


def _bounded(stream: IO[bytes]) -> bytes:
    data = stream.read(_PROGRAM_BYTES + 1)
    if len(data) > _PROGRAM_BYTES:
        raise _damaged("too long")
    return data


def _scan(stream: io.BufferedReader, name: str, meter: Meter) -> None:
    """Scan what torch may unpickle; numbers that only look like a pickle are let pass."""
    kind = recognise(stream.peek(HEAD_BYTES)[:HEAD_BYTES]).kind
    if kind == "pickle":
        try:
            scanned_pickle(stream, name)
        except DamagedPickleError:
            return
    elif kind == "zip":
        # torch.save's own archive: examples of inputs, tensors of unusual types, older weights.
        data = stream.read()
        check_members(open_zip(io.BytesIO(data), meter.limits), meter)


def _parsed(program: bytes) -> dict[str, Any]:
    try:
        said = json.loads(program)
    except (ValueError, RecursionError) as error:
        raise _damaged(type(error).__name__) from None
    if not isinstance(said, dict):
        raise _damaged("no object")
    return said


def _made_with(said: dict[str, Any]) -> dict[str, str]:
    try:
        outputs = said["graph_module"]["signature"]["output_specs"]
        changed = [
            str(each[kind].get(key))
            for each in outputs
            for kind, key in _MUTATIONS.items()
            if kind in each
        ]
    except (KeyError, TypeError, AttributeError):
        raise _damaged("no signature") from None
    if changed:
        raise InspectionError("exported_program_changes_itself", name=shown(changed[0]))
    version = said.get("torch_version")
    public = version.partition("+")[0] if isinstance(version, str) else ""
    return {"torch": public} if _VERSION.fullmatch(public) else {}


def _damaged(evidence: str) -> InspectionError:
    return InspectionError("exported_program_damaged", evidence=evidence)
