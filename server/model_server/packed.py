"""Where the packed form of a model lies: saved once, with weights that replicas share.

onnxruntime copies the weights of an ordinary file into every process and lays them out anew for
its kernels. Saved after that by onnxruntime itself, weights apart, they are mapped from the file:
the machine holds them once for all replicas, and a start copies nothing. The form fits the
processor and the libraries that wrote it, so its folder is named after them.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import List, Optional

_PROCESSOR = ("model name", "flags", "CPU implementer", "CPU part", "Features")


def folder_in(packed: str) -> Path:
    """Return the folder of the form that fits this processor and these libraries."""
    known = [platform.machine(), sys.prefix, *_processor()]
    return Path(packed) / hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def found_in(packed: Optional[str]) -> Optional[str]:
    """Return that folder if there is one."""
    if packed is None:
        return None
    folder = folder_in(packed)
    return str(folder) if folder.is_dir() else None


def _processor() -> List[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [platform.processor()]
    return sorted({line for line in lines if line.partition("\t")[0].strip() in _PROCESSOR})
