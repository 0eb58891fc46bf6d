"""Readings with anything in them that a source could say."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import strategies as st

from metrics.reading import Reading

_FIGURE = st.none() | st.floats(allow_nan=True, allow_infinity=True)
_NAMES = [one.name for one in fields(Reading) if one.name not in {"at", "seconds", "durations"}]

READING = st.builds(
    lambda values, duration: Reading(
        at=1_700_000_000.0,
        seconds=60,
        durations=(duration,),
        **dict(zip(_NAMES, values, strict=True)),
    ),
    st.tuples(*([_FIGURE] * len(_NAMES))),
    _FIGURE,
)
