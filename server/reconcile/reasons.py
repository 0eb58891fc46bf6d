"""Failures of replicas as messages that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.records import Text

if TYPE_CHECKING:
    from server.errors import PersephoneError


def told(failure: PersephoneError) -> Text:
    """Say why a replica failed, with the evidence if there is some."""
    evidence = getattr(failure, "evidence", "")
    params = {**failure.params, "evidence": evidence} if evidence else failure.params
    return Text(code=failure.code, params=params)


def looping(last: Text) -> Text:
    """Say that it crashes again and again, and how it did the last time."""
    reason = {"code": last.code, "params": last.params}
    return Text(code="crash_loop", params={"warnings": [reason]})
