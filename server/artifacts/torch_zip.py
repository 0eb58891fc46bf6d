"""Tells TorchScript from the other zips that PyTorch writes, without PyTorch.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.pickle_machine import Built, Mapping
from server.artifacts.pickles import PickleReport, read_pickle
from server.artifacts.zips import UNREADABLE, check_bytes, open_zip

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterable

    from server.artifacts.limits import Limits, Meter

TORCHSCRIPT = "torchscript"
STATE = "state"
EXPORTED = "exported"
ARRAYS = "arrays"
OTHER = "other"

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What ``torch.save`` before version 1.6 wrote as a first pickle."""

_TENSOR_MODULES = ("torch._utils.", "torch.storage.", "torch._tensor.", "numpy.", "_codecs.")
_PLAIN = {"collections.OrderedDict", "collections.defaultdict", "torch.Size", "torch.device"}


def zip_layout(names: Iterable[str]) -> str:
    """Tell what kind of zip this is by the names in it.

    One of ``TORCHSCRIPT``, ``STATE`` (``torch.save``), ``EXPORTED`` (``torch.export``),
    ``ARRAYS`` (``.npz``) and ``OTHER``.
    """
    files = [name for name in names if not name.endswith("/")]
    # PyTorch puts everything into one folder named after the file.
    roots = {name.partition("/")[0] for name in files}
    inner = {name.partition("/")[2] for name in files} if len(roots) == 1 else set()
    if inner & {"archive_format", "serialized_exported_program.json", "models/model.json"}:
        return EXPORTED
    if "data.pkl" in inner:
        has_code = any(name.startswith("code/") for name in inner)
        return TORCHSCRIPT if has_code and "constants.pkl" in inner else STATE
    if files and all(name.endswith(".npy") for name in files):
        return ARRAYS
    return OTHER


def check_torchscript(file: IO[bytes], limits: Limits, meter: Meter) -> None:
    """Read a TorchScript file through once.

    Raises:
        InspectionError: it is damaged or over a limit.
    """
    archive = open_zip(file, limits)
    names = [info.filename for info in archive.infolist()]
    if len(set(names)) != len(names):
        raise InspectionError("archive_damaged", evidence="two entries of one name")
    check_bytes(archive, meter)


def refuse_saved(archive: zipfile.ZipFile) -> None:
    """Name what ``torch.save`` wrote into this zip.

    Raises:
        InspectionError: always; ``state_dict_not_torchscript`` or
            ``module_pickle_not_torchscript``.
    """
    name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    try:
        with archive.open(name) as stream:
            report = read_pickle(stream)
    except UNREADABLE as error:
        raise InspectionError("archive_damaged", evidence=str(error)) from None
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
