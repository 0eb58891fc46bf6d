"""How much is used, and who may use more.

Counted from the runs that exist, the folders of their models, and what is under way.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import BusyError, StorageFullError
from server.pipeline import quotas
from server.pipeline.places import Place, Places
from server.pipeline.quotas import Disk, Stored
from server.records import now
from server.states import Wanted
from server.store.folders import empty_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from datetime import datetime

    from server.records import Deployment, DeploymentKey, Run
    from server.settings import Settings
    from server.store.state import Store


class Admission:
    """One upload that was let in: who makes it, and how large it may become."""

    def __init__(self, owner: str, place: Place, expected_bytes: int) -> None:
        self.owner = owner
        self.place = place
        self.expected_bytes = expected_bytes
        self.received_bytes = 0

    @property
    def counted_bytes(self) -> int:
        """What it takes of everybody's room: what came, or what is still to come."""
        return max(self.expected_bytes, self.received_bytes)


class Usage:
    """Counts for the quotas; all of it is right after a restart, as nothing is kept apart.

    ``models`` holds a folder for each run.
    """

    def __init__(self, settings: Settings, store: Store, models: Path) -> None:
        self._settings = settings
        self._store = store
        self._models = models
        self._places = Places(per_owner=settings.max_uploads_per_owner, total=settings.max_uploads)
        self._admitted: set[Admission] = set()
        # The store's revision, and what all its artifacts take.
        self._added_up = -1, 0
        # What archives unpacked to, by run; a bare model has no bytes of its own.
        self._unpacked: dict[str, int] = {}
        # Runs of the last hour that were deleted again: when each was made, by owner.
        self._deleted: dict[str, deque[datetime]] = {}

    async def open(self) -> None:
        """Measure what is there."""
        self._unpacked = await asyncio.to_thread(_folders, self._models, set(self._store.runs))

    # ── uploads

    @asynccontextmanager
    async def uploading(self, owner: str, expected_bytes: int) -> AsyncIterator[Admission]:
        """Let an owner upload so many bytes (0 if unknown) while the block lasts.

        Raises:
            BusyError: a quota is used up.
            StorageFullError: there is no room on the disk.
            DisplacedError: the upload crept while others waited.
        """
        quotas.check_run(self._settings, self.stored(owner))
        async with self._places.hold(owner) as place:
            disk = await self.disk()
            # No pause from here to the reservation: nobody else is let in on the same room.
            stored = self.stored(owner)
            quotas.check_run(self._settings, stored)
            quotas.check_bytes(self._settings, stored, disk, expected_bytes)
            admission = Admission(owner, place, expected_bytes)
            self._admitted.add(admission)
            try:
                yield admission
            finally:
                self._admitted.discard(admission)

    async def counted(
        self, admission: Admission, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """Pass an artifact on as long as its owner may store it.

        Raises:
            BusyError: it has become too much.
            StorageFullError: there is no room for more.
        """
        async for chunk in chunks:
            admission.received_bytes += len(chunk)
            if admission.received_bytes > admission.expected_bytes:
                # Its length was not told: each piece has to find its room.
                disk = await self.disk()
                quotas.check_bytes(self._settings, self.stored(admission.owner), disk, 0)
            yield chunk

    def stored(self, owner: str) -> Stored:
        """Return what an owner and everybody has, uploads under way with it."""
        runs = self._store.runs_of(owner)
        own = [each for each in self._admitted if each.owner == owner]
        at = now()
        made = [run.created_at for run in runs] + list(self._deleted.get(owner, ()))
        # A clock that was set back would make runs of the future: they are as young.
        ages = (abs((at - each).total_seconds()) for each in made)
        return Stored(
            own_runs=len(runs) + len(own),
            all_runs=len(self._store.runs) + len(self._admitted),
            own_ages=(*(age for age in ages if age < quotas.HOUR_SECONDS), *(0.0 for _ in own)),
            own_bytes=_artifacts(runs)
            + sum(self._unpacked.get(run.run_id, 0) for run in runs)
            + sum(each.counted_bytes for each in own),
            all_bytes=self.artifact_bytes()
            + self.model_bytes()
            + sum(each.counted_bytes for each in self._admitted),
            runs=tuple(runs),
            deployed={
                str(id_) for made in self._up() for id_ in (made.run_id, made.serving_run_id)
            },
        )

    def artifact_bytes(self) -> int:
        """Return how much all artifacts take."""
        revision = self._store.revision
        if self._added_up[0] != revision:
            self._added_up = revision, _artifacts(self._store.runs.values())
        return self._added_up[1]

    def model_bytes(self) -> int:
        """Return how much archives have been unpacked to."""
        return sum(self._unpacked.values())

    async def disk(self) -> Disk:
        """Look at the data folder's file system."""
        found = await asyncio.to_thread(shutil.disk_usage, self._settings.data_dir)
        promised = (each.expected_bytes - each.received_bytes for each in self._admitted)
        return Disk(
            total_bytes=found.total,
            free_bytes=found.free,
            promised_bytes=sum(rest for rest in promised if rest > 0),
        )

    # ── models

    @asynccontextmanager
    async def unpacking(self, run: Run) -> AsyncIterator[None]:
        """Give a run an empty folder, and count what the block has put there; a failure empties it.

        Raises:
            BusyError: it is more than the run's owner may store.
            StorageFullError: there is no room to begin.
        """
        folder = self._models / run.run_id
        self._unpacked.pop(run.run_id, None)
        await asyncio.to_thread(empty_folder, folder)
        if (await self.disk()).room_bytes(self._settings) <= 0:
            raise StorageFullError("disk_full")
        try:
            yield
            self._unpacked[run.run_id] = await asyncio.to_thread(_folder_bytes, folder)
            quotas.check_own_bytes(self._settings, self.stored(run.owner), 0)
        except BaseException:
            self._unpacked.pop(run.run_id, None)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise

    async def recount(self, run: Run) -> None:
        """Count a run's folder again, to which something was added; if refused, it counts as before.

        Raises:
            BusyError: it is more than the run's owner may store.
        """
        before = self._unpacked.get(run.run_id, 0)
        folder = self._models / run.run_id
        self._unpacked[run.run_id] = await asyncio.to_thread(_folder_bytes, folder)
        try:
            quotas.check_own_bytes(self._settings, self.stored(run.owner), 0)
        except BusyError:
            self._unpacked[run.run_id] = before
            raise

    def deleted(self, run: Run) -> None:
        """Note that a run is gone; that it was made still counts for an hour."""
        self._unpacked.pop(run.run_id, None)
        at = now()
        for owner, made in list(self._deleted.items()):
            while made and abs((at - made[0]).total_seconds()) >= quotas.HOUR_SECONDS:
                made.popleft()
            if not made:
                del self._deleted[owner]
        self._deleted.setdefault(run.owner, deque()).append(run.created_at)

    # ── deployments

    def _up(self) -> list[Deployment]:
        return [made for made in self._store.deployments.values() if made.wanted is Wanted.UP]

    def check_deployment(self, key: DeploymentKey, replicas: int) -> None:
        """Let a deployment have so many replicas, or raise ``BusyError``."""
        others = [made for made in self._up() if made.key != key]
        quotas.check_deployment(
            self._settings,
            [made.replicas for made in others if made.key.owner == key.owner],
            [made.replicas for made in others],
            replicas,
        )

    # ── what is shown

    def shown(self, owner: str) -> dict[str, dict[str, int]]:
        """Return what an owner uses and may use."""
        settings, stored = self._settings, self.stored(owner)
        own = [made.replicas for made in self._up() if made.key.owner == owner]
        return {
            "runs": _use(stored.own_runs, settings.max_runs_per_owner),
            "runsPerHour": _use(len(stored.own_ages), settings.max_runs_per_hour),
            "storedBytes": _use(stored.own_bytes, settings.max_stored_bytes_per_owner),
            "deployments": _use(len(own), settings.max_deployments_per_owner),
            "replicas": _use(sum(own), settings.max_replicas_per_owner),
        }


def _artifacts(runs: Iterable[Run]) -> int:
    """Add up artifacts; equal ones are kept once."""
    return sum({run.digest: run.size_bytes for run in runs}.values())


def _use(used: int, limit: int) -> dict[str, int]:
    return {"used": used, "limit": limit}


def _folders(root: Path, run_ids: Iterable[str]) -> dict[str, int]:
    return {run_id: size for run_id in run_ids if (size := _folder_bytes(root / run_id))}


def _folder_bytes(folder: Path) -> int:
    """Add up the files below a folder that are its own, not links to artifacts."""
    found = [(Path(place) / name).lstat() for place, _, names in os.walk(folder) for name in names]
    return sum(each.st_size for each in found if stat.S_ISREG(each.st_mode) and each.st_nlink == 1)
