from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("30d", 2_592_000),
        ("1w", 604_800),
        ("1y", 31_536_000),
        ("1d12h", 129_600),
        ("1500ms", 1.5),
        ("1m500ms", 60.5),
    ],
)
def test_durations_are_read_as_prometheus_reads_them(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "m", "5 m", "-5m", "5M", "1m1h", "1h1h", "1.5h", "0s", "5m ", "inf", "٣m"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration"):
        durations.parse(text)


@given(st.integers(1, 10**12))
def test_what_was_written_reads_back(milliseconds: int) -> None:
    assert durations.parse(durations.write(milliseconds / 1000)) == pytest.approx(
        milliseconds / 1000, rel=1e-12
    )


def test_the_largest_units_come_first() -> None:
    assert durations.write(30 * 86400) == "30d"
    assert durations.write(5400.25) == "1h30m250ms"
    assert durations.write(0) == "1ms"
