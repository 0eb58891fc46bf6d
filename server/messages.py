"""Every sentence for people: catalogues of codes, rendered per answer in the reader's language."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from babel.messages.pofile import read_po

from server.scrubbing import CONTROLS, LIMIT, without_full_stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger(__name__)

Language = Literal["ru", "en"]

LANGUAGES: tuple[Language, ...] = ("ru", "en")
DEFAULT_LANGUAGE: Language = "ru"
OWN_DOMAIN = "service"
FALLBACK_CODE = "unknown_failure"
WORDS = "words.po"
"""Catalogue of what stands in sentences as a value, by its English words."""
MAX_LENGTH = 600
MAX_VALUE_LENGTH = LIMIT

LOCALE_DIR = Path(__file__).parent / "locale"

# Parameters whose values are words of ours; in all others they are names, or what a user wrote.
_IN_WORDS = {
    "artifact_type_unsupported": ("found",),
    "field_malformed": ("expected", "found"),
    "field_missing": ("expected",),
    "integrity_done": ("size",),
    "integrity_running": ("size",),
    "tensor_value": ("expected", "found"),
}
_CONTROL = re.compile(rf"[\t{CONTROLS}]+")
_RANGE = re.compile(
    r"\s*(?P<tag>[A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]{1,64})?\s*(?:;\s*q=(?P<q>[01](?:\.\d{0,3})?)\s*)?"
)


class Messages:
    """The texts of all domains (``locale/<language>/LC_MESSAGES/*.po``), merged.

    A model process has its own texts for a few codes that the service has too; here the
    service's stand.
    """

    def __init__(self, root: Path = LOCALE_DIR) -> None:
        folders = {language: root / language / "LC_MESSAGES" for language in LANGUAGES}
        self._texts: dict[Language, dict[str, str]] = {
            language: _load(folder) for language, folder in folders.items()
        }
        self._words: dict[Language, dict[str, str]] = {
            language: _read(folder / WORDS) for language, folder in folders.items()
        }
        self.language = lru_cache(maxsize=256)(preferred_language)

    def codes(self, language: Language) -> frozenset[str]:
        """Return all codes that have a text in ``language``."""
        return frozenset(self._texts[language])

    def text(self, code: str, language: Language) -> str | None:
        """Return the text of ``code`` before its parameters are filled in, if there is one."""
        return self._texts[language].get(code)

    def render(
        self, code: str, params: Mapping[str, Any] | None = None, language: str | None = None
    ) -> str:
        """Return one sentence, at most 600 characters and on one line, in ``language`` (else Russian).

        A code without a text, or parameters that do not fit it, give a generic sentence that
        names the code: rendering never fails.
        """
        spoken: Language = "en" if language == "en" else DEFAULT_LANGUAGE
        texts = self._texts[spoken]
        template = texts.get(code)
        if template is not None:
            values = {name: _clean(value) for name, value in params.items()} if params else {}
            if "evidence" in values:
                values["evidence"] = without_full_stop(str(values["evidence"]))
            for name in _IN_WORDS.get(code, ()):
                values[name] = _worded(str(values.get(name, "")), self._words[spoken])
            try:
                return _bounded(template.format_map(values), MAX_LENGTH)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError):
                logger.warning("the text of %s does not fit its parameters", code)
        else:
            logger.warning("there is no text for %s", _clean(code))
        generic = texts.get(FALLBACK_CODE, "{code}")
        return _bounded(generic.format_map({"code": _clean(code)}), MAX_LENGTH)


def preferred_language(accept_language: str | None) -> Language:
    """Return the better liked of our languages (RFC 9110, 12.5.4); Russian when none is named."""
    best: tuple[float, Language] = (0.0, DEFAULT_LANGUAGE)
    for tag, quality in _ranges(accept_language or ""):
        language: Language | None = (
            "en" if tag == "en" else DEFAULT_LANGUAGE if tag in {"ru", "*"} else None
        )
        if language is not None and quality > best[0]:
            best = (quality, language)
    return best[1]


def _ranges(header: str) -> Iterator[tuple[str, float]]:
    for part in header[:1000].split(","):
        match = _RANGE.fullmatch(part)
        if match is not None:
            yield match["tag"].lower(), min(float(match["q"] or 1), 1.0)


def _load(folder: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in sorted(folder.glob("*.po"), key=lambda path: path.stem == OWN_DOMAIN):
        if path.name != WORDS:
            texts |= _read(path)
    return texts


def _read(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        catalogue = read_po(file, ignore_obsolete=True, abort_invalid=True)
    pairs = ((message.id, message.string) for message in catalogue)
    return {
        code: text
        for code, text in pairs
        if isinstance(code, str) and isinstance(text, str) and code and text
    }


def _worded(value: str, words: Mapping[str, str]) -> str:
    """Return a value of ours in the reader's language: ``damaged gzip``, ``gzip (text)``, ``3.2 KB``."""
    if value in words:
        return words[value]
    first, blank, rest = value.partition(" ")
    if blank and first in words:
        return f"{words[first]} {rest}"
    amount, blank, unit = value.rpartition(" ")
    if blank and unit in words:
        return f"{amount} {words[unit]}"
    outer, opening, inner = value.partition(" (")
    if opening and inner.endswith(")"):
        return f"{outer} ({_worded(inner[:-1], words)})"
    return value


def printable(text: str, length: int = MAX_VALUE_LENGTH) -> str:
    """Return a text of unknown origin as one line of at most ``length`` characters."""
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    return _bounded(text, length)


def _clean(value: Any) -> Any:
    """Make a parameter fit for a sentence: one line, bounded; numbers stay numbers."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        value = ", ".join(str(item) for item in value)
    return printable(str(value))


def _bounded(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
