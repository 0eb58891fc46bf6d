"""Monitor: the figures of a run, and how they came about."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from metrics.client import MetricsUnavailableError
from metrics.objectives import BURN_SECONDS, Standing, stand
from metrics.promql import LONG_SECONDS
from metrics.reading import RED, SLO, STALE_SECONDS, Asked, Name, Question
from metrics.slo import (
    NOT_DEPLOYED,
    RED_SECONDS,
    Summary,
    red_question,
    slo_question,
    summarise,
    window_seconds,
)
from server.pipeline.long_windows import LongWindows
from server.states import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from metrics.reading import Reading, Source
    from metrics.targets import Target
    from server.pipeline.objectives import Objectives
    from server.pipeline.sources import Sources
    from server.records import Deployment
    from server.store.state import Store

LAST_GOOD_SECONDS = 30.0
"""How long the last answer of a Prometheus that fails is shown."""

_PAGES = 1024
_COURSES = 64
# How long a chart of the embedded monitor's is kept beside a Prometheus.
_OWN_SECONDS = 60.0
# A window this many times longer than a pause has not changed to speak of after it.
_PAUSES = 3600
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A summary, the source of its rate and the time it is of (Unix seconds)."""

    summary: Summary
    source: Source
    at: float
    standings: Sequence[Standing] = ()
    unread: Sequence[Target] = ()
    """Replicas that should answer and cannot be read."""
    asked: Mapping[Name, Asked] = field(default_factory=dict)
    is_last_good: bool = False
    """Whether it was shown before, and Prometheus did not answer since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Readings of a run over time, each of the ``seconds`` up to its moment."""

    made_at: float
    source: Source
    seconds: float
    readings: Sequence[Reading]


class _Page(NamedTuple):
    run_id: str
    environment: str | None
    window: float | None


@dataclass(slots=True)
class _Known:
    """What is known of a page, and who is finding out more."""

    long: LongWindows
    shown: Shown | None = None
    until: float = 0.0
    good: Shown | None = None
    good_at: float = 0.0
    """When the last good answer was asked for, by a clock that never goes back."""
    flight: asyncio.Task[Shown] | None = None


