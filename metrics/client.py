"""Asks a Prometheus over its HTTP API; every way in which that fails is one error."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import aiohttp

from metrics import promql
from metrics.slo import RED_SECONDS, SLO_SECONDS, Readings

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

_FIELDS = frozenset(field.name for field in fields(Readings)) - {"at"}


class MetricsUnavailableError(Exception):
    """Prometheus gave no usable answer.

    ``code`` names the kind of failure for messages; ``reason`` is one line for the log.
    """

    code = "metrics_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """What Prometheus says it is."""

    version: str

    @property
    def prom3(self) -> bool:
        """Whether its windows and extrapolation are those of version 3 or later."""
        major = self.version.split(".", 1)[0]
        return major.isdecimal() and int(major) >= 3


class PrometheusClient:
    """One Prometheus; ``session`` is the caller's and stays open.

    ``timeout``, ``long_timeout`` (for windows over six hours) and ``connect_timeout`` in
    seconds: an answer that takes longer is none.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        timeout: float = 2.0,
        long_timeout: float = 5.0,
        connect_timeout: float = 0.5,
        red_window: float = RED_SECONDS,
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._connect = connect_timeout
        self._seconds = timeout
        self._long_seconds = long_timeout
        self._red_window = red_window

    async def read(
        self,
        run_id: str,
        environment: str | None,
        at: float,
        slo_window: float = SLO_SECONDS,
    ) -> Readings:
        """Read a run's sums and quantiles at a time, of all its environments or of one.

        ``at`` in seconds since 1970; ``slo_window`` in seconds, since the first deployment.

        Raises:
            MetricsUnavailableError: there is no usable answer.
        """
        query = promql.summary(
            run_id,
            environment,
            slo_window=min(max(slo_window, self._red_window), SLO_SECONDS),
            red_window=self._red_window,
        )
        limit = self._long_seconds if slo_window > promql.LONG_SECONDS else self._seconds
        form = {"query": query, "time": f"{at:.3f}", "timeout": f"{limit:g}s"}
        answer = await self._ask("POST", "/api/v1/query", limit, form)
        for warning in answer.get("warnings") or ():
            log.warning("Prometheus warns: %s", warning)
        return _readings(answer["data"], at)

    async def build_info(self) -> BuildInfo:
        """Ask for its version.

        Raises:
            MetricsUnavailableError: there is no usable answer.
        """
        answer = await self._ask("GET", "/api/v1/status/buildinfo", self._seconds)
        data = answer["data"]
        if not isinstance(data, dict) or not isinstance(data.get("version"), str):
            raise MetricsUnavailableError("the build information has no version")
        return BuildInfo(version=data["version"])

    async def is_ready(self) -> bool:
        """Whether it answers queries at the moment; never raises for what it answers."""
        try:
            async with self._session.get(
                f"{self._url}/-/ready", timeout=self._limit(self._seconds), allow_redirects=False
            ) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return False

    def _limit(self, seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=seconds, sock_connect=self._connect)

    async def _ask(
        self, method: str, path: str, seconds: float, form: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        url, limit = self._url + path, self._limit(seconds)
        try:
            async with self._session.request(
                method, url, data=form, timeout=limit, allow_redirects=False
            ) as response:
                return await _document(response)
        except TimeoutError:
            raise MetricsUnavailableError(f"no answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise MetricsUnavailableError(reason) from error


async def _document(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        answer = await response.json(content_type=None)
    except ValueError:
        raise MetricsUnavailableError(f"status {response.status}, not JSON") from None
    if not isinstance(answer, dict) or answer.get("status") != "success" or "data" not in answer:
        kind = answer.get("errorType", "") if isinstance(answer, dict) else ""
        text = answer.get("error", "") if isinstance(answer, dict) else ""
        raise MetricsUnavailableError(f"status {response.status} {kind} {text}".strip()[:300])
    return answer


def _readings(data: Any, at: float) -> Readings:
    values: dict[str, float] = {}
    try:
        if data["resultType"] != "vector":
            raise MetricsUnavailableError(f"a {data['resultType']} for an answer")
        for entry in data["result"]:
            name, value = entry["metric"].get(promql.READING), float(entry["value"][1])
            if name in _FIELDS and not math.isnan(value):
                values[name] = value
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise MetricsUnavailableError("the answer has another form than Prometheus'") from None
    return Readings(at=at, **values)
