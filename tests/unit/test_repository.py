"""What holds for the repository as a whole: sizes, packaging, docs and messages."""

from __future__ import annotations

import ast
import re
import string
import tomllib
from dataclasses import MISSING, fields
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from babel.messages.pofile import read_po
from packaging.requirements import Requirement

from server.messages import WORDS
from server.setting_values import PREFIX
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gpu", "metrics", "server")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "examples")
LANGUAGES = ("en", "ru")
LOCALE = ROOT / "server" / "locale"
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST_FILE = 400
LONGEST_TEXT = 600


def files_of(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def modules(*folders: str) -> list[Path]:
    return [path for path in files_of(*folders) if path.suffix == ".py"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ── sizes and places


def test_no_python_file_is_longer_than_400_lines() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in modules(*FOLDERS)}

    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_every_module_of_the_product_opens_with_a_sentence() -> None:
    silent = [
        name_of(path)
        for path in modules(*PACKAGES)
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]

    assert silent == []


def test_no_module_has_a_name_that_hides_a_package_of_ours() -> None:
    assert [name_of(path) for path in modules("server") if path.stem in PACKAGES] == []


def test_only_one_file_imports_the_gpu_library() -> None:
    importing = [path for path in modules(*PACKAGES) if "pynvml" in set(imported(path))]

    assert [name_of(path) for path in importing] == ["gpu/nvml.py"]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


MACHINE_PATHS = re.compile(r"/(?:work|root|opt|home|Users|mnt)/(?!persephone\b)[\w.-]+", re.ASCII)


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = []
    root_files = [path for path in ROOT.iterdir() if path.is_file()]
    for path in [*files_of(*FOLDERS, "docs", ".ci"), *root_files]:
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{name_of(path)}: {match}" for match in MACHINE_PATHS.findall(text)]

    assert found == []


def test_continuous_integration_runs_the_tests_and_nothing_else() -> None:
    run = ROOT / ".ci" / "run"

    assert run.stat().st_mode & 0o111
    assert run.read_text().rstrip().splitlines()[-1] == "make test"


# ── packaging


@cache
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_the_wheels_top_level_is_gpu_metrics_server() -> None:
    include = project()["packages"]["find"]["include"]
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()}
    shipped = {name for name in folders if any(fnmatch(name, pattern) for pattern in include)}

    assert shipped == set(PACKAGES)


def test_the_wheel_has_every_data_file() -> None:
    patterns = project()["package-data"]
    forgotten = [
        name_of(path)
        for package in PACKAGES
        for path in files_of(package)
        if path.suffix != ".py"
        and not any(
            path.relative_to(ROOT / package).full_match(pattern)
            if hasattr(path, "full_match")
            else path.match(f"{package}/{pattern}")
            for pattern in patterns.get(package, [])
        )
    ]

    assert forgotten == []


def test_every_folder_of_the_product_is_a_package() -> None:
    plain = {path.parent for path in modules(*PACKAGES)}

    assert [name_of(path) for path in sorted(plain) if not (path / "__init__.py").exists()] == []


def test_the_imported_service_is_the_one_of_this_checkout() -> None:
    import server

    assert Path(server.__file__).resolve() == ROOT / "server" / "__init__.py"


def test_the_image_offers_a_hundred_endpoint_ports_to_a_user_who_is_not_root() -> None:
    image = (ROOT / "Dockerfile").read_text()
    ports = re.search(rf"{PREFIX}ENDPOINT_PORTS=(\d+)-(\d+)", image)

    assert ports is not None
    assert int(ports[2]) - int(ports[1]) == 99
    assert f"EXPOSE 8000 {ports[1]}-{ports[2]}\n" in image
    assert f":{ports[1]}-{ports[2]}:{ports[1]}-{ports[2]}\n" in (ROOT / "compose.yaml").read_text()
    assert "\nUSER persephone\n" in image
    assert '\nENTRYPOINT ["' in image


def test_the_image_can_trace() -> None:
    image = (ROOT / "Dockerfile").read_text()

    assert "-r requirements.txt -r requirements-tracing.txt\n" in image
    assert "COPY requirements.txt requirements-tracing.txt ./\n" in image
    assert "!requirements-tracing.txt" in (ROOT / ".dockerignore").read_text().splitlines()


# ── docs


def default_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return ",".join(f"{name}={number:g}" if name else f"{number:g}" for name, number in value)
    if isinstance(value, tuple):
        return ("-" if value and isinstance(value[0], int) else ",").join(map(str, value))
    return str(value)


@pytest.mark.parametrize("spec", fields(Settings), ids=lambda spec: spec.name)
def test_every_setting_is_documented_with_its_default(spec: object) -> None:
    assert spec.default is not MISSING
    text = default_text(spec.default)
    shown = f"`{text}`" if text else "empty"
    start = f"| `{PREFIX}{spec.name.upper()}` | {shown} | "
    rows = (ROOT / "docs" / "settings.md").read_text().splitlines()

    assert any(row.startswith(start) and len(row) > len(start) + 10 for row in rows), start


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {PREFIX + spec.name.upper() for spec in fields(Settings)}
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "Dockerfile", ROOT / "compose.yaml"]:
        named = set(re.findall(rf"\b{PREFIX}[A-Z][A-Z_]*", path.read_text()))
        assert named - known == set(), path.name


