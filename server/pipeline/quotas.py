"""What an owner, and everybody together, may use: the pure decisions.

Each function raises ``BusyError`` with the code of the limit that is reached, how much is used, and
what helps. The counting is done in ``server/pipeline/usage.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.errors import BusyError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from server.records import Run
    from server.settings import Settings

HOUR_SECONDS = 3600.0

UPLOADS = "quota_uploads"
UPLOADS_TOTAL = "quota_uploads_total"
RUNS = "quota_runs"
RUNS_TOTAL = "quota_runs_total"
RUNS_PER_HOUR = "quota_runs_per_hour"
STORED = "quota_stored"
STORED_TOTAL = "quota_stored_total"
SESSIONS = "quota_sessions"
PREPARATIONS = "quota_preparations"
PREPARATIONS_TOTAL = "quota_preparations_total"
DEPLOYMENTS = "quota_deployments"
REPLICAS = "quota_replicas"
REPLICAS_TOTAL = "quota_replicas_total"
STREAMS = "quota_streams"
STREAMS_TOTAL = "quota_streams_total"

CODES = (
    *(UPLOADS, UPLOADS_TOTAL, RUNS, RUNS_TOTAL, RUNS_PER_HOUR, STORED, STORED_TOTAL, SESSIONS),
    *(PREPARATIONS, PREPARATIONS_TOTAL, DEPLOYMENTS, REPLICAS, REPLICAS_TOTAL),
    *(STREAMS, STREAMS_TOTAL),
)

# Until somebody deletes or stops something: there is no better guess.
_DELETION_SECONDS = 60
_PREPARATION_SECONDS = 30
_STREAM_SECONDS = 10
_NEWCOMERS = 4
"""One in so many places in the queue is for those who have none yet."""
_MEBIBYTE = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Runs and bytes in use, what is under way with them; ``ages`` in seconds, ``bytes`` on disk.

    ``own_ages`` are those of the owner's runs of the last hour, deleted ones too. ``runs`` is what
    the owner could delete, ``deployed`` the ids of those that serve or are to.
    """

    own_runs: int = 0
    all_runs: int = 0
    own_ages: tuple[float, ...] = ()
    own_bytes: int = 0
    all_bytes: int = 0
    runs: tuple[Run, ...] = ()
    deployed: Collection[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A file system: its size, what is free, and what uploads under way will still need."""

    total_bytes: int
    free_bytes: int
    promised_bytes: int = 0

    def room_bytes(self, settings: Settings) -> int:
        """Return how much more may be written."""
        return self.free_bytes - self.promised_bytes - settings.kept_free(self.total_bytes)

    def share_bytes(self, settings: Settings) -> int:
        """Return how much artifacts and models may take of it."""
        return self.total_bytes * settings.max_stored_percent // 100


def check_run(settings: Settings, stored: Stored) -> None:
    """Let an owner have one more run, or raise ``BusyError``."""
    if stored.own_runs >= settings.max_runs_per_owner:
        raise _deletable(RUNS, stored.own_runs, settings.max_runs_per_owner, oldest(stored))
    recent = sorted(stored.own_ages, reverse=True)
    over = len(recent) - settings.max_runs_per_hour
    if over >= 0:
        # So many have to grow old that one place is free.
        wait = max(1.0, HOUR_SECONDS - recent[over])
        raise _busy(
            RUNS_PER_HOUR,
            len(recent),
            settings.max_runs_per_hour,
            wait,
            minutes=round(wait / 60) or 1,
        )
    if stored.all_runs >= settings.max_runs:
        raise _busy(RUNS_TOTAL, stored.all_runs, settings.max_runs, _DELETION_SECONDS)


def check_bytes(settings: Settings, stored: Stored, disk: Disk, more_bytes: int) -> None:
    """Let an owner store so many bytes more.

    Raises:
        BusyError: that is over a quota.
        StorageFullError: there is no such room on the disk.
    """
    check_own_bytes(settings, stored, more_bytes)
    limit = disk.share_bytes(settings)
    if stored.all_bytes + more_bytes > limit:
        used = mebibytes(stored.all_bytes)
        raise _busy(STORED_TOTAL, used, mebibytes(limit), _DELETION_SECONDS)
    if more_bytes > disk.room_bytes(settings):
        raise StorageFullError("disk_full")


def check_own_bytes(settings: Settings, stored: Stored, more_bytes: int) -> None:
    """Let an owner store so many bytes more, or raise ``BusyError``."""
    limit = settings.max_stored_bytes_per_owner
    if stored.own_bytes + more_bytes > limit:
        raise _deletable(STORED, mebibytes(stored.own_bytes), mebibytes(limit), largest(stored))


def check_preparation(settings: Settings, own: int, everybody: int) -> None:
    """Let one more preparation wait or run beside so many, or raise ``BusyError``."""
    limit = settings.max_queued_preparations_per_owner
    if own >= limit:
        raise _busy(PREPARATIONS, own, limit, _PREPARATION_SECONDS)
    limit = settings.prepare_concurrency + settings.max_queued_preparations
    if own:
        limit -= limit // _NEWCOMERS
    if everybody >= limit:
        raise _busy(PREPARATIONS_TOTAL, everybody, limit, _PREPARATION_SECONDS)


def check_deployment(
    settings: Settings, own: Iterable[int], everybody: Iterable[int], replicas: int
) -> None:
    """Let one more deployment of so many replicas be, or raise ``BusyError``.

    ``own`` and ``everybody`` are the replicas of the other deployments that are up.
    """
    own, everybody = list(own), list(everybody)
    limit = settings.max_deployments_per_owner
    if len(own) >= limit:
        raise _busy(DEPLOYMENTS, len(own), limit, _DELETION_SECONDS)
    limit = settings.max_replicas_per_owner
    if sum(own) + replicas > limit:
        raise _busy(REPLICAS, sum(own), limit, _DELETION_SECONDS, wanted=replicas)
    limit = settings.max_replicas
    if sum(everybody) + replicas > limit:
        raise _busy(REPLICAS_TOTAL, sum(everybody), limit, _DELETION_SECONDS, wanted=replicas)


def check_streams(settings: Settings, own: int, everybody: int) -> None:
    """Let an owner follow one thing more beside so many, or raise ``BusyError``."""
    limit = settings.max_streams_per_owner
    if own >= limit:
        raise _busy(STREAMS, own, limit, _STREAM_SECONDS)
    # None of them ever makes room for a new connection.
    limit = min(settings.max_streams, settings.max_connections // 2)
    if everybody >= limit:
        raise _busy(STREAMS_TOTAL, everybody, limit, _STREAM_SECONDS)


def check_session(limit: int, ages: Collection[float]) -> None:
    """Let an address begin one more session, or raise ``BusyError``; ``ages`` of the last hour's."""
    if len(ages) >= limit:
        wait = max(1.0, HOUR_SECONDS - max(ages))
        raise _busy(SESSIONS, len(ages), limit, wait, minutes=round(wait / 60) or 1)


def full_uploads(code: str, used: int, limit: int) -> BusyError:
    """Return the refusal of an upload beside others."""
    return _busy(code, used, limit, 10)


def oldest(stored: Stored) -> str:
    """Return the run that an owner misses least: the oldest that is not deployed, if there is one."""
    if not stored.runs:
        return ""
    return min(stored.runs, key=lambda run: (run.run_id in stored.deployed, run.created_at)).run_id


def largest(stored: Stored) -> str:
    """Return the run whose deletion helps most: the largest that is not deployed, if there is one.

    Of runs with equal artifacts the last one takes the bytes with it: they come after the others.
    """
    copies = Counter(run.digest for run in stored.runs)

    def rank(run: Run) -> tuple[bool, bool, int]:
        return run.run_id in stored.deployed, copies[run.digest] > 1, -run.size_bytes

    return min(stored.runs, key=rank).run_id if stored.runs else ""


def mebibytes(size_bytes: int) -> str:
    """Write a size in MiB with one digit at most behind the point."""
    return f"{size_bytes / _MEBIBYTE:.1f}".removesuffix(".0")


def _deletable(code: str, used: Any, limit: Any, run: str) -> BusyError:
    return _busy(code, used, limit, _DELETION_SECONDS, run=run)


def _busy(code: str, used: Any, limit: Any, seconds: float, **more: Any) -> BusyError:
    return BusyError(code, used=used, limit=limit, retry_after_seconds=seconds, **more)
