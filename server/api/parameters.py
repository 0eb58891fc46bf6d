"""The parameters of the query string: each read once, strictly, with an error that explains itself."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from yarl import URL

from metrics import durations
from server.errors import InvalidRequestError
from server.logs import run_id_var
from server.setting_values import MAX_REPLICAS

if TYPE_CHECKING:
    from aiohttp import web

    from server.settings import Settings

_CACHED_LENGTH = 256

RUN_ID = re.compile(r"[0-9a-f]{32}")
COUNT = re.compile(r"[0-9]{1,18}")
REPLICAS = re.compile(r"[1-9][0-9]{0,3}")
GPU_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def run_id(request: web.Request) -> str:
    """Return the runId of the query: 32 lowercase hex characters.

    Raises ``InvalidRequestError``: ``run_id_missing``, ``run_id_malformed``, ``parameter_repeated``.
    """
    value = optional(request, "runId")
    if not value:
        raise InvalidRequestError("run_id_missing")
    return checked_run_id(value)


def checked_run_id(value: str) -> str:
    """Return ``value`` if it looks like a runId, for ids that come in a path."""
    if not RUN_ID.fullmatch(value):
        raise InvalidRequestError("run_id_malformed", value=value)
    run_id_var.set(value)
    return value


def environment(request: web.Request, settings: Settings) -> str:
    """Return the ``env`` of the query: the name of an environment of this service.

    Raises ``InvalidRequestError``: ``env_missing``, ``env_unknown``, ``parameter_repeated``.
    """
    value = optional(request, "env")
    if not value:
        raise InvalidRequestError("env_missing", known=settings.environments)
    return checked_environment(value, settings)


def optional_environment(request: web.Request, settings: Settings) -> str | None:
    """Return the ``env`` of the query, or ``None`` where the parameter is left out."""
    value = optional(request, "env")
    if value is None:
        return None
    return environment(request, settings)


def checked_environment(value: str, settings: Settings) -> str:
    """Return ``value`` if it is an environment of this service."""
    if value not in settings.environments:
        raise InvalidRequestError("env_unknown", value=value, known=settings.environments)
    return value


def gpu_id(request: web.Request) -> str | None:
    """Return the gpuId of the query (a UUID or ``cpu``), or ``None`` where it is left out.

    Raises ``InvalidRequestError``: ``gpu_id_malformed``, ``parameter_repeated``.
    """
    value = optional(request, "gpuId")
    if value is not None and not GPU_ID.fullmatch(value):
        raise InvalidRequestError("gpu_id_malformed", value=value)
    return value


def replicas(request: web.Request) -> int | None:
    """Return the number of replicas that is asked for, or ``None`` where it is left out.

    Raises ``InvalidRequestError``: ``parameter_malformed``, ``parameter_repeated``.
    """
    value = optional(request, "replicas")
    if value is None:
        return None
    if not REPLICAS.fullmatch(value) or int(value) > MAX_REPLICAS:
        raise InvalidRequestError(
            "parameter_malformed", name="replicas", expected=f"1-{MAX_REPLICAS}"
        )
    return int(value)


def count(request: web.Request, name: str, high: int) -> int | None:
    """Return a whole number from 0 to ``high``, or ``None`` where it is left out.

    Raises ``InvalidRequestError``: ``parameter_malformed``, ``parameter_repeated``.
    """
    value = optional(request, name)
    return None if value is None else checked_count(value, name, high)


def checked_count(value: str, name: str, high: int) -> int:
    """Return ``value`` if it is a whole number from 0 to ``high``, for those that come in a header."""
    if not COUNT.fullmatch(value) or int(value) > high:
        raise InvalidRequestError("parameter_malformed", name=name, expected=f"0-{high}")
    return int(value)


def duration(request: web.Request, name: str, low: float, high: float) -> float | None:
    """Return a duration as Prometheus writes them, in seconds, or ``None`` where it is left out.

    Raises ``InvalidRequestError``: ``parameter_malformed``, ``parameter_repeated``.
    """
    value = optional(request, name)
    if value is None:
        return None
    try:
        seconds = durations.parse(value)
    except ValueError:
        seconds = 0.0
    if not low <= seconds <= high:
        expected = f"{durations.write(low)}-{durations.write(high)} (5m, 1h30m)"
        raise InvalidRequestError("parameter_malformed", name=name, expected=expected)
    return seconds


def flag(request: web.Request, name: str) -> bool:
    """Return whether a parameter is ``true``; left out it is not.

    Raises ``InvalidRequestError``: ``parameter_malformed``, ``parameter_repeated``.
    """
    value = optional(request, name)
    if value not in {None, "true", "false"}:
        raise InvalidRequestError("parameter_malformed", name=name, expected="true, false")
    return value == "true"


def optional(request: web.Request, name: str) -> str | None:
    """Return the one value of a parameter; it may be empty, and ``None`` means left out."""
    query = request.rel_url.raw_query_string
    # Polls repeat their query for ever.
    parsed = _parsed(query) if len(query) <= _CACHED_LENGTH else _parsed.__wrapped__(query)
    values = parsed.get(name, ())
    if len(values) > 1:
        raise InvalidRequestError("parameter_repeated", name=name)
    return values[0] if values else None


@lru_cache(maxsize=4096)
def _parsed(query: str) -> dict[str, list[str]]:
    values = URL.build(query_string=query, encoded=True).query
    return {name: values.getall(name) for name in values}
