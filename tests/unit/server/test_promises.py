from __future__ import annotations

import orjson
import pytest

from server.api.objectives import promises_of
from server.errors import InvalidRequestError
from server.records import ObjectiveOverride


def test_what_is_left_out_stays_as_the_settings_say() -> None:
    body = {"objectives": {"prod": {"availability": 99.95, "window": "7d"}, "dev": {}}}

    assert promises_of(orjson.dumps(body)) == {
        "prod": ObjectiveOverride(availability=99.95, seconds=7 * 86_400),
        "dev": ObjectiveOverride(),
    }


def test_thresholds_are_milliseconds() -> None:
    body = {"objectives": {"prod": {"latencyThresholdMs": 250, "latencyShare": 99}}}

    assert promises_of(orjson.dumps(body)) == {
        "prod": ObjectiveOverride(latency_seconds=0.25, latency_share=99.0)
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
        (b"[]", "objectives"),
        (b"{}", "objectives"),
        (b'{"objectives": []}', "objectives"),
        (b'{"objectives": {}, "more": 1}', "objectives"),
        (b'{"objectives": {"prod": 99.9}}', "prod"),
        (b'{"objectives": {"prod": {"availability": 100}}}', "prod.availability"),
        (b'{"objectives": {"prod": {"availability": "99"}}}', "prod.availability"),
        (b'{"objectives": {"prod": {"availability": true}}}', "prod.availability"),
        (b'{"objectives": {"prod": {"availability": null}}}', "prod.availability"),
        (b'{"objectives": {"prod": {"latencyThresholdMs": 0}}}', "prod.latencyThresholdMs"),
        (b'{"objectives": {"prod": {"latencyShare": 1e99}}}', "prod.latencyShare"),
        (b'{"objectives": {"prod": {"window": "31d"}}}', "prod.window"),
        (b'{"objectives": {"prod": {"window": 30}}}', "prod.window"),
        (b'{"objectives": {"prod": {"availibility": 99}}}', "prod.availibility"),
    ],
)
def test_what_cannot_be_promised_is_refused_by_name(body: bytes, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        promises_of(body)
    assert caught.value.code == "objectives_malformed"
    assert caught.value.params["field"] == field
