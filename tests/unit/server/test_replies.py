from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from aiohttp.test_utils import make_mocked_request

from server.api.errors import STATUS, MisdirectedError, NoRouteError, status_of
from server.api.replies import Remembered, dumps, iso, present, reply
from server.errors import PersephoneError, StepFailedError

REQUEST = make_mocked_request("GET", "/")


def test_optional_fields_are_left_out_and_never_null() -> None:
    assert present(a=1, b=None, c="", d=0, e=False) == {"a": 1, "c": "", "d": 0, "e": False}


def test_times_are_utc_with_z() -> None:
    moment = datetime(2026, 1, 31, 12, 0, 0, 500, tzinfo=UTC)
    assert iso(moment) == "2026-01-31T12:00:00.000500Z"
    assert iso(moment.astimezone(timezone(timedelta(hours=3)))) == iso(moment)
    assert iso(None) is None
    assert json.loads(dumps({"at": moment}))["at"] == iso(moment)


def test_an_answer_is_json_and_bytes_are_json_already() -> None:
    for payload in ({"a": "я"}, dumps({"a": "я"})):
        response = reply(payload, 201, {"X-Extra": "1"})
        assert response.status == 201
        assert response.content_type == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Extra"] == "1"
        assert response.body == b'{"a":"\xd1\x8f"}'
    assert "X-Extra" not in reply({}).headers


def test_an_answer_is_made_again_only_for_another_record() -> None:
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"n": len(made)}

    answers = Remembered(limit=2)
    first, second = object(), object()
    bodies = [
        answers.reply(REQUEST, "k", record, make).body for record in (first, first, second, first)
    ]
    assert bodies == [b'{"n":1}', b'{"n":1}', b'{"n":2}', b'{"n":3}']
    for key in "abc":
        answers.reply(REQUEST, key, first, make)
    assert len(answers._answers) <= 2


def all_errors(kind: type[PersephoneError]) -> list[type[PersephoneError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors(PersephoneError))
def test_every_error_has_the_status_of_its_nearest_parent(kind: type[PersephoneError]) -> None:
    nearest = next(parent for parent in kind.__mro__ if parent in STATUS)
    assert status_of(kind) == STATUS[nearest]


def test_known_statuses() -> None:
    assert status_of(NoRouteError) == 404
    assert status_of(MisdirectedError) == 421
    assert status_of(StepFailedError) == 422
