"""Takes paths of the machine and secrets out of text that people will read.

Runs in model processes and in both trees too: the standard library only, Python 3.9.
"""

from __future__ import annotations

import re

LIMIT = 300
"""Longest line of evidence, in characters."""

CONTROLS = r"\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""What may not reach a reader's terminal or page, but for a tabulator, as a regular expression's set.

Control characters, ends of lines, half characters, and what turns the direction of the text around,
so that it reads as something else.
"""

_LOOKED_AT = 10 * LIMIT
_UNPRINTABLE = re.compile(rf"\x1b\[[0-9;]*[A-Za-z]|[\t{CONTROLS}]")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")

_URL = re.compile(r"\b(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{1,30})://(?P<rest>[^\s'\"`<>|…]*)")
_HOST = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d+)?")
_CLOSING = ").,;:]}"

_UNMISTAKABLE = (
    r"(?:password|passwd|passphrase|secret(?:[_-]?key)?|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|(?:access|auth|refresh|session|api|bearer)[_-]?token)|authorization"
)
# These names mean many things; in a query they are what lets somebody in.
_IN_A_QUERY = re.compile(
    r"(?P<name>[?&;](?:token|key|sig|signature|auth|code|pwd|sas|credential)=)(?P<value>[^\s&;'\"…]+)",
    re.IGNORECASE,
)
_SECRETS = (
    # What a digest consists of stands behind it, in quotes and between commas.
    re.compile(
        r"(?P<name>\bauthorization[\"']?\s?[=:]\s?)(?P<value>[\"']?digest\s.*)", re.IGNORECASE
    ),
    re.compile(
        rf"(?P<name>(?<![\w-])--(?:[\w-]+-)?(?:{_UNMISTAKABLE}|token)\s)(?P<value>[^\s,;&'\"…-][^\s,;&'\"…]*)",
        re.IGNORECASE,
    ),
    # DB_PASS=, and Pwd= of a connection string; but no pass=2, which counts.
    re.compile(r"(?P<name>\b(?:[A-Z][A-Z0-9_]*_PASS|(?i:pwd))\s?=\s?)(?P<value>[^\s,;&'\"…]+)"),
    re.compile(
        rf"(?P<name>(?:{_UNMISTAKABLE})[\"']?\s?(?:=>?|:)\s?)"
        r"(?P<value>[bru]{0,2}(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')|(?:(?:bearer|basic|token|negotiate)\s+)?[^\s,;&'\"…]+)",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<name>(?<![\w-])token=)(?P<value>[^\s,;&'\")…]{8,})", re.IGNORECASE),
    # HF_TOKEN, but no eos_token, whose value is a word of a model.
    re.compile(
        r"(?P<name>(?:\b[A-Z][A-Z0-9_]*_TOKEN[\"']?|[\"']token[\"'])\s?[=:]\s?)"
        r"(?P<value>[bru]{0,2}[\"'][^\s\"']{8,}[\"']|[^\s,;&'\")…]{8,})"
    ),
    re.compile(r"(?P<name>\bbearer\s+)(?P<value>[\w.~+/=-]{8,})", re.IGNORECASE),
    re.compile(
        r"(?P<name>\b(?:hf_|gh[oprsu]_|psk_|npm_|sk_live_|github_pat_|glpat-|sk-|xox[abp]-))(?P<value>[\w-]{16,})"
    ),
    re.compile(r"(?P<name>\bAKIA)(?P<value>[0-9A-Z]{16})\b"),
    re.compile(r"(?P<name>\beyJ)(?P<value>[\w-]{8,999}\.[\w-]{8,999}\.[\w-]*)"),
)

_START = re.compile(
    r"(?<![\w/)\]*…\\])(?<!\d\.)(?!(?<=<)/\w+>)/(?=[\w.~@%+$-])"  # /usr, but no 3/4 and no </s>
    r"|(?<![\w/)\]*…:\\])//+(?=[\w.~@%+$-])"
    r"|(?<![\w.…])\.\.?[/\\](?=[^\s…])"
    r"|(?<![\w/~…])~(?:[a-z_][\w-]*)?/"
    r"|(?<!\w)[A-Za-z]:[\\/](?=[^\s…])"
    r"|(?<![\w\\…])\\{2,4}(?=[^\s\\/'\"`<>|…]+\\)"
)
_QUOTES = "'\"`"
_QUOTED_CHARS = 1000
# Up to what surely ends a path; an apostrophe within a name does not.
_RUN = re.compile(r"(?:[^\s'\"`<>|…]|(?<=\w)'(?=\w))*")
_LAST_NAME = re.compile(r"(?:[^:,;()\[\]{}/\\]|\([\w ]*\)(?=[.\w]))*")
_SEPARATOR = re.compile(r"[/\\]")
_ENDING = re.compile(r"\.[A-Za-z]\w{0,8}[).,:;\]}]*$")
_WORD = re.compile(r" {1,2}(?P<word>[\w.@+&()-][^\s'\"`<>|…]*)")
_WORDS_OF_A_NAME = 3
_FILE = re.compile(
    r"(?<=[/\\])[\w.+-]+\.(?:py|so(?:\.[\d.]+)?|onnx|pt|pkl|joblib|json|npz|npy|txt|bin)$"
)


def scrubbed(text: str) -> str:
    """Return one line without paths, secrets, addresses and control characters, of ``LIMIT`` at most."""
    text = _UNPRINTABLE.sub(" ", text[:_LOOKED_AT])
    text = " ".join(_ADDRESS.sub("0x…", _scrubbed(text, keeps_names=False)).split())
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"


def without_full_stop(evidence: str) -> str:
    """Return what was said, fit to stand before the full stop of a sentence of ours."""
    return evidence.rstrip(". ")


def without_paths(text: str) -> str:
    """Return a line without secrets, and with the names of files in place of their paths."""
    return _scrubbed(text, keeps_names=True)


def _scrubbed(text: str, *, keeps_names: bool) -> str:
    # A path may end in a word such as secret, and a query is a part of one.
    text = _IN_A_QUERY.sub(r"\g<name>…", _URL.sub(_host_only, text))
    text = _without_paths(text, keeps_names=keeps_names)
    for pattern in _SECRETS:
        text = pattern.sub(r"\g<name>…", text)
    return text


def _host_only(found: re.Match[str]) -> str:
    rest, scheme = found["rest"], found["scheme"]
    inside = rest.rstrip(_CLOSING)
    end = rest[len(inside) :]
    host = _HOST.match(inside)
    if "@" in inside or host is None or scheme.lower() == "file":
        # Of a password that holds a slash, nobody can tell where the host begins.
        return f"{scheme}://…{end}"
    return f"{scheme}://{host[0]}{'' if len(inside) == host.end() else '/…'}{end}"


def _without_paths(text: str, *, keeps_names: bool) -> str:
    parts, position = [], 0
    while (found := _START.search(text, position)) is not None:
        end = _end_of_path(text, found.start())
        name = _FILE.search(text[found.start() : end]) if keeps_names else None
        parts += [text[position : found.start()], "…" if name is None else f"…/{name[0]}"]
        position = end
    return "".join(parts) + text[position:]


def _end_of_path(text: str, start: int) -> int:
    quote = text[start - 1] if start else ""
    if quote and quote in _QUOTES:
        closing = re.compile(rf"{quote}(?!\w)").search(text, start, start + _QUOTED_CHARS)
        if closing is not None:
            return closing.start()
    end = _end_of_run(text, start)
    while (further := _continued(text, start, end)) is not None:
        end = further
    return end


def _end_of_run(text: str, start: int) -> int:
    """Return where the last name of an unbroken path ends: before what punctuates the sentence."""
    run = _RUN.match(text, start)
    stop = start if run is None else run.end()
    last = max(text.rfind("/", start, stop), text.rfind("\\", start, stop))
    name = _LAST_NAME.match(text, last + 1, stop)
    return last + 1 if name is None else name.end()


def _continued(text: str, start: int, end: int) -> int | None:
    """Return where a path goes on behind a blank in one of its names, if it seems to."""
    has_ending = _ENDING.search(text[max(start, end - 20) : end]) is not None
    position, names = end, 0
    while names < _WORDS_OF_A_NAME:
        found = _WORD.match(text, position)
        if found is None or _START.match(text, found.start("word")):
            return None
        word = found["word"]
        separators = len(_SEPARATOR.findall(word))
        is_file = _ENDING.search(word) is not None
        is_sure = separators > 1 or "\\" in word or (separators and is_file)
        if is_sure or (is_file and not has_ending):
            start_of_word = found.start("word")
            if separators:
                return _end_of_run(text, start_of_word)
            return start_of_word + len(word.rstrip(_CLOSING))
        names += not separators
        position = found.end()
    return None
