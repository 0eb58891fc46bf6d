"""Renders codes and parameters as sentences in the reader's language."""

from __future__ import annotations

import gettext
import logging
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from server.scrubbing import LIMIT, without_full_stop

logger = logging.getLogger(__name__)

DOMAIN = "persephone"
LANGUAGES = ("ru", "en")
LOCALE = Path(__file__).resolve().parent.parent / "locale"
"""Compiled catalogues of the generated tree."""

IN_WORDS = {
    "field_malformed": ("expected", "found"),
    "field_missing": ("expected",),
    "tensor_value": ("expected", "found"),
}
"""Parameters whose values are words of ours, which the catalogues have too, by code."""

_TEXT_LIMIT = 600
_REMEMBERED = 256


def language_of(accept_language: Optional[str]) -> str:
    """Choose between the languages that exist; Russian when neither is asked for."""
    best, best_weight = LANGUAGES[0], 0.0
    for part in (accept_language or "").split(","):
        tag, _, options = part.partition(";")
        language = tag.strip().lower().split("-")[0]
        weight = _weight(options)
        if language in LANGUAGES and weight > best_weight:
            best, best_weight = language, weight
    return best


def _weight(options: str) -> float:
    name, _, value = options.strip().partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


class Messages:
    """The catalogues of one process, read once.

    Where no catalogue was compiled, a text is its code.
    """

    def __init__(self, locale: Path = LOCALE) -> None:
        self._catalogues: Dict[str, gettext.NullTranslations] = {
            language: gettext.translation(DOMAIN, str(locale), [language], fallback=True)
            for language in LANGUAGES
        }
        self._languages: Dict[Optional[str], str] = {}

    def text(
        self, code: str, params: Mapping[str, Any], accept_language: Optional[str] = None
    ) -> str:
        """Return the sentence of a code, 600 characters at most."""
        catalogue = self._catalogues[self._language(accept_language)]
        sentence = catalogue.gettext(code)
        shown = {key: _cut(str(value), LIMIT) for key, value in params.items()}
        for name in IN_WORDS.get(code, ()):
            # Of an empty text gettext returns the head of the catalogue.
            if shown.get(name):
                shown[name] = catalogue.gettext(shown[name])
        if "evidence" in shown:
            shown["evidence"] = without_full_stop(shown["evidence"])
        try:
            sentence = sentence.format_map(shown)
        except (KeyError, IndexError, ValueError):
            logger.warning("the sentence of %s does not fit its parameters", code)
        return _cut(sentence, _TEXT_LIMIT)

    def _language(self, accept_language: Optional[str]) -> str:
        found = self._languages.get(accept_language)
        if found is None:
            found = language_of(accept_language)
            if len(self._languages) < _REMEMBERED:
                self._languages[accept_language] = found
        return found


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
