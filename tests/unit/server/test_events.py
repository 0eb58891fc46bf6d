from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from server import keys
from server.api import prepare
from server.engines.local_replica import _failure_in, _refusal
from server.environments.plan import FURTHER
from server.errors import StepFailedError
from server.messages import Messages
from server.pipeline.report import read_report
from server.records import Text
from server.sandbox.events import (
    Events,
    last_words,
    read_event,
    read_failure,
    read_line,
    read_text,
)

if TYPE_CHECKING:
    from server.sandbox.child import Child

REPORT: dict[str, Any] = {
    "ok": True,
    "kind": "sklearn",
    "format": "joblib",
    "file": "model.joblib",
    "sample": "sample.npz",
    "requirements": "numpy\n",
    "made_with": {"scikit-learn": "1.5.0"},
}

# Whatever json.loads can return, lone surrogates and numbers without a bound among it.
SAID = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "[]",
        "1",
        b"\xff\xfe",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "[" * 50 + "]" * 50 + "}",
        '{"a": ' + "9" * 10_000 + "}",
        '{"a": ' + "9" * 30 + "}",
    ],
)
def test_a_line_that_is_no_event_is_one_kind_of_error(line: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own messages among them
        read_event(line)


@given(SAID)
def test_what_was_read_can_be_written_again(said: Any) -> None:
    try:
        event = read_event(json.dumps({"event": "x", "said": said}))
    except ValueError:
        return
    orjson.dumps(event)


@given(st.dictionaries(st.sampled_from(["code", "params", "evidence", "event"]), SAID) | SAID)
def test_a_failure_is_a_code_and_plain_parameters_or_none(said: Any) -> None:
    try:
        code, evidence, params = read_failure(said)
    except ValueError:
        return
    assert code.isascii()
    assert isinstance(evidence, str)
    assert not {"evidence", "permanent", "warnings"} & params.keys()


@pytest.mark.parametrize("code", ["", "A", "a b", "x" * 65, "<b>", "я_нет", 1, None, ["a"]])
def test_a_code_that_is_none_is_refused(code: Any) -> None:
    with pytest.raises(ValueError, match="code"):
        read_text({"code": code})


def test_parameters_are_bounded() -> None:
    read = read_text({"code": "ab", "params": {"x": "y" * 1000, "z": [["y" * 1000]] * 1000}})

    assert len(read["params"]["x"]) == 300
    assert len(read["params"]["z"]) == 100
    with pytest.raises(ValueError, match="params"):
        read_text({"code": "ab", "params": {str(number): 1 for number in range(1000)}})


def test_a_failure_of_a_replica_is_read_without_its_tricks() -> None:
    params = {"self": 1, "code": 2, "permanent": False, "warnings": "x", "n": 3}
    line = json.dumps(
        {
            "event": "failed",
            "code": "model_out_of_memory",
            "params": params,
            "evidence": "in /srv/data/m.onnx: \ud800\x1b[1mno",
        }
    )

    failure = _failure_in(line)

    assert failure is not None
    assert (failure.code, failure.permanent) == ("model_out_of_memory", True)
    assert failure.params == {"self": 1, "code": 2, "n": 3}
    assert failure.evidence == "in …: ? no"


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"event":"failed"}',
        '{"event":"failed","code":"Not A Code"}',
        '{"event":"failed","code":"ab","params":[1]}',
        '{"event":["failed"]}',
        "null",
    ],
)
def test_a_replica_that_talks_nonsense_has_named_no_failure(line: str) -> None:
    assert _failure_in(line) is None
    assert _refusal(line.encode()).code == "replica_not_ready"


def test_the_last_words_are_the_last_lines_with_any() -> None:
    assert last_words(["first", "last", "", "  ", "  ^^^^"]) == "first | last"
    assert last_words(str(number) for number in range(9)) == "4 | 5 | 6 | 7 | 8"
    assert last_words([]) == ""


def test_the_very_last_words_are_kept_and_no_path_is() -> None:
    assert last_words(["a" * 200, "b" * 200, "at /srv/secret: no"]) == f"{'b' * 200} | at …: no"
    assert last_words(["before", "x" * 1000]) == "x" * 299 + "…"


