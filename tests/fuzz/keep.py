"""Keeps the smallest set of inputs that reaches all that was reached, in tests/fuzz/seeds.

``python tests/fuzz/keep.py TARGET FOLDER``, the folder being one that a long run has filled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_HERE = Path(__file__).parent
_LARGEST_BYTES = 4096


def main() -> None:
    target, folder = sys.argv[1:]
    with tempfile.TemporaryDirectory() as kept:
        environment = {**os.environ, "PYTHONPATH": str(_HERE.parents[1])}
        subprocess.run(
            [
                *(sys.executable, "-W", "ignore", _HERE / f"{target}.py"),
                *("-merge=1", f"-max_len={_LARGEST_BYTES}", "-rss_limit_mb=0", kept, folder),
            ],
            check=True,
            env=environment,
        )
        with zipfile.ZipFile(_HERE / "seeds" / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as made:
            for path in sorted(Path(kept).iterdir()):
                # A fixed time, so that the same inputs are the same file.
                made.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
