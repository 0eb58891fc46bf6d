from __future__ import annotations

import gzip
import re
import string
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from babel.messages.pofile import read_po

from server import messages as service_messages
from server.artifacts import recognise as recognise_module
from server.artifacts.recognise import recognise
from server.messages import LANGUAGES, LOCALE_DIR, MAX_LENGTH, Messages, preferred_language
from server.model_server import messages as model_messages
from server.model_server import protocol, tensors
from server.pipeline import steps
from tests.support.model_replica import compiled_messages

if TYPE_CHECKING:
    from collections.abc import Iterator


def catalogues() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Language, domain and texts of every catalogue."""
    for path in sorted(LOCALE_DIR.glob("*/LC_MESSAGES/*.po")):
        with path.open("rb") as file:
            texts = {str(one.id): str(one.string) for one in read_po(file) if one.id}
        yield path.parts[-3], path.stem, texts


def fields(text: str) -> set[str]:
    """The parameters that a text names, without formats."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_a_code_in_two_domains_takes_the_same_parameters() -> None:
    seen: dict[str, set[str]] = {}
    for _, name, texts in catalogues():
        for code, text in texts.items():
            assert seen.setdefault(code, fields(text)) == fields(text), (name, code)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "ru"),
        ("", "ru"),
        ("*", "ru"),
        ("ru", "ru"),
        ("ru-RU,ru;q=0.9,en-US;q=0.8", "ru"),
        ("en", "en"),
        ("EN-us", "en"),
        ("en-US,en;q=0.9,ru;q=0.8", "en"),
        ("de", "ru"),
        ("de, en;q=0.5", "en"),
        ("de, en;q=0.5, ru;q=0.4", "en"),
        ("en;q=0", "ru"),
        ("ru;q=0, en;q=0.1", "en"),
        ("en;q=0.5, ru;q=0.5", "en"),
        ("*;q=0.9, en;q=0.8", "ru"),
        ("en;q=2", "ru"),
        ("en;q=x", "ru"),
        (";;;,,,", "ru"),
        ("english", "ru"),
        ("en," * 5000, "en"),
        ("\udcff", "ru"),
    ],
)
def test_the_better_liked_language_is_chosen(header: str | None, language: str) -> None:
    assert preferred_language(header) == language
    assert Messages().language(header) == language


def test_parameters_are_filled_in_on_one_line_and_bounded() -> None:
    messages = Messages()
    text = messages.render(
        "env_unknown", {"value": "a\r\nb\x00c\u2028\u202ed", "known": ("x", "y")}, "en"
    )
    assert text == "There is no environment a b c d. Name one of: x, y."
    for language in LANGUAGES:
        long = messages.render("env_unknown", {"value": "я" * 5000, "known": "z" * 5000}, language)
        assert len(long) <= MAX_LENGTH


@pytest.mark.parametrize(
    ("head", "ru", "en"),
    [
        (b"plain words", "текст", "text"),
        (b"#!/bin/sh", "скрипт", "a script"),
        (b"\x00" * 9, "одни нули", "nothing but zeros"),
        (b"", "пустой файл", "an empty file"),
        (b"\xfe\xdc\x01", "неизвестные двоичные данные", "unknown binary data"),
        (gzip.compress(b"plain words", mtime=0), "gzip (текст)", "gzip (text)"),
        (b"\x1f\x8b\x08" + b"\xff" * 20, "повреждённый gzip", "damaged gzip"),
        (b"%PDF-1.4", "PDF", "PDF"),
    ],
)
def test_what_a_file_is_is_said_in_the_readers_language(head: bytes, ru: str, en: str) -> None:
    params = {"found": recognise(head).found}
    said = {
        each: Messages().render("artifact_type_unsupported", params, each) for each in LANGUAGES
    }
    assert f" это {ru}." in said["ru"]
    assert f" it is {en}." in said["en"]


