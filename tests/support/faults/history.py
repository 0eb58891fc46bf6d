"""What a client was told, and so may rely on; what it asked without hearing the end of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from tests.support.service import Caller

ENDED = {"Succeeded", "Failed"}


class RefusedError(Exception):
    """The service has answered, and said no."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.code = str(body.get("code"))


@dataclass
class Rollout:
    """One run in one environment: what was asked of it, what was told of it last."""

    asked: str = ""
    """``asked`` once a start was sent, ``told`` once one was answered."""
    again: bool = False
    """Whether a further start was sent and not answered."""
    stop: str = ""
    replaced: bool = False
    """Whether another run of the model was to take its place."""
    told: dict[str, Any] = field(default_factory=dict)
    endpoint: str = ""
    seen_at: str = ""
    is_wanted: bool = False
    is_up: bool = False
    """Whether it was wanted, and served, when it was judged the last time."""

    @property
    def holds(self) -> bool:
        """Whether it needs what its run holds."""
        return self.is_wanted or self.is_up


@dataclass
class Told:
    """One run. ``value`` is what its model answers to zeros; None if it cannot serve."""

    value: float | None
    sha256: str = ""
    model: str = ""
    preparing: str = ""
    prepared: dict[str, Any] = field(default_factory=dict)
    prepared_at: str = ""
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    deleted: str = ""
    events: list[Any] = field(default_factory=list)

    def rollout(self, environment: str) -> Rollout:
        """What is known of it in an environment."""
        return self.rollouts.setdefault(environment, Rollout())


class Client:
    """One session with the service that notes what it asks and what it is told.

    A connection that ends without an answer is no failure: then nothing is promised.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.runs: dict[str, Told] = {}
        self.refusals: list[RefusedError] = []
        self.cards: frozenset[str] = frozenset()
        """The GPUs of the machine, if leases are of interest."""
        self.probe = ""
        """A run that is never prepared."""

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        status, body = await self.caller.call(method, path, **more)
        if status != 200:
            refusal = RefusedError(status, body)
            self.refusals.append(refusal)
            raise refusal
        return body

    async def upload(self, content: bytes, value: float | None, model: str | None = None) -> str:
        """Upload a model and return its run."""
        form = aiohttp.FormData()
        if model is not None:
            form.add_field("model", model)
        form.add_field("file", content, filename="model.onnx")
        body = await self._ask("POST", "/upload", data=form)
        told = Told(value=value, sha256=body["sha256"], model=body["model"])
        self.runs[body["runId"]] = told
        return str(body["runId"])

    async def start_preparing(self, run_id: str, gpu: str = "cpu") -> None:
        """Start a preparation."""
        told = self.runs[run_id]
        told.preparing = told.preparing or "asked"
        body = await self._ask("POST", f"/prepare/start?runId={run_id}&gpuId={gpu}")
        told.preparing = "told"
        told.prepared = body

    async def until_prepared(self, run_id: str, seconds: float = 120) -> dict[str, Any]:
        """Wait for the end of a preparation."""
        body = await self.caller.until(
            f"/prepare/status?runId={run_id}", lambda now: now["phase"] in ENDED, seconds
        )
        self.runs[run_id].prepared = body
        return dict(body)

    async def prepare(self, run_id: str, gpu: str = "cpu") -> dict[str, Any]:
        """Prepare a run to the end."""
        await self.start_preparing(run_id, gpu)
        return await self.until_prepared(run_id)

    async def deploy(self, run_id: str, environment: str = "dev") -> dict[str, Any]:
        """Deploy a run and wait for the end of the roll-out."""
        told = self.runs[run_id]
        rollout = told.rollout(environment)
        for other in self.runs.values():
            if other is not told and other.model == told.model and environment in other.rollouts:
                other.rollouts[environment].replaced = True
        rollout.asked, rollout.again = rollout.asked or "asked", bool(rollout.told)
        rollout.stop, rollout.replaced = "", False
        path = f"runId={run_id}&env={environment}"
        rollout.told = await self._ask("POST", f"/deploy/start?{path}")
        rollout.asked, rollout.again = "told", False
        body = await self.caller.until(
            f"/deploy/status?{path}", lambda now: self._seen(rollout, now)["phase"] in ENDED
        )
        rollout.told = body
        return dict(body)

    def _seen(self, rollout: Rollout, body: dict[str, Any]) -> dict[str, Any]:
        if "endpoint" in body:
            rollout.endpoint = body["endpoint"]
            rollout.told = body
        return body

    async def stop(self, run_id: str, environment: str = "dev") -> None:
        """Stop a deployment."""
        rollout = self.runs[run_id].rollout(environment)
        rollout.stop = "asked"
        await self._ask("POST", f"/deploy/stop?runId={run_id}&env={environment}")
        rollout.stop = "told"

    async def delete(self, run_id: str) -> None:
        """Delete a run."""
        told = self.runs[run_id]
        is_asked = bool(told.deleted)
        told.deleted = told.deleted or "asked"
        try:
            await self._ask("DELETE", f"/runs/{run_id}")
        except RefusedError as error:
            if error.code == "disk_full":
                # The service ends it by itself, once there is room to write it down.
                told.deleted = "to end"
            # As it may one that the database refused after the bytes were gone.
            if not (is_asked and error.code == "run_unknown"):
                raise
        told.deleted = "told"

    def restore(self, older: str, newer: str) -> None:
        """Note that with the newer run away the older one is wanted again, as a further version."""
        version = self.runs[newer].rollouts["dev"].told["version"]
        rollout = self.runs[older].rollout("dev")
        rollout.told = {**rollout.told, "version": version}
        rollout.again = True
