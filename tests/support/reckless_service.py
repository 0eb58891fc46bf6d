"""Starts the service with every check of pickles and TorchScript off: its sandbox alone is asked."""

from __future__ import annotations

import sys

from server.cli import main
from server.environments import trees

RECKLESS_INSPECTION = b"""

careful = main
formats = {
    b"\\x80": {"kind": "sklearn", "format": "pickle", "file": "model.pkl"},
    b"P": {"kind": "torchscript", "format": "torchscript", "file": "model.pt"},
}

def main(arguments):
    with open(arguments[0], "rb") as file:
        found = formats.get(file.read(1))
    if found is None:
        return careful(arguments)
    print(json.dumps({"ok": True, **found}))
    return 0
"""
RECKLESS_LOADING = b"""

def load_pickle(path):
    with open(path, "rb") as file:
        return pickle.load(file), None
"""


def without_checks() -> None:
    """Replace what looks at models in the trees that child processes run from."""
    whole = trees._module_files

    def reckless(modules: object) -> dict[str, bytes]:
        files = whole(modules)  # type: ignore[arg-type]
        if "server/artifacts/child.py" in files:
            files["server/artifacts/child.py"] += RECKLESS_INSPECTION
        if "server/model_server/unpickling.py" in files:
            files["server/model_server/unpickling.py"] += RECKLESS_LOADING
        return files

    trees._module_files = reckless


if __name__ == "__main__":
    without_checks()
    sys.exit(main())
