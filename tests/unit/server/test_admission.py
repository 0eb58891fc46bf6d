"""Who predicts at a deployment's own address, as its replica judges it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from server.model_server.admission import _MAX_KNOWN, SECRET_HEADER, Admission
from server.model_server.refusals import Refusal

ID = "0123456789abcdef"
TOKEN = f"psk_{ID}_{'s' * 43}"
OTHER = f"psk_{ID}_{'t' * 43}"


def admitting(*, end: float | None = None) -> Admission:
    admission = Admission("gateway")
    admission.renew({ID: [hashlib.sha256(TOKEN.encode()).hexdigest(), end]})
    return admission


def refusal(admission: Admission, **headers: str) -> str | None:
    """Return the code with which a request is refused, if it is."""
    given = {name.replace("_", "-").lower().encode(): v.encode() for name, v in headers.items()}
    try:
        admission.check(given)
    except Refusal as refused:
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer ")
        return refused.code
    return None


def test_a_token_of_this_model_is_let_in_however_its_scheme_is_written() -> None:
    admission = admitting()
    for scheme in ("Bearer ", "bearer ", "BEARER   ", ""):
        for _ in range(2):
            assert refusal(admission, authorization=scheme + TOKEN) is None


@pytest.mark.parametrize(
    "given",
    [
        f"Bearer {OTHER}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}A",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
        f"Bearer psk_{'f' * 16}_{'s' * 43}",
        f"Basic {TOKEN}",
        f"Bearer{TOKEN}",
        "Bearer ",
        "",
        "Bearer \xff\xfe",
    ],
)
def test_nothing_else_is_let_in(given: str) -> None:
    assert refusal(admitting(), authorization=given) == "inference_token_refused"


def test_who_brings_nothing_is_told_what_to_bring() -> None:
    assert refusal(admitting()) == "inference_needs_identification"
    assert refusal(admitting(), cookie="persephone_session=abc") == "inference_needs_identification"


def test_the_gateway_is_let_in_by_its_own_secret() -> None:
    name = SECRET_HEADER.replace("-", "_")
    assert refusal(Admission("gateway"), **{name: "gateway"}) is None
    assert refusal(Admission("gateway"), **{name: "gatewa"}) is not None


def test_until_tokens_are_told_nobody_has_one() -> None:
    assert refusal(Admission("gateway"), authorization=f"Bearer {TOKEN}") is not None


def test_a_token_that_is_no_more_told_is_let_in_no_more() -> None:
    admission = admitting()
    assert refusal(admission, authorization=f"Bearer {TOKEN}") is None
    admission.renew({})
    assert refusal(admission, authorization=f"Bearer {TOKEN}") == "inference_token_refused"


def test_a_token_is_let_in_until_its_time() -> None:
    admission = admitting(end=100.0)
    assert admission.first_end == 100.0
    assert not admission.expire(99.9)
    assert refusal(admission, authorization=f"Bearer {TOKEN}") is None
    assert admission.expire(100.0)
    assert admission.first_end is None
    assert refusal(admission, authorization=f"Bearer {TOKEN}") == "inference_token_refused"


@pytest.mark.parametrize(
    "said",
    [[], "x", None, {ID: "x"}, {ID: ["d"]}, {ID: None}, {ID: ["d", "soon"]}, {ID: ["d", []]}],
)
def test_what_cannot_be_read_changes_nothing(said: Any) -> None:
    admission = admitting()
    with pytest.raises(ValueError, match=r".*"):
        admission.renew(said)
    assert refusal(admission, authorization=f"Bearer {TOKEN}") is None


def test_which_tokens_were_used_is_told_once() -> None:
    admission = admitting()
    told = {ID: [hashlib.sha256(TOKEN.encode()).hexdigest(), None]}
    refusal(admission, authorization=f"Bearer {OTHER}")
    assert admission.renew(told) == []
    for _ in range(3):
        refusal(admission, authorization=f"Bearer {TOKEN}")
    assert admission.renew(told) == [ID]
    assert admission.renew(told) == []


def test_the_spellings_that_are_remembered_are_bounded() -> None:
    admission = admitting()
    for length in range(1, _MAX_KNOWN + 10):
        assert refusal(admission, authorization=f"Bearer{' ' * length}{TOKEN}") is None
    assert len(admission._known) <= _MAX_KNOWN
