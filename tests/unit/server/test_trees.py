"""Generated trees: the exact modules of a child process, made once, whole or not at all."""

from __future__ import annotations

import ast
import gettext
import sys
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from server.environments import trees
from server.environments.trees import INSPECT_MODULES, build_tree, compile_catalogues

if TYPE_CHECKING:
    from pathlib import Path

PO = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n\nmsgid "{}"\nmsgstr "{}"\n'


def names(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}


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
    assert not any(name.endswith((".po", ".pyc", ".in")) for name in files)
    assert [name for name in files if name.count("/") == 1 and name[:7] == "server/"] == [
        "server/__init__.py"
    ]
    assert (tree / "server" / "__init__.py").read_bytes() == b""


def test_compiled_messages_are_read_by_gettext(tmp_path: Path) -> None:
    tree = build_tree(tmp_path, "model_server")
    for language in ("ru", "en"):
        texts = gettext.translation("persephone", tree / "server" / "locale", [language])
        assert texts.gettext("archive_no_model") != "archive_no_model"
        assert texts.gettext("tensor_shape") != "tensor_shape"


def test_the_inspection_tree_holds_nothing_but_its_modules(tmp_path: Path) -> None:
    tree = build_tree(tmp_path, "inspect")
    assert names(tree) == {"server/__init__.py", "server/artifacts/__init__.py"} | {
        f"server/artifacts/{name}.py" for name in INSPECT_MODULES
    }


def test_the_inspection_imports_only_the_standard_library_and_its_own_modules(
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
                own = name == "server.artifacts" or (
                    name.removeprefix("server.artifacts.") in INSPECT_MODULES
                )
                assert own or name.partition(".")[0] in sys.stdlib_module_names, (path.name, name)


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
