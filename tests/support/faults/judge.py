"""Judges a service after a fault, by what a client sees and what lies in the data folder."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.support.faults.history import Told
from tests.support.predictions import addresses
from tests.support.processes import processes_of, replicas_of
from tests.support.shapes import assert_deploy_status, assert_prepare_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.faults.history import Client, Rollout

ZEROS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}
_PATIENCE_SECONDS = 60.0
_MISDIRECTED = 421
# What a preparation may end in that a fault has met.
INTERRUPTED = frozenset({"preparation_interrupted"})


class Judge:
    """Collects complaints by kind; none is what is wanted."""

    def __init__(self, client: Client, data_dir: Path) -> None:
        self._client = client
        self._caller = client.caller
        self._data_dir = data_dir
        self.excused: frozenset[str] = INTERRUPTED
        """Codes in which a preparation or a roll-out may have failed."""
        self.may_litter = False
        """Whether what was being made may stay until the next start, as a disk did not let go of it."""
        self.complaints: list[tuple[str, str]] = []

    def counts(self) -> Counter[str]:
        """How many complaints there are of each kind."""
        return Counter(kind for kind, _ in self.complaints)

    def complain(self, kind: str, detail: object) -> None:
        """Note that something is not as it should be."""
        self.complaints.append((kind, str(detail)))

    async def judge(self) -> None:
        """Look at everything that the client was told, and at what there is beside it."""
        await self._settled(self._deletions_end, "stuck")
        await self.judge_states()
        await self._settled(self._leases_fit, "lease")
        await self._settled(self._processes_fit, "orphan")
        await self._settled(self._folder_fits, "litter")

    async def judge_states(self) -> None:
        """Look at everything that the client was told."""
        listed: dict[str, Any] = {
            run["runId"]: run for run in (await self._caller.get("/runs"))["runs"]
        }
        for run_id, told in self._client.runs.items():
            await self._run(run_id, told, listed.get(run_id))
        self._adopt(listed)

    def _adopt(self, listed: dict[str, Any]) -> None:
        """Runs of uploads that were never answered may be there or not; they are ours to delete."""
        for run_id, shown in listed.items():
            if run_id not in self._client.runs:
                self._client.runs[run_id] = Told(value=None, sha256=shown["sha256"])

    async def _run(self, run_id: str, told: Told, shown: dict[str, Any] | None) -> None:
        if told.deleted:
            status, _ = await self._caller.call("GET", f"/prepare/status?runId={run_id}")
            if told.deleted == "told" and (shown is not None or status != 404):
                self.complain("undead", run_id)
            if status == 404:
                told.deleted = "told"
                return
        if shown is None:
            self.complain("lost", f"run {run_id}")
            return
        if shown["sha256"] != told.sha256:
            self.complain("lost", f"bytes of run {run_id}: {shown}")
        await self._preparation(run_id, told)
        for environment, rollout in list(told.rollouts.items()):
            await self._rollout(run_id, told, environment, rollout)
        await self._timeline(run_id, told)

    async def _until_ended(self, path: str) -> dict[str, Any] | None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            body = await self._caller.get(path)
            if body["phase"] != "Running":
                return dict(body)
            if time.monotonic() > deadline:
                self.complain("stuck", body)
                return None
            await asyncio.sleep(0.05)

    async def _preparation(self, run_id: str, told: Told) -> None:
        path = f"/prepare/status?runId={run_id}"
        first = await self._caller.get(path)
        assert_prepare_status(first, run_id)
        before = told.prepared.get("phase")
        if told.preparing == "told" and first["phase"] == "Pending":
            self.complain("lost", f"preparation {run_id}")
        if before == "Succeeded" and first["phase"] != "Succeeded":
            self.complain("lost", f"passport of {run_id}: {first}")
        body = await self._until_ended(path)
        if body is None:
            return
        told.prepared_at = self._not_back(told.prepared_at, body)
        told.prepared = body
        if body["phase"] == "Failed" and told.value is not None:
            codes = {step["code"] for step in body["steps"] if step["status"] == "Failed"}
            # A deletion that was refused may have taken the bytes, to make room, and end any time.
            excused = self.excused | ({"artifact_missing"} if told.deleted else set())
            if not codes or not codes <= excused:
                self.complain("broken", body)

    async def _timeline(self, run_id: str, told: Told) -> None:
        events = (await self._caller.get(f"/runs/{run_id}/events"))["events"]
        numbers = [event["sequence"] for event in events]
        if events[: len(told.events)] != told.events or numbers != sorted(set(numbers)):
            self.complain("lost", f"events of {run_id}: {told.events} -> {events}")
        told.events = events
        if told.prepared.get("phase") == "Succeeded":
            codes = [event["code"] for event in events]
            starts = codes.count("event_preparation_started")
            if (
                not starts
                or codes.count("event_prepared") > starts
                or "event_prepared" not in codes
            ):
                self.complain("lost", f"preparation of {run_id} in {codes}")

    def _not_back(self, before: str, body: dict[str, Any]) -> str:
        now = str(body.get("updatedAt", before))
        if now < before:
            self.complain("back in time", f"{before} -> {body}")
        return now

    async def _rollout(self, run_id: str, told: Told, environment: str, before: Rollout) -> None:
        body = await self._until_ended(f"/deploy/status?runId={run_id}&env={environment}")
        if body is None:
            return
        assert_deploy_status(body, run_id, environment)
        before.seen_at = self._not_back(before.seen_at, body)
        before.is_up = "servingVersion" in body
        before.is_wanted = body["phase"] != "Pending"
        if not before.is_wanted:
            if before.asked == "asked" and not before.told:
                del told.rollouts[environment]
            elif not (before.stop or before.replaced):
                self.complain("lost", f"deployment {environment} of {run_id}: {body}")
            return
        if before.stop == "told":
            self.complain("undead", body)
        self._compare(before, body)
        before.asked, before.again, before.told = "told", False, body
        before.endpoint = body.get("endpoint", "")
        if told.value is None:
            if body["phase"] != "Failed":
                self.complain("broken", body)
            return
        if body["phase"] != "Succeeded" and body["code"] not in self.excused:
            self.complain("silent", body)
        elif before.is_up:
            await self._predicts(*self._expected(run_id, told, body), body)

    def _compare(self, before: Rollout, body: dict[str, Any]) -> None:
        if before.told:
            version, known = int(body["version"]), int(before.told["version"])
            if version < known:
                self.complain("lost", f"version: {before.told} -> {body}")
            if version > known + (1 if before.again else 0):
                self.complain("burnt version", f"{before.told} -> {body}")
        if before.endpoint and body.get("endpoint") != before.endpoint:
            self.complain("moved", f"{before.endpoint} -> {body}")

    def _expected(
        self, run_id: str, told: Told, status: dict[str, Any]
    ) -> tuple[str, set[float | None]]:
        """Under which name a deployment answers, and what: an older version may be another run's."""
        if status["servingVersion"] == status["version"]:
            return run_id, {told.value}
        same = [one.value for one in self._client.runs.values() if one.model == told.model]
        return told.model, set(same)

    async def _predicts(self, name: str, values: set[float | None], status: dict[str, Any]) -> None:
        for base in addresses(status):
            url = f"{base}/v2/models/{name}/infer"
            try:
                code, answer = await self._predict(url)
            except aiohttp.ClientError as error:
                self.complain("silent", f"{base}: {error!r}")
                continue
            if code != 200 or answer["outputs"][0]["data"][0] not in values:
                self.complain("silent", f"{base}: {code} {answer} though {status}")

    async def _predict(self, url: str) -> tuple[int, Any]:
        """Predict; once more where the connection that was kept led to the version before.

        That one says so and closes it, or closes what was idle while the request is on its way.
        """
        with contextlib.suppress(aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            code, answer = await self._caller.call("POST", url, json=ZEROS)
            if code != _MISDIRECTED:
                return code, answer
        return await self._caller.call("POST", url, json=ZEROS)

    async def _settled(self, problem: Callable[[], Awaitable[str]], kind: str) -> None:
        """Complain about what is not in order after some time either."""
        deadline = time.monotonic() + 20
        while found := await problem():
            if time.monotonic() > deadline:
                self.complain(kind, found)
                return
            await asyncio.sleep(0.05)

    async def _deletions_end(self) -> str:
        """Whether those deletions have ended that the service had no room to write down."""
        for run_id, told in self._client.runs.items():
            if told.deleted == "to end":
                status, _ = await self._caller.call("GET", f"/prepare/status?runId={run_id}")
                if status != 404:
                    return f"deletion of {run_id}"
                told.deleted = "told"
        return ""

    async def _leases_fit(self) -> str:
        """Whether exactly those GPUs are taken that a run may have by what its owner did."""
        if not self._client.cards:
            return ""
        must = {
            told.prepared["device"]
            for told in self._client.runs.values()
            if told.deleted != "told"
            and told.prepared.get("phase") == "Succeeded"
            and told.prepared["device"] in self._client.cards
            # It keeps its GPU until it is first deployed, and while that is wanted or serves.
            and (
                not told.rollouts
                or any(one.holds for one in told.rollouts.values())
                or self._stands_in(told)
            )
        }
        probe = self._client.probe
        offered = await self._caller.get(f"/prepare/gpus?runId={probe}")
        taken = set(self._client.cards) - {option["id"] for option in offered}
        return "" if taken == must else f"taken {taken}, should be {must}"

    def _stands_in(self, told: Told) -> bool:
        """Whether it still serves where a newer run of its model could not take over."""
        newer = [
            other.rollouts[environment].told
            for environment, one in told.rollouts.items()
            for other in self._client.runs.values()
            if one.replaced and other.model == told.model and environment in other.rollouts
        ]
        return any(
            body.get("servingVersion", body["version"]) != body["version"] for body in newer if body
        )

    async def _processes_fit(self) -> str:
        wanted = sum(
            one.is_up
            for told in self._client.runs.values()
            if told.deleted != "told"
            for one in told.rollouts.values()
        )
        found = replicas_of(self._data_dir)
        others = [one.argv for one in processes_of(self._data_dir) if "prove" in one.argv]
        return "" if len(found) == wanted and not others else f"{wanted} wanted: {found} {others}"

    async def _folder_fits(self) -> str:
        """Whether nothing lies in the data folder that no run needs."""
        listed = (await self._caller.get("/runs"))["runs"]
        root = self._data_dir
        expected = {
            "blobs": {run["sha256"] for run in listed},
            "incoming": set(),
            "specs": set(),
            "half trees": set(),
            "half locks": set(),
            "half environments": set(),
        }
        found = {
            "blobs": {path.name for path in (root / "blobs").glob("??/*")},
            "incoming": {path.name for path in (root / "blobs" / "incoming").iterdir()},
            "specs": {path.name for path in (root / "specs").glob("*")},
            "half trees": {path.name for path in (root / "trees").glob(".*")},
            "half locks": {path.name for path in (root / "environments/.locks").glob(".*")},
            "half environments": {path.name for path in (root / "environments/.tmp").glob("*")},
        }
        runs = {run["runId"] for run in listed}
        looked_at = ("blobs",) if self.may_litter else found
        wrong = {
            name: found[name] ^ expected[name]
            for name in looked_at
            if found[name] != expected[name]
        }
        for name in ("models", "logs"):
            if left := {path.name for path in (root / name).glob("*")} - runs:
                wrong[name] = left
        return str(wrong) if wrong else ""


def integrity_of(database: Path) -> str:
    """Return what SQLite itself says of a database: ``ok``."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
