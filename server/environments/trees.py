"""Generated trees: the exact modules that a child process may import, apart from the checkout."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

if TYPE_CHECKING:
    from collections.abc import Iterable

    from babel.messages.catalog import Catalog

SOURCES = Path(__file__).parents[2]

INSPECT_MODULES = (
    "child",
    "failures",
    "inspect",
    "limits",
    "onnx_wire",
    "pickle_machine",
    "pickle_opcodes",
    "pickles",
    "recognise",
    "streams",
    "tars",
    "torch_zip",
    "unpack",
    "zips",
)
"""Modules of ``server.artifacts`` that the inspecting child needs; standard library only."""

METRICS_MODULES = ("names", "instruments")
"""Modules of ``metrics`` that run beside a model."""

_FORMAT = 1


def build_tree(root: Path, kind: Literal["model_server", "inspect"]) -> Path:
    """Return the folder below ``root`` that holds the modules of one kind of child process.

    It is named after the digest of its content, made once and whole or not at all.

    Raises:
        OSError: a module cannot be read or the tree cannot be written.
    """
    files = _model_server_files() if kind == "model_server" else _inspect_files()
    digest = _digest(kind, files)
    tree = root / f"{kind}-{digest[:16]}"
    if tree.is_dir():
        return tree
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tree-", dir=root))
    try:
        _write(temporary, files)
        try:
            temporary.rename(tree)
        except OSError:
            # Somebody else was faster.
            if not tree.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tree


def _model_server_files() -> dict[str, bytes]:
    package = SOURCES / "server" / "model_server"
    modules = sorted(path.relative_to(SOURCES) for path in package.rglob("*.py"))
    modules += [Path("metrics") / f"{name}.py" for name in METRICS_MODULES]
    files = _module_files(modules)
    for language in sorted((SOURCES / "server" / "locale").iterdir()):
        messages = language / "LC_MESSAGES"
        for path in sorted(messages.glob("*.po")):
            files[str(path.relative_to(SOURCES))] = path.read_bytes()
    return files


def _inspect_files() -> dict[str, bytes]:
    folder = Path("server") / "artifacts"
    return _module_files(folder / f"{name}.py" for name in INSPECT_MODULES)


def _module_files(modules: Iterable[Path]) -> dict[str, bytes]:
    """Read modules; every package on the way to one gets an empty ``__init__.py``."""
    files: dict[str, bytes] = {}
    for module in modules:
        for parent in module.parents:
            if parent.name:
                files.setdefault(str(parent / "__init__.py"), b"")
        if module.name != "__init__.py":
            files[str(module)] = (SOURCES / module).read_bytes()
    return files


def _digest(kind: str, files: dict[str, bytes]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {kind}\n".encode())
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _write(tree: Path, files: dict[str, bytes]) -> None:
    # mkdtemp's folders are private, but the tree is read by less trusted users too.
    tree.chmod(0o755)
    catalogues: dict[Path, list[bytes]] = {}
    for name, content in sorted(files.items()):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".po":
            catalogues.setdefault(path.parent, []).append(content)
        else:
            _write_file(path, content)
    for folder, contents in catalogues.items():
        _write_file(folder / "persephone.mo", compile_catalogues(contents))


def compile_catalogues(contents: Iterable[bytes]) -> bytes:
    """Merge ``.po`` files into one ``.mo``; of two texts with one code the first is taken."""
    merged: Catalog | None = None
    for content in contents:
        catalogue = read_po(io.BytesIO(content), abort_invalid=True)
        if merged is None:
            merged = catalogue
            continue
        for message in catalogue:
            if message.id and message.id not in merged:
                merged[message.id] = message
    compiled = io.BytesIO()
    if merged is not None:
        write_mo(compiled, merged)
    return compiled.getvalue()


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
