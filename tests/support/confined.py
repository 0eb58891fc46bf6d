"""Trees for children of the tests' own: what confines a child, and modules made up by a test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from server.sandbox.launch import Launch

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path("server", "sandbox", "inside")


def lay_tree(tree: Path, **modules: str) -> Path:
    """Make a tree that holds the confinement and these modules, name and text."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / INSIDE, tree / INSIDE, ignore=ignored)
    for name, text in modules.items():
        (tree / f"{name}.py").write_text(text, encoding="utf-8")
    return tree


def script(folder: Path, code: str, *arguments: object, **more: Any) -> Launch:
    """Return how a child that runs ``code`` is started; it finds ``arguments`` in ``given``."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    tree = lay_tree(folder / "tree", script=f"def main(given):\n{body}    return 0\n")
    return Launch(tree=tree, target="script", arguments=[*map(str, arguments)], **more)
