"""BentoML with one worker and no access log."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    program = Path(sys.executable).with_name("bentoml")
    here = str(Path(__file__).resolve().parent)
    more = {"MODEL_PATH": sys.argv[1], "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": here}
    command = (str(program), "serve", "bentoml_service:Model")
    options = ("--host", "127.0.0.1", "--port", sys.argv[2], "--working-dir", here)
    os.execve(program, [*command, *options], {**os.environ, **more})


if __name__ == "__main__":
    main()