def test_the_words_are_those_that_files_and_fields_are_told_by() -> None:
    words = {name: texts for _, name, texts in catalogues() if name == "words"}["words"]
    modules = (recognise_module, protocol, tensors, steps)
    source = "".join(Path(module.__file__).read_text() for module in modules)
    assert [word for word in words if word not in source] == []
    # What a user wrote is no word of ours.
    assert "«text»" in Messages().render("model_unknown", {"found": "text", "expected": "x"}, "ru")


@pytest.mark.parametrize(
    ("code", "params", "ru", "en"),
    [
        (
            "tensor_value",
            {"tensor": "x", "datatype": "INT64", "expected": "whole numbers", "found": "1.5"},
            "ожидаются целые числа, получено: 1.5.",
            "expected whole numbers, got 1.5.",
        ),
        (
            "tensor_value",
            {"tensor": "number", "datatype": "FP32", "expected": "numbers", "found": "boolean"},
            "«number» типа FP32: ожидаются числа, получено: логическое значение.",
            "expected numbers, got boolean.",
        ),
        (
            "field_malformed",
            {"field": "inputs", "expected": "array", "found": "null"},
            "Поле inputs: ожидается массив, получено: null.",
            "Field inputs: expected array, got null.",
        ),
        (
            "field_missing",
            {"field": "inputs", "expected": "array"},
            "Нет поля inputs: ожидается массив.",
            "Field inputs is missing: expected array.",
        ),
    ],
)
def test_what_a_field_holds_is_said_in_the_readers_language(
    tmp_path: Path, code: str, params: dict[str, str], ru: str, en: str
) -> None:
    in_a_model = compiled_messages(tmp_path)
    for language, said in (("ru", ru), ("en", en)):
        assert said in Messages().render(code, params, language)
        assert said in in_a_model.text(code, params, language)


def test_units_are_those_of_the_readers_language() -> None:
    for size, ru in (("3.23 KB", "3.23 КБ"), ("1.5 MB", "1.5 МБ")):
        params = {"size": size, "digest": "ab"}
        assert f": {ru}, SHA" in Messages().render("integrity_done", params, "ru")
        assert f": {size}, SHA" in Messages().render("integrity_done", params, "en")
        assert f"({ru})" in Messages().render("integrity_running", params, "ru")


def test_one_thing_has_one_name_in_russian() -> None:
    others = re.compile(r"\bслужб|видеокарт", re.IGNORECASE)
    for language, name, texts in catalogues():
        if language == "ru":
            assert [code for code in texts if others.search(texts[code])] == [], name


def test_both_processes_know_the_same_words_of_fields() -> None:
    assert model_messages.IN_WORDS.items() <= service_messages._IN_WORDS.items()


def test_text_of_a_user_is_never_taken_as_a_format() -> None:
    text = Messages().render("run_id_malformed", {"value": "{0.__class__}{known}%s"}, "en")
    assert "{0.__class__}{known}%s" in text


def test_what_was_said_is_told_whole_and_its_full_stop_once(tmp_path: Path) -> None:
    said = "Fail: " + "x" * 200 + " 2 by 3"
    for evidence in (said, f"{said}.", f"{said}. ."):
        params = {"evidence": evidence}
        for text in (
            Messages().render("model_raised", params, "en"),
            compiled_messages(tmp_path / str(len(evidence))).text("model_raised", params, "en"),
        ):
            assert f": {said}. Check " in text


@pytest.mark.parametrize("language", ["ru", "en", None, "xx"])
@pytest.mark.parametrize(
    ("code", "params"),
    [("no_such_code", {}), ("env_unknown", {}), ("env_unknown", None), ("a\nb", {"x": 1})],
)
def test_rendering_never_fails(code: str, params: dict[str, object] | None, language: str) -> None:
    text = Messages().render(code, params, language)
    assert code.replace("\n", " ") in text
    if code != "env_unknown":
        assert text == Messages().render("unknown_failure", {"code": code}, language)
    assert bool(re.search("[а-яА-Я]", text)) == (language != "en")


def test_no_text_names_a_path_of_a_machine() -> None:
    for language, name, texts in catalogues():
        for code, text in texts.items():
            assert not re.search(r"/(home|root|work|opt|tmp|etc|usr|var)/", text), (
                language,
                name,
                code,
            )
