"""Generated trees: the exact modules that a child process may import, apart from the checkout."""

from __future__ import annotations

import compileall
import ctypes
import errno
import hashlib
import io
import os
import py_compile
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

if TYPE_CHECKING:
    from collections.abc import Iterable

    from babel.messages.catalog import Catalog

SOURCES = Path(__file__).parents[2]

INSPECT_MODULES = (
    "arrays",
    "boosters",
    "child",
    "code_bundle",
    "exported",
    "failures",
    "inspect",
    "limits",
    "manifests",
    "mlflow",
    "mlflow_code",
    "onnx_check",
    "onnx_wire",
    "pickle_machine",
    "pickle_opcodes",
    "pickles",
    "poetry",
    "recognise",
    "requested",
    "skops",
    "streams",
    "tar_headers",
    "tars",
    "torch_zip",
    "triton",
    "tripwire",
    "unpack",
    "zip_structure",
    "zips",
)
"""Modules of ``server.artifacts`` that the inspecting child needs."""

INSPECT_PACKAGES = {
    "lz4": ("__init__.py", "_version.*", "version.py", "frame/__init__.py", "frame/_frame.*"),
    "onnx": ("onnx_cpp2py_export.*",),
    "picklescan": ("__init__.py", "relaxed_zipfile.py", "scanner.py", "torch.py"),
    "yaml": ("*.py",),
}
"""Files of installed packages that it needs beside the standard library.

Of onnx it is the compiled part, in a package that imports nothing else.
"""

METRICS_MODULES = ("names", "instruments")
"""Modules of ``metrics`` that run beside a model."""

SHARED = tuple(Path("server", f"{name}.py") for name in ("kinds", "protobuf", "scrubbing"))
"""Modules of their own; in both trees."""

CONFINEMENT = Path("server", "sandbox", "inside")
"""What every child process does to itself first; in both trees."""

_FORMAT = 3


def build_tree(root: Path, kind: Literal["model_server", "inspect"]) -> Path:
    """Return the folder below ``root`` that holds the modules of one kind of child process.

    It is named after the digest of its content, made once and whole or not at all.

    Raises:
        OSError: a module cannot be read or the tree cannot be written.
    """
    files = _model_server_files() if kind == "model_server" else _inspect_files()
    files |= _module_files([*SHARED, *(CONFINEMENT / path.name for path in _modules(CONFINEMENT))])
    digest = _digest(kind, files)
    tree = root / f"{kind}-{digest[:16]}"
    if tree.is_dir():
        return tree
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tree-", dir=root))
    try:
        _write(temporary, files)
        _compile(temporary, tree)
        _sync(temporary)
        try:
            temporary.rename(tree)
        except OSError:
            # Somebody else was faster.
            if not tree.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tree


def sweep_trees(root: Path, kept: Iterable[Path]) -> None:
    """Remove the trees of other versions of the service, and what a killed one left half-made.

    To be called by the owner of ``root``, before any child process is started.
    """
    keep = set(kept)
    for tree in root.iterdir():
        if tree not in keep:
            shutil.rmtree(tree, ignore_errors=True)


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
    files = _module_files(folder / f"{name}.py" for name in INSPECT_MODULES)
    for package, patterns in INSPECT_PACKAGES.items():
        files |= _package_files(package, patterns)
    return files


def _package_files(package: str, patterns: Iterable[str]) -> dict[str, bytes]:
    """Read files of an installed package, which is not imported for that.

    Raises:
        FileNotFoundError: a file is not there.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(errno.ENOENT, "a package is not installed", package)
    root = Path(spec.origin).parent
    files = {f"{package}/__init__.py": b""}
    for pattern in patterns:
        found = [path for path in root.glob(pattern) if path.suffix != ".pyi"]
        if not found:
            raise FileNotFoundError(errno.ENOENT, "a package lacks a file", str(root / pattern))
        for path in found:
            files[str(Path(package) / path.relative_to(root))] = path.read_bytes()
    return files


def _modules(folder: Path) -> list[Path]:
    return sorted((SOURCES / folder).glob("*.py"))


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
    digest = hashlib.sha256(f"{_FORMAT} {kind} {sys.version}\n".encode())
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


def _compile(written: Path, tree: Path) -> None:
    """Compile the modules, which nobody can do later: every start would, a tenth of a second long.

    What is compiled is never compared with its source, as neither changes any more.
    """
    compileall.compile_dir(
        written,
        quiet=1,
        stripdir=str(written),
        prependdir=str(tree),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


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
    path.write_bytes(content)


def _sync(tree: Path) -> None:
    """Make everything durable at once: a tree has hundreds of files, and is never looked at again."""
    folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(folder) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(folder)
