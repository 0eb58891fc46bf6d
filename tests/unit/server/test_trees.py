"""Generated trees: the exact modules of a child process, made once, whole or not at all."""

from __future__ import annotations

import ast
import gettext
import marshal
import shutil
import sys
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from server.environments import trees
from server.environments.trees import (
    INSPECT_MODULES,
    INSPECT_PACKAGES,
    build_tree,
    compile_catalogues,
)

if TYPE_CHECKING:
    from pathlib import Path

PO = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n\nmsgid "{}"\nmsgstr "{}"\n'


def names(tree: Path) -> set[str]:
    """Name the files of a tree, without what was compiled of them."""
    files = {path for path in tree.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {str(path.relative_to(tree)) for path in files}


def test_the_model_servers_tree_holds_its_modules_and_compiled_messages(tmp_path: Path) -> None:
    tree = build_tree(tmp_path, "model_server")
    files = names(tree)
    assert {
        "server/__init__.py",
        "server/model_server/__init__.py",
        "server/model_server/spec.py",
        "metrics/__init__.py",
        "metrics/names.py",
        "metrics/instruments.py",
        "server/locale/ru/LC_MESSAGES/persephone.mo",
        "server/locale/en/LC_MESSAGES/persephone.mo",
    } <= files
    assert not any(name.endswith((".po", ".in")) for name in files)
    own = {name for name in files if name.count("/") == 1 and name[:7] == "server/"}
    assert own == {
        "server/__init__.py",
        "server/kinds.py",
        "server/protobuf.py",
        "server/scrubbing.py",
    }
    assert (tree / "server" / "__init__.py").read_bytes() == b""


def test_compiled_messages_are_read_by_gettext(tmp_path: Path) -> None:
    tree = build_tree(tmp_path, "model_server")
    for language in ("ru", "en"):
        texts = gettext.translation("persephone", tree / "server" / "locale", [language])
        assert texts.gettext("archive_no_model") != "archive_no_model"
        assert texts.gettext("tensor_shape") != "tensor_shape"


@pytest.mark.parametrize("module", trees.SHARED, ids=str)
def test_what_both_trees_share_is_read_by_older_interpreters(module: Path) -> None:
    ast.parse((trees.SOURCES / module).read_text(), feature_version=(3, 9))


CONFINEMENT = {
    str(path.relative_to(trees.SOURCES))
    for path in (trees.SOURCES / trees.CONFINEMENT).glob("*.py")
}


def test_both_trees_hold_what_confines_a_child(tmp_path: Path) -> None:
    assert "server/sandbox/inside/__main__.py" in CONFINEMENT
    assert names(build_tree(tmp_path, "model_server")) >= CONFINEMENT


@pytest.mark.parametrize("name", sorted(CONFINEMENT))
def test_what_confines_a_child_runs_on_older_interpreters_and_imports_no_packages(
    name: str,
) -> None:
    parsed = ast.parse((trees.SOURCES / name).read_text(), feature_version=(3, 9))
    found = {node.module or "" for node in ast.walk(parsed) if isinstance(node, ast.ImportFrom)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    own = {module for module in found if module.startswith("server.sandbox.inside")}
    assert {module.partition(".")[0] for module in found - own} <= sys.stdlib_module_names


def test_the_inspection_tree_holds_nothing_but_its_modules_and_packages(tmp_path: Path) -> None:
    tree = build_tree(tmp_path, "inspect")
    own = {name for name in names(tree) if name.startswith("server/")}
    packages = {f"server/{name}__init__.py" for name in ("", "artifacts/", "sandbox/")}
    modules = {f"server/artifacts/{name}.py" for name in INSPECT_MODULES}
    assert own == packages | modules | CONFINEMENT | {str(path) for path in trees.SHARED}
    others = {name for name in names(tree) - own if not name.endswith(".so")}
    assert {name for name in others if name.startswith("yaml/")} >= {"yaml/loader.py"}
    others = {name for name in others if not name.startswith("yaml/")}
    assert others == {
        *(f"lz4/{name}.py" for name in ("__init__", "version", "frame/__init__")),
        "onnx/__init__.py",
        *(f"picklescan/{name}.py" for name in ("__init__", "relaxed_zipfile", "scanner", "torch")),
    }
    assert (tree / "onnx" / "__init__.py").read_bytes() == b""


def test_a_tree_is_not_made_without_a_package_that_the_inspection_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INSPECT_PACKAGES, "no_such_package", ("__init__.py",))
    with pytest.raises(FileNotFoundError):
        build_tree(tmp_path, "inspect")
    monkeypatch.delitem(INSPECT_PACKAGES, "no_such_package")
    monkeypatch.setitem(INSPECT_PACKAGES, "lz4", ("no_such_file",))
    with pytest.raises(FileNotFoundError):
        build_tree(tmp_path, "inspect")


def test_the_inspection_imports_only_the_standard_library_and_what_is_in_its_tree(
    tmp_path: Path,
) -> None:
    tree = build_tree(tmp_path, "inspect")
    for path in (tree / "server" / "artifacts").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            else:
                continue
            for name in imported:
                own = name in {"server.artifacts", "server.kinds", "server.protobuf"} or (
                    name.removeprefix("server.artifacts.") in INSPECT_MODULES
                )
                top = name.partition(".")[0]
                assert own or top in {*sys.stdlib_module_names, *INSPECT_PACKAGES}, (path, name)


def test_every_module_of_a_tree_is_compiled_for_the_place_where_it_lies(tmp_path: Path) -> None:
    tree = build_tree(tmp_path, "inspect")
    compiled = {path.name.partition(".")[0] for path in tree.rglob("*.pyc")}
    assert compiled == {path.stem for path in tree.rglob("*.py")}
    [inside] = (tree / trees.CONFINEMENT / "__pycache__").glob("plan.*.pyc")
    code = marshal.loads(inside.read_bytes()[16:])
    assert code.co_filename == str(tree / trees.CONFINEMENT / "plan.py")


def test_a_tree_is_made_once_and_again_when_a_module_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_tree(tmp_path / "trees", "inspect")
    mark = first / "mark"
    mark.touch()
    assert build_tree(tmp_path / "trees", "inspect") == first
    assert mark.exists()
    copy = tmp_path / "sources" / "server" / "artifacts"
    copy.mkdir(parents=True)
    for name in INSPECT_MODULES:
        text = (trees.SOURCES / "server" / "artifacts" / f"{name}.py").read_text()
        (copy / f"{name}.py").write_text(f"{text}\n# changed\n")
    for module in trees.SHARED:
        shutil.copy(trees.SOURCES / module, tmp_path / "sources" / module)
    monkeypatch.setattr(trees, "SOURCES", tmp_path / "sources")
    second = build_tree(tmp_path / "trees", "inspect")
    assert second != first
    assert [path for path in second.parent.iterdir() if path.name.startswith(".")] == []


def test_a_tree_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trees, "_write_file", full)
    with pytest.raises(OSError, match="No space"):
        build_tree(tmp_path, "inspect")
    assert list(tmp_path.iterdir()) == []


def test_catalogues_are_merged_and_the_first_text_of_a_code_wins() -> None:
    parts = [PO.format("a_code", "eins"), PO.format("b_code", "zwei"), PO.format("a_code", "drei")]
    compiled = compile_catalogues(part.encode() for part in parts)
    texts = gettext.GNUTranslations(BytesIO(compiled))
    assert (texts.gettext("a_code"), texts.gettext("b_code")) == ("eins", "zwei")
