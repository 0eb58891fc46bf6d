"""Tells TorchScript from the other zips that PyTorch writes, without PyTorch.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import Names
from server.artifacts.pickle_machine import Built, Mapping
from server.artifacts.recognise import HEAD_BYTES, recognise
from server.artifacts.streams import stream_of
from server.artifacts.tripwire import scanned_pickle
from server.artifacts.zips import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.artifacts.limits import Meter
    from server.artifacts.pickles import PickleReport
    from server.artifacts.zips import Zip

TORCHSCRIPT = "torchscript"
STATE = "state"
EXPORTED = "exported"
ARRAYS = "arrays"
SKOPS = "skops"
OTHER = "other"

OLD_PROGRAM = "serialized_exported_program.json"
"""Name in what ``torch.export.save`` before version 2.8 wrote."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What ``torch.save`` before version 1.6 wrote as a first pickle."""

# In newer files the second is beside the first, or instead of it.
_OF_VERSION = re.compile(r"[^/]+/(?:\.data/)?version")
_VERSION_BYTES = 8
# torch 2.1 was the first to write down the order of bytes.
_FIRST_WITH_BYTEORDER = "2.1"
_TENSOR_MODULES = ("torch._utils.", "torch.storage.", "torch._tensor.", "numpy.", "_codecs.")
_FILE_OPERATORS = re.compile(rb"\b(?:torch|ops\s*\.\s*aten)\s*\.\s*(from_file|save)\b")
_LONGEST_OPERATOR = 64
SKOPS_SCHEMA = "schema.json"
_OF_SKOPS = re.compile(r"schema\.json|\d{1,20}\.np[yz]")
_PLAIN = {"collections.OrderedDict", "collections.defaultdict", "torch.Size", "torch.device"}


def zip_layout(names: Iterable[str]) -> str:
    """Tell what kind of zip this is by the names in it.

    One of ``TORCHSCRIPT``, ``STATE`` (``torch.save``), ``EXPORTED`` (``torch.export``),
    ``ARRAYS`` (``.npz``), ``SKOPS`` and ``OTHER``.
    """
    files = [name for name in names if not name.endswith("/")]
    # PyTorch puts everything into one folder named after the file.
    roots = {name.partition("/")[0] for name in files}
    inner = {name.partition("/")[2] for name in files} if len(roots) == 1 else set()
    if OLD_PROGRAM in files or inner & {"archive_format", "models/model.json"}:
        return EXPORTED
    if "data.pkl" in inner:
        has_code = any(name.startswith("code/") for name in inner)
        return TORCHSCRIPT if has_code and "constants.pkl" in inner else STATE
    if files and all(name.endswith(".npy") for name in files):
        return ARRAYS
    if SKOPS_SCHEMA in files and all(map(_OF_SKOPS.fullmatch, files)):
        return SKOPS
    return OTHER


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a zip of PyTorch says: what its ``data.pkl`` names, and the number of its format."""

    data: PickleReport | None = None
    version: str = ""


def made_with(archive: Zip, saved: Saved) -> dict[str, str]:
    """Return what is known of the torch that wrote a TorchScript file, which does not name itself."""
    inner = {name.partition("/")[2] for name in archive.names}
    found = {"torchscript-format": saved.version} if saved.version else {}
    return {**found, "torch-at-least": _FIRST_WITH_BYTEORDER} if "byteorder" in inner else found


def check_members(archive: Zip, meter: Meter) -> Saved:
    """Read a zip of PyTorch through once, and scan its pickles.

    Raises:
        InspectionError: it is damaged, breaks a rule or a limit, or holds what picklescan refuses.
    """
    names = Names(meter.limits, is_model=True)
    data, version = None, ""
    for member in archive.members(meter):
        name = names.admit(member.name, is_folder=member.is_folder)
        stream = stream_of(member.chunks())
        if _OF_VERSION.fullmatch(name):
            said = stream.peek(_VERSION_BYTES)[:_VERSION_BYTES].strip()
            version = said.decode() if said.isdigit() else version
        if name.endswith(".py"):
            _refuse_file_operators(stream)
        elif recognise(stream.peek(HEAD_BYTES)[:HEAD_BYTES]).kind == "pickle":
            report = scanned_pickle(stream, name)
            if name.endswith("/data.pkl"):
                data = report
        while stream.read(CHUNK_BYTES):
            pass
    return Saved(data=data, version=version)


def _refuse_file_operators(code: IO[bytes]) -> None:
    """Refuse code that reads or writes files; the sandbox would give it none that matter."""
    kept = b""
    while piece := code.read(CHUNK_BYTES):
        found = _FILE_OPERATORS.search(kept + piece)
        if found is not None:
            raise InspectionError("torchscript_file_operator", name=found[1].decode())
        kept = piece[-_LONGEST_OPERATOR:]


def refuse_saved(report: PickleReport | None) -> None:
    """Name what ``torch.save`` wrote into a zip, by its ``data.pkl``.

    Raises:
        InspectionError: always; ``state_dict_not_torchscript``,
            ``module_pickle_not_torchscript`` or ``pickle_damaged``.
    """
    if report is None:
        raise InspectionError("pickle_damaged", evidence="data.pkl")
    refuse_saved_pickle(report)


def refuse_saved_pickle(report: PickleReport) -> None:
    """Name what ``torch.save`` pickled: weights alone, or a module that needs its own code.

    Raises:
        InspectionError: always.
    """
    code = [name for name in report.globals if not _is_weights(name)]
    top = report.value
    if isinstance(top, Built) and top.name in code:
        raise InspectionError("module_pickle_not_torchscript", name=top.name)
    holds_only_weights = isinstance(top, Mapping | Built) and not code
    if holds_only_weights or not code:
        raise InspectionError("state_dict_not_torchscript")
    raise InspectionError("module_pickle_not_torchscript", name=code[0])


def _is_weights(name: str) -> bool:
    return (
        name in _PLAIN
        or name.startswith(_TENSOR_MODULES)
        or (name.startswith("torch.") and (name.endswith("Storage") or name.count(".") == 1))
    )