@pytest.mark.parametrize(
    "listed",
    [
        "requirements.txt",
        "requirements-tracing.txt",
        "requirements-dev.txt",
        "server/model_server/requirements.in",
    ],
)
def test_every_dependency_has_a_reason(listed: str) -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    _, found, part = text.partition(f": {listed}\n")
    rows = re.findall(r"^\| `([\w-]+)` \| \S.+ \|$", part.partition("\n## ")[0], re.MULTILINE)

    assert found
    assert sorted(rows) == sorted(requirements(ROOT / listed))


def requirements(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line).name for line in lines if line and not line.startswith("-")]


def test_the_services_dependencies_are_pinned() -> None:
    lines = [*(ROOT / "requirements.txt").read_text().splitlines()]
    lines += (ROOT / "requirements-dev.txt").read_text().splitlines()
    lines += (ROOT / "requirements-tracing.txt").read_text().splitlines()

    loose = [line for line in lines if line and not line.startswith("-r ") and "==" not in line]
    assert loose == []


# ── messages


def catalogues(language: str) -> list[Path]:
    return sorted((LOCALE / language / "LC_MESSAGES").glob("*.po"))


def entries(language: str) -> Iterator[tuple[str, str]]:
    # Words are no codes: they are values in sentences.
    for path in (path for path in catalogues(language) if path.name != WORDS):
        with path.open("rb") as file:
            for message in read_po(file, abort_invalid=True):
                if message.id:
                    yield message.id, message.string


@cache
def messages(language: str) -> dict[str, str]:
    return dict(entries(language))


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_both_languages_have_the_same_catalogues() -> None:
    names = [[path.name for path in catalogues(language)] for language in LANGUAGES]

    assert names[0] == names[1] != []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_message_has_two_texts(language: str) -> None:
    unequal = {code for code, text in entries(language) if messages(language)[code] != text}

    assert unequal == set()


def test_every_message_has_a_text_in_both_languages() -> None:
    english, russian = messages("en"), messages("ru")

    assert set(english) ^ set(russian) == set()
    assert [code for code in english if not english[code] or not russian[code]] == []


def test_every_code_has_the_form_that_programs_rely_on() -> None:
    assert [code for code in messages("en") if not CODE.fullmatch(code)] == []


def test_both_texts_of_a_message_use_the_same_parameters() -> None:
    english, russian = messages("en"), messages("ru")
    unequal = [
        code
        for code in sorted(set(english) & set(russian))
        if placeholders(english[code]) != placeholders(russian[code])
    ]

    assert unequal == []


def test_parameters_are_plain_names() -> None:
    odd = [
        code
        for language in LANGUAGES
        for code, text in messages(language).items()
        if not all(name.isidentifier() for name in placeholders(text))
    ]

    assert odd == []


def test_a_text_fits_into_an_answer_and_is_in_its_language() -> None:
    for code, text in messages("ru").items():
        assert re.search("[а-яё]", text.lower()), code
    for code, text in messages("en").items():
        assert not re.search("[а-яё]", text.lower()), code
    long = [
        c for lang in LANGUAGES for c, text in messages(lang).items() if len(text) > LONGEST_TEXT
    ]
    assert long == []


def error_classes() -> set[str]:
    """Return the names of the classes of ours that end in Error or Failure."""
    return {
        node.name
        for path in modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Failure"))
    }


def literal_code(node: ast.AST, errors: set[str]) -> str | None:
    """Return the code that this expression writes down: in an error, or as ``"code": ...``."""
    value: ast.expr | None = None
    if isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in errors and node.args:
            value = node.args[0]
    elif isinstance(node, ast.Dict):
        for key, item in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "code":
                value = item
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    return None


def test_every_code_in_the_source_has_a_text() -> None:
    errors = error_classes()
    missing: dict[str, str] = {}
    for path in modules(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            code = literal_code(node, errors)
            if code is not None and CODE.fullmatch(code) and code not in messages("en"):
                missing[code] = f"{name_of(path)}:{node.lineno}"

    assert not missing, "\n".join(f"{code} {place}" for code, place in sorted(missing.items()))


def test_every_state_of_the_gpus_has_a_text() -> None:
    from gpu import placement
    from gpu.devices import Problem

    reasons = {placement.TAKEN, placement.BUSY, placement.MEMORY_IN_USE}
    reasons |= {placement.MEMORY_INSUFFICIENT, placement.UNHEALTHY}

    assert reasons | {problem.value for problem in Problem} <= set(messages("en"))


def test_every_code_is_named_in_a_test() -> None:
    quoted = re.compile(r"""["'](\w+)["']""")
    named = {word for path in modules("tests") for word in quoted.findall(path.read_text())}

    assert sorted(set(messages("en")) - named) == []
