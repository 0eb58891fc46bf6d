"""What a request for a token may say, and how often a refused one is logged."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

import pytest

from server.api.callers import Attempts
from server.api.tokens import _FIELDS, MAX_LIFETIME_SECONDS, fields_of, wish_of
from server.errors import InvalidRequestError
from server.pipeline.tokens import Wish
from server.states import Scope

RUN = "0123456789abcdef" * 2
GOOD = {"name": "ci", "scope": "inference"}


def wish(**fields: Any) -> Wish:
    return wish_of(fields_of(json.dumps(fields).encode(), _FIELDS))


def test_a_wish_says_name_scope_limit_and_lifetime() -> None:
    assert wish(**GOOD) == Wish(name="ci", scope=Scope.INFERENCE)
    assert wish(**GOOD, runId=RUN).run_id == RUN
    assert wish(**GOOD, model="iris.v2").model == "iris.v2"
    assert wish(**GOOD, expiresIn=60).lifetime == timedelta(minutes=1)
    assert wish(name="  магазин  ", scope="api").name == "магазин"


def test_what_is_null_is_left_out() -> None:
    assert wish(**GOOD, runId=None, model=None, expiresIn=None) == wish(**GOOD)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"scope": "api"}, "token_field_malformed"),
        ({"name": "ci"}, "token_field_malformed"),
        ({**GOOD, "name": " "}, "token_field_malformed"),
        ({**GOOD, "name": "x" * 65}, "token_field_malformed"),
        ({**GOOD, "name": "a\nb"}, "token_field_malformed"),
        ({**GOOD, "name": 7}, "token_field_malformed"),
        ({**GOOD, "scope": "admin"}, "token_field_malformed"),
        ({**GOOD, "scope": ["api"]}, "token_field_malformed"),
        ({**GOOD, "expiresIn": 0}, "token_field_malformed"),
        ({**GOOD, "expiresIn": True}, "token_field_malformed"),
        ({**GOOD, "expiresIn": 1.5}, "token_field_malformed"),
        ({**GOOD, "expiresIn": "60"}, "token_field_malformed"),
        ({**GOOD, "expiresIn": MAX_LIFETIME_SECONDS + 1}, "token_field_malformed"),
        ({**GOOD, "runId": "x"}, "run_id_malformed"),
        ({**GOOD, "runId": 5}, "run_id_malformed"),
        ({**GOOD, "model": "a b"}, "model_name_malformed"),
        ({**GOOD, "model": {}}, "model_name_malformed"),
        ({**GOOD, "runId": RUN, "model": "iris"}, "token_limit_misplaced"),
        ({"name": "ci", "scope": "api", "runId": RUN}, "token_limit_misplaced"),
        ({"name": "ci", "scope": "metrics", "model": "iris"}, "token_limit_misplaced"),
        ({**GOOD, "modle": "iris"}, "token_field_unknown"),
        ({**GOOD, "ownerOf": RUN}, "token_field_unknown"),
    ],
)
def test_a_wish_that_is_not_clear_is_refused(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        wish(**fields)
    assert raised.value.code == code


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b"{", b"name=ci", b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        fields_of(body, _FIELDS)
    assert raised.value.code == "json_object_expected"


def test_refused_tokens_are_logged_once_per_address_and_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 1000.0
    attempts = Attempts(lambda: now)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            attempts.note("10.0.0.1", "token_unknown")
        attempts.note("10.0.0.2", "token_expired")
        assert len(caplog.records) == 2
        now += 60
        attempts.note("10.0.0.1", "token_unknown")
    assert len(caplog.records) == 3
    assert "49" in caplog.records[-1].getMessage()


def test_addresses_that_are_remembered_are_bounded() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(5000):
        attempts.note(str(number), "token_unknown")
    assert len(attempts._since) <= 1024
