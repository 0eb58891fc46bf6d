"""An inspection that runs out of memory or of disk says so; the limits are the kernel's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.onnx_files import linear
from tests.support.pickle_files import write, zipped

ROOT = Path(__file__).resolve().parents[3]

LIMITED = """
import json, resource, sys
from pathlib import Path
from server.artifacts.child import inspection
kind, size = sys.argv[3:]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = int(size) + (used if kind == "RLIMIT_AS" else 0)
resource.setrlimit(getattr(resource, kind), (limit, limit))
print(json.dumps(inspection(Path(sys.argv[1]), Path(sys.argv[2]))))
"""


@pytest.mark.parametrize(
    ("limit", "size", "code"),
    [
        ("RLIMIT_AS", 32 * 1024**2, "inspection_out_of_memory"),
        ("RLIMIT_FSIZE", 1024**2, "inspection_disk_full"),
    ],
)
def test_what_the_machine_lacks_for_an_inspection_is_named(
    tmp_path: Path, limit: str, size: int, code: str
) -> None:
    numbers = b"[" + b"1.5, " * 2_000_000 + b"1]"
    upload = write(tmp_path, "upload", zipped({"model.onnx": linear(), "sample.json": numbers}))
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", LIMITED, upload, tmp_path / "out", limit, str(size)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(ended.stdout)["code"] == code
