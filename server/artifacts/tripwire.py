"""Asks picklescan what it thinks of every pickle: a tripwire beside the allow list that decides.

What it calls dangerous is refused, and so is what it cannot read. What it calls suspicious is
everything that it does not know, scikit-learn among it: that is left to the allow list. Runs in the
inspecting child too: the standard library and picklescan.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.pickles import DamagedPickleError, PickleReport, read_pickle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from picklescan.scanner import ScanResult

LOOKED_AT_BYTES = 1024 * 1024
"""How much is scanned of a file that is no pickle by its first bytes."""

# What picklescan says where a name is no text; bytes of any kind contain such opcodes.
_UNKNOWN = "unknown"


def scanned_pickle(stream: IO[bytes], member: str) -> PickleReport:
    """Follow one pickle and scan it; ``member`` is the archive's file that it is in, or empty.

    Raises:
        InspectionError: ``pickle_dangerous``, ``pickle_cloudpickle``, ``pickle_scan_failed`` or
            ``pickle_damaged``.
    """
    try:
        report = read_pickle(stream)
    except DamagedPickleError as error:
        check_other(error.opcodes[:LOOKED_AT_BYTES], member)
        raise
    _check_streams(report.streams, member)
    return report


def _check_streams(streams: Iterable[bytes], member: str) -> None:
    for stream in streams:
        try:
            result = _scan(stream)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - it reads foreign bytes
            raise _failed(member, type(error).__name__) from None
        _refuse_dangerous(_dangerous(result), member)
        if result.scan_err:
            raise _failed(member, "scan error")


def check_other(head: bytes, member: str) -> None:
    """Scan the beginning of a file that does not look like a pickle, for what would be one.

    Raises:
        InspectionError: ``pickle_dangerous``.
    """
    try:
        result = _scan(head)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - most files are no pickles, and say so in many ways
        return
    _refuse_dangerous([name for name in _dangerous(result) if _UNKNOWN not in name], member)


def _scan(stream: bytes) -> ScanResult:
    from picklescan.scanner import scan_pickle_bytes  # noqa: PLC0415 - it imports much

    return scan_pickle_bytes(io.BytesIO(stream), "member")


def _dangerous(result: ScanResult) -> list[str]:
    return [
        f"{found.module}.{found.name}"
        for found in result.globals
        if found.safety.value == "dangerous"
    ]


def _refuse_dangerous(names: list[str], member: str) -> None:
    clouds = [name for name in names if name.startswith("cloudpickle.")]
    if clouds:
        raise InspectionError("pickle_cloudpickle", name=shown(min(clouds)), evidence=shown(member))
    if names:
        raise InspectionError("pickle_dangerous", name=shown(min(names)), evidence=shown(member))


def _failed(member: str, evidence: str) -> InspectionError:
    said = f"{shown(member)}: {evidence}" if member else evidence
    return InspectionError("pickle_scan_failed", evidence=said)
