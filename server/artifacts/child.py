"""The inspecting process: looks into one artifact and prints one JSON report.

Started as ``python -I -S -c`` from a generated tree: standard library only.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect

_EVIDENCE_CHARS = 300


def main(arguments: list[str]) -> int:
    """Inspect ``ARTIFACT`` into the folder ``OUT`` and print the report; return the exit code."""
    artifact, folder = arguments
    report = inspection(Path(artifact), Path(folder))
    sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return 0 if report["ok"] else 1


def inspection(artifact: Path, folder: Path) -> dict[str, Any]:
    """Return the report of an inspection, whatever happens during it."""
    try:
        return inspect(artifact, folder).as_json()
    except InspectionError as error:
        return _failed(error.code, error.params, error.evidence)
    except MemoryError:
        return _failed("inspection_out_of_memory", {}, "")
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return _failed("inspection_disk_full", {}, "")
        return _failed("artifact_unreadable", {}, error.strerror or type(error).__name__)
    except Exception as error:  # noqa: BLE001 - whatever an artifact can provoke has to be reported
        return _failed("artifact_not_understood", {}, type(error).__name__)


def _failed(code: str, params: dict[str, Any], evidence: str) -> dict[str, Any]:
    text = " ".join(evidence.split())[:_EVIDENCE_CHARS]
    return {"ok": False, "code": code, "params": params, "evidence": text}