@pytest.mark.parametrize(
    ("said", "evidence"),
    [
        ("cannot open /srv/data/m.onnx: gone", "cannot open …: gone"),
        ("in 'C:\\models\\m.onnx'", "in '…'"),
        ("3/4 of N/A stay", "3/4 of N/A stay"),
        ("\x1b[1;31mred\x1b[m\tand\x00 tabs\ud800", "red and tabs"),
        ("x" * 1000, "x" * 299 + "…"),
    ],
)
def test_evidence_has_no_paths_and_nothing_unprintable(said: str, evidence: str) -> None:
    assert StepFailedError("step_crashed", evidence=said).evidence == evidence


def test_evidence_that_was_kept_unclean_is_shown_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "language_of", lambda _request: "en")
    app = web.Application()
    app[keys.MESSAGES] = Messages()
    request = make_mocked_request("GET", "/", app=app)

    shown = prepare.rendered(
        request, Text(code="step_crashed", params={"evidence": "a\x1b\ud800\nb"})
    )

    assert shown is not None
    assert shown.endswith("(a b)")


def test_a_crash_loop_shows_the_last_words_of_its_last_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepare, "language_of", lambda _request: "en")
    app = web.Application()
    app[keys.MESSAGES] = Messages()
    request = make_mocked_request("GET", "/", app=app)
    crash = {"reason": "signal 11", "evidence": "Fatal Python error"}

    shown = prepare.rendered(
        request,
        Text(code="crash_loop", params={"warnings": [{"code": "replica_ended", "params": crash}]}),
    )

    assert shown is not None
    assert "(signal 11)" in shown
    assert shown.endswith("(Fatal Python error)")
    orjson.dumps(shown)


def test_the_packages_that_a_report_may_ask_for_are_those_that_a_plan_has() -> None:
    for package in FURTHER:
        assert read_report({**REPORT, "packages": [package] * 2}).packages == (package,)


def test_a_report_of_known_words_is_taken() -> None:
    report = read_report(REPORT)

    assert (report.kind, report.format, report.file) == ("sklearn", "joblib", "model.joblib")
    assert report.made_with == {"scikit-learn": "1.5.0"}


@pytest.mark.parametrize(
    "changed",
    [
        {"file": "../model.joblib"},
        {"file": "model.onnx"},
        {"kind": "onnx"},
        {"kind": ["sklearn"]},
        {"format": "pickled"},
        {"format": {}},
        {"sample": "sample.npy"},
        {"sample": ["sample.npz"]},
        {"sample": ""},
        {"requirements": 1},
        {"requirements": "x" * 1_000_000},
        {"packages": ["evil"]},
        {"packages": [["xgboost"]]},
        {"packages": "xgboost"},
        {"made_with": {"a": 1}},
        {"made_with": ["a"]},
        {"made_with": {"a": "1" * 1000}},
        {"made_with": {str(number): "1" for number in range(1000)}},
    ],
)
def test_a_report_with_any_other_word_is_a_named_failure(changed: dict[str, Any]) -> None:
    with pytest.raises(StepFailedError, match="inspection_failed"):
        read_report({**REPORT, **changed})


@given(st.sampled_from(sorted(REPORT)), SAID)
def test_whatever_stands_in_a_report_it_is_taken_or_a_named_failure(name: str, said: Any) -> None:
    try:
        read_report({**REPORT, name: said})
    except StepFailedError as error:
        assert error.code == "inspection_failed"


class Says:
    """A child that says lines."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    async def line(self) -> str | None:
        return next(self._lines, None)


async def test_events_are_read_among_whatever_else_is_said() -> None:
    events = Events(cast("Child", Says("no event", '{"a": 1}', "[]", '{"b": 2}', "{")))
    assert [await events.next() for _ in range(3)] == [{"a": 1}, {"b": 2}, None]


async def test_of_long_lines_a_few_are_read_and_of_short_ones_all() -> None:
    """To read a long one takes as long as hundreds of the service's other callers do."""
    long = json.dumps({"long": "x" * 5000})
    events = Events(cast("Child", Says(*[long, '{"short": 1}'] * 50)))
    read = []
    while (event := await events.next()) is not None:
        read.append(*event)
    assert Counter(read) == {"long": 4, "short": 50}


@pytest.mark.parametrize("part", ["[],", "{},", "1,"])
async def test_a_line_of_more_parts_than_any_passport_is_not_read(part: str) -> None:
    with pytest.raises(ValueError, match="parts"):
        await read_line('{"a": [' + part * 200_000 + "0]}")
    largest = json.dumps({"data": [0.1234567890123456] * 65_536})
    assert len((await read_line(largest))["data"]) == 65_536