class Monitor:
    """Summaries; a thousand pages on one run cost one look at it every so many ``seconds``.

    ``clock`` tells the time since 1970, ``steady`` one that never goes back; ``patience`` is how
    long a new page waits for Prometheus' answer about long windows.
    """

    def __init__(
        self,
        store: Store,
        sources: Sources,
        objectives: Objectives,
        *,
        seconds: float,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        patience: float = 2.0,
    ) -> None:
        self._store = store
        self._sources = sources
        self._objectives = objectives
        self._seconds = seconds
        self._clock = clock
        self._steady = steady
        self._patience = patience
        self._pages: OrderedDict[_Page, _Known] = OrderedDict()
        self._courses: OrderedDict[tuple[object, ...], asyncio.Task[Course]] = OrderedDict()

    @property
    def source(self) -> Source:
        """The source that is asked now."""
        return self._sources.current

    @property
    def prometheus_is_up(self) -> bool | None:
        """Whether Prometheus answers; None if there is none to ask."""
        return self._sources.prometheus_is_up

    def forget(self, run_id: str) -> None:
        """Forget the figures of a deleted run."""
        self._sources.embedded.forget(run_id)
        self.reconsider(run_id)

    def reconsider(self, run_id: str) -> None:
        """Forget what was answered about a run: something else is asked from now on."""
        for page in [page for page in self._pages if page.run_id == run_id]:
            del self._pages[page]

    async def summary(
        self, run_id: str, environment: str | None, window: float | None = None
    ) -> Shown:
        """Return a run's figures, of all its environments or of one; always finite.

        They are of the last ``window`` seconds; without it of the last minute and of the time
        since the first deployment.
        """
        page = _Page(run_id, environment, window)
        known = self._pages.get(page)
        if known is None:
            known = self._pages[page] = _Known(LongWindows(self._sources, patience=self._patience))
            if len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        else:
            # Those that are looked at stay.
            self._pages.move_to_end(page)
        if known.shown is not None and 0 < known.until - self._clock() <= self._seconds:
            return known.shown
        if known.flight is None:
            known.flight = asyncio.create_task(self._look(page, known))
        # A page that is closed must not take the reading away from the others.
        return await asyncio.shield(known.flight)

    async def course(
        self, run_id: str, environment: str | None, window: float, step: float
    ) -> Course:
        """Return a run's figures at every ``step`` of the last ``window`` seconds.

        Moments are multiples of the step, so that a chart does not tremble; asked again before
        the next one the answer is the same, but for one that Prometheus did not tell though it
        could.
        """
        self._sources.embedded.now()
        last = int(self._clock() // step)
        # The same moments come again once the clock was put back.
        key = (run_id, environment, window, step, last, self._sources.embedded.clock.skew)
        task = self._courses.get(key)
        if task is None or self._may_be_better(task):
            number = int(window // step)
            times = [(last - back) * step for back in reversed(range(number))]
            task = asyncio.create_task(self._course(run_id, environment, times, step))
            self._courses[key] = task
            task.add_done_callback(lambda done: self._forget_failed(key, done))
            if len(self._courses) > _COURSES:
                self._courses.popitem(last=False)
        return await asyncio.shield(task)

    def _may_be_better(self, task: asyncio.Task[Course]) -> bool:
        """Whether Prometheus may tell by now what the embedded monitor told."""
        if not task.done() or not self._sources.prometheus_is_up:
            return False
        course = task.result()
        return course.source == "embedded" and self._clock() - course.made_at >= _OWN_SECONDS

    def _forget_failed(self, key: tuple[object, ...], done: asyncio.Task[Course]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._courses.pop(key, None)

    async def _course(
        self, run_id: str, environment: str | None, times: Sequence[float], step: float
    ) -> Course:
        question = Question(
            seconds=max(step, RED_SECONDS),
            environment=environment,
            quantiles=(0.5, 0.95, 0.99),
            in_progress=True,
        )
        source, readings = await self._sources.series(run_id, question, times, step)
        made_at = self._clock()
        return Course(made_at=made_at, source=source, seconds=question.seconds, readings=readings)

    async def _look(self, page: _Page, known: _Known) -> Shown:
        try:
            # Notices whether the clock was put since the last scrape.
            self._sources.embedded.now()
            # Prometheus is asked in whole milliseconds; what is explained is of the same moment.
            at = math.floor(self._clock() * 1000) / 1000
            known.shown = await self._read(page, known, at)
            known.until = at + self._seconds
            if known.shown.is_last_good:
                known.until = self._clock() + min(self._seconds, self._left(known))
            return known.shown
        finally:
            known.flight = None

    async def _read(self, page: _Page, known: _Known, at: float) -> Shown:
        found = [
            made
            for made in self._store.deployments_of(page.run_id)
            if page.environment in (None, made.key.environment)
        ]
        if not found:
            return Shown(summary=NOT_DEPLOYED, source=self.source, at=at)
        deployed = any(made.wanted is Wanted.UP for made in found)
        questions = self._questions(page, found, at)
        kept = _kept(known.shown, questions, at)
        began = self._steady()
        try:
            theirs = await self._ask_prometheus(page.run_id, known, questions, kept, at)
        except MetricsUnavailableError:
            now = self._clock()
            if known.good is not None and known.good.at <= now and self._left(known) > 0:
                return _aged(known.good, now)
            # What it said before it died is as old as what is not shown any more.
            kept = {name: one for name, one in kept.items() if one.source == "embedded"}
            theirs = {}
        if deployed and not _is_whole(theirs.get(Name(RED))):
            theirs.pop(Name(RED), None)
        asked = {
            name: one
            for name, one in kept.items()
            if name not in theirs or theirs[name].at <= one.reading.at
        }
        for name, question in questions.items():
            if name not in asked:
                source, reading = self._sources.best(page.run_id, question, at, theirs.get(name))
                asked[name] = Asked(question=question, reading=reading, source=source)
        shown = self._shown(page, found, asked, at, deployed=deployed)
        known.good, known.good_at = (shown if shown.source == "prometheus" else None), began
        return shown

    def _left(self, known: _Known) -> float:
        """Return for how many seconds the last good answer may be shown; waiting takes of them too."""
        age = self._steady() - known.good_at
        return LAST_GOOD_SECONDS - age if age >= 0 else 0.0

    async def _ask_prometheus(
        self,
        run_id: str,
        known: _Known,
        questions: Mapping[Name, Question],
        kept: Mapping[Name, Asked],
        at: float,
    ) -> dict[Name, Reading]:
        """Ask what is not kept, and of long windows what is known; nothing if there is no Prometheus.

        Raises:
            MetricsUnavailableError: it did not answer, or is given up for the time being.
        """
        short = {
            name: question
            for name, question in questions.items()
            if name not in kept and question.seconds <= LONG_SECONDS
        }
        told: list[Reading] | None = []
        if short:
            told = await self._sources.ask_prometheus(run_id, list(short.values()), at)
        if told is None:
            return {}
        long = {name: one for name, one in questions.items() if one.seconds > LONG_SECONDS}
        return {
            **dict(zip(short, told, strict=True)),
            **await known.long.answers(run_id, long, at),
        }

    def _questions(
        self, page: _Page, found: Sequence[Deployment], at: float
    ) -> dict[Name, Question]:
        # A clock that was put back must not make a deployment younger than it is.
        latest = max(at, at + self._sources.embedded.clock.skew)
        life = window_seconds(min(made.first_wanted_at.timestamp() for made in found), latest)
        questions = {
            Name(RED): red_question(page.environment, page.window or RED_SECONDS),
            Name(SLO): slo_question(page.environment, page.window or life),
        }
        for made in found:
            environment = made.key.environment
            objective = self._objectives.of(page.run_id, environment)
            since = made.first_wanted_at.timestamp()
            for part, longest in {SLO: objective.seconds, **BURN_SECONDS}.items():
                seconds = window_seconds(since, latest, longest)
                questions[Name(part, environment)] = objective.question(environment, seconds)
        return questions

    def _shown(
        self,
        page: _Page,
        found: Sequence[Deployment],
        asked: Mapping[Name, Asked],
        at: float,
        *,
        deployed: bool,
    ) -> Shown:
        red = asked[Name(RED)]
        reach = self._sources.embedded.reach(page.run_id, page.environment, at)
        summary = summarise(red.reading, asked[Name(SLO)].reading, deployed=deployed, reach=reach)
        standings = []
        for environment in sorted(made.key.environment for made in found):
            objective = self._objectives.of(page.run_id, environment)
            burning = {name: asked[Name(name, environment)].reading for name in BURN_SECONDS}
            whole = asked[Name(SLO, environment)].reading
            standings.append(stand(environment, objective, whole, burning))
        return Shown(
            summary=summary,
            source=red.source,
            at=red.reading.at,
            standings=standings,
            unread=reach.unread,
            asked=dict(asked),
        )


def _kept(last: Shown | None, questions: Mapping[Name, Question], at: float) -> dict[Name, Asked]:
    """Return the answers that are still good: those of long windows change slowly."""
    if last is None:
        return {}
    kept = {}
    for name, question in questions.items():
        known = last.asked.get(name)
        if known is None or known.question.bound != question.bound:
            continue
        pause = min(known.question.seconds / _PAUSES, _LONGEST_PAUSE)
        if 0 <= at - known.reading.at < pause:
            kept[name] = known
    return kept


def _is_whole(red: Reading | None) -> bool:
    """Whether Prometheus watched the whole window of a rate, which would be too low else.

    Its discovery finds a new replica seconds later than we do, and an outage leaves a hole.
    """
    return red is not None and red.requests is not None and red.is_whole


def _aged(shown: Shown, at: float) -> Shown:
    """Return an old summary as it was, but say so once it is older than a scrape may be."""
    if at - shown.at <= STALE_SECONDS or shown.summary.data_status not in {"ok", "no_traffic"}:
        return replace(shown, is_last_good=True)
    summary = replace(shown.summary, data_status="stale")
    return replace(shown, summary=summary, is_last_good=True)
