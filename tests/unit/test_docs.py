"""The pages say what the code says: routes, codes, statuses, files, commands, links."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from babel.messages.pofile import read_po

from server.api import errors as api_errors
from server.api.reference import Reference
from server.messages import WORDS
from server.model_server import refusals
from server.routes import routes
from server.setting_values import PREFIX
from server.settings import Settings
from server.states import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs" / "api.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
ROW = re.compile(r"^\| `([a-z][a-z0-9_]*)` \|(?: ([^|]*) \|)? (.+) \|$")
TOP_FOLDERS = "server|metrics|gpu|tests|docs|examples|benchmarks"


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ── docs/api.md: endpoints and codes


def test_every_route_is_documented_and_no_other() -> None:
    served = {
        f"{definition.method} {definition.path}" for definition in routes(Reference(Settings()))
    }
    documented = re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[^`]*)`", API.read_text())

    assert set(documented) == served


def test_every_step_is_documented_in_its_order() -> None:
    models = (ROOT / "docs" / "models.md").read_text()
    table = models.partition("## Steps of a preparation")[2].partition("\n## ")[0]

    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == [step.value for step in Step]


@cache
def documented_codes() -> dict[str, tuple[str, str]]:
    """Return code -> (status, text) of the tables in docs/api.md."""
    rows = map(ROW.fullmatch, API.read_text().partition("\n## Codes\n")[2].splitlines())
    return {row[1]: (row[2] or "", row[3].replace("\\|", "|")) for row in rows if row is not None}


@cache
def texts() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "server" / "locale" / "en" / "LC_MESSAGES").glob("*.po")):
        if path.name == WORDS:
            continue
        with path.open("rb") as file:
            for message in read_po(file):
                if message.id:
                    found[message.id] = message.string.replace("{{", "{").replace("}}", "}")
    return found


def test_every_code_is_documented_with_its_english_text() -> None:
    documented = {code: text for code, (_, text) in documented_codes().items()}
    wanted = [
        f"| `{code}` | … | {text} |"
        for code, text in texts().items()
        if documented.get(code) != text
    ]

    assert not wanted, "docs/api.md needs these rows:\n" + "\n".join(wanted)


def test_no_code_is_documented_that_has_no_text() -> None:
    assert set(documented_codes()) - set(texts()) == set()


def test_every_refusal_and_failure_says_what_happened_and_what_to_do() -> None:
    progress = API.read_text().partition("\n### Progress and success\n")[2]
    short = [
        code
        for code, text in texts().items()
        if f"| `{code}` |" not in progress and len(re.findall(r"[.:;](?:\s|$)", text)) < 2
    ]

    assert short == []


def calls() -> Iterator[tuple[str, list[ast.expr]]]:
    """Yield the name and the arguments of every call in the product."""
    for folder in ("server", "gpu"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield getattr(node.func, "id", getattr(node.func, "attr", "")), node.args


def raised_statuses() -> Iterator[tuple[str, int]]:
    """Yield the codes of errors that become an answer, with the status of their class."""
    classes = {kind.__name__: status for kind, status in api_errors.STATUS.items() if status != 422}
    for name, arguments in calls():
        values = [item.value for item in arguments if isinstance(item, ast.Constant)]
        if name in classes and values and isinstance(values[0], str):
            yield values[0], classes[name]
        elif name == "BadInputError" and values:
            yield str(values[0]), refusals._STATUSES.get(str(values[0]), 400)
        elif name == "Refusal" and len(values) > 1:
            yield str(values[1]), int(values[0])
    yield from refusals._STATUSES.items()


def test_every_answer_is_documented_with_its_status() -> None:
    codes = documented_codes()
    wrong = {
        f"{code}: {status}, not {codes[code][0]!r}"
        for code, status in raised_statuses()
        if code in codes and str(status) not in codes[code][0]
    }

    assert wrong == set()


# ── all pages


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_pages_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{TOP_FOLDERS})/[\w./-]*)`", page.read_text())

    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_of_make_that_a_page_names_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z0-9]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(re.findall(r"```.*?```|`[^`]+`", page.read_text(), re.DOTALL))
    named = re.findall(r"(?:`|^|\w=\S+ )make ([a-z0-9]+)", code, re.MULTILINE)

    assert set(named) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.__slots__}
    named = set(re.findall(rf"\b{PREFIX}[A-Z][A-Z_]*[A-Z]", page.read_text()))

    assert named - known == set()


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "README.md").read_text()))
    pages = {page_name(path) for path in (ROOT / "docs").glob("*.md")}

    assert pages - linked == set()
