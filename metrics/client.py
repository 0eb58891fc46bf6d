"""Asks a Prometheus over its HTTP API; every way in which that fails is one error."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from metrics import promql
from metrics.reading import Question, Reading, requests_by_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

# What carries a label of its own in the answer: the name of the value, the name of the label.
_SPLIT = {"requests": "code", "probes": "result"}
_PLAIN = frozenset(
    {
        *(
            "overloaded",
            "timed",
            "sketched",
            "quick",
            "in_progress",
            "scrapes",
            "recent_scrapes",
        ),
        *("last_scrape_at", "watched"),
    }
)


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

    ``timeout``, ``long_timeout`` (where a window is over six hours), ``range_timeout`` (of series) and
    ``connect_timeout`` in seconds: an answer that takes longer is none.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        timeout: float = 2.0,
        long_timeout: float = 15.0,
        range_timeout: float = 5.0,
        connect_timeout: float = 0.5,
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._connect = connect_timeout
        self._seconds = timeout
        self._long_seconds = long_timeout
        self._range_seconds = range_timeout

    async def read(self, run_id: str, questions: Sequence[Question], at: float) -> list[Reading]:
        """Answer questions about a run at a time, in seconds since 1970, with one query.

        Raises:
            MetricsUnavailableError: there is no usable answer.
        """
        limit = self._limit_of(questions)
        form = {"query": promql.query(run_id, questions), "time": f"{at:.3f}"}
        data = await self._query("/api/v1/query", form, limit)
        found = _parsed(data, "vector", lambda entry: [entry["value"]])
        return [
            _reading(question, at, found.get((number, f"{at:.3f}"), {}))
            for number, question in enumerate(questions)
        ]

    async def series(
        self, run_id: str, question: Question, start: float, end: float, step: float
    ) -> list[Reading]:
        """Answer a question at every ``step`` from ``start`` to ``end`` with one query.

        Raises:
            MetricsUnavailableError: there is no usable answer.
        """
        form = {
            "query": promql.query(run_id, [question]),
            "start": f"{start:.3f}",
            "end": f"{end:.3f}",
            "step": f"{step:.3f}",
        }
        data = await self._query("/api/v1/query_range", form, self._range_seconds)
        found = _parsed(data, "matrix", lambda entry: entry["values"])
        times = [start + number * step for number in range(int((end - start) / step + 1e-6) + 1)]
        return [_reading(question, at, found.get((0, f"{at:.3f}"), {})) for at in times]

    def _limit_of(self, questions: Sequence[Question]) -> float:
        longest = max(question.seconds for question in questions)
        return self._long_seconds if longest > promql.LONG_SECONDS else self._seconds

    async def _query(self, path: str, form: Mapping[str, str], limit: float) -> Any:
        answer = await self._ask("POST", path, limit, {**form, "timeout": f"{limit:g}s"})
        for warning in answer.get("warnings") or ():
            log.warning("Prometheus warns: %s", warning)
        return answer["data"]

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


def _parsed(
    data: Any, kind: str, points: Callable[[Any], Any]
) -> dict[tuple[int, str], dict[str, Any]]:
    """Sort the values of an answer by question and time."""
    found: dict[tuple[int, str], dict[str, Any]] = defaultdict(dict)
    try:
        if data["resultType"] != kind:
            raise MetricsUnavailableError(f"a {data['resultType']} for an answer")
        for entry in data["result"]:
            labels = entry["metric"]
            number, _, name = labels.get(promql.READING, "").partition(".")
            own = labels.get(_SPLIT[name], "") if name in _SPLIT else ""
            for at, text in points(entry):
                value = float(text)
                if number.isdecimal() and not math.isnan(value):
                    values = found[int(number), f"{float(at):.3f}"]
                    if own:
                        values.setdefault(name, {})[own] = value
                    else:
                        values[name] = value
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise MetricsUnavailableError("the answer has another form than Prometheus'") from None
    return found


def _reading(question: Question, at: float, values: Mapping[str, Any]) -> Reading:
    found = {name: value for name, value in values.items() if name in _PLAIN}
    if "requests" in values:
        found.update(requests_by_class(values["requests"]))
    if values.get("scrapes", 0) > 0 and "good_scrapes" in values:
        found["up"] = values["good_scrapes"] / values["scrapes"]
    if question.health and "probes" in values:
        found["probes_passed"] = values["probes"].get("passed", 0.0)
        found["probes_failed"] = values["probes"].get("failed", 0.0)
    if question.quantiles and "requests" in values:
        found["durations"] = tuple(
            values.get(f"durations.{number}") for number in range(len(question.quantiles))
        )
        if question.seconds > promql.LONG_SECONDS:
            # Nothing of it may be in the quantiles.
            found.setdefault("sketched", 0.0)
    return Reading(at=at, seconds=question.seconds, **found)
