"""One model process of this machine, steered over its control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from server.engines.base import STUCK, EngineError, Replica, ReplicaSpec
from server.sandbox.events import last_words, read_event, read_failure

if TYPE_CHECKING:
    from server.engines.admission import Teller
    from server.engines.control import ControlSocket
    from server.records import Admitted
    from server.sandbox.child import Child
    from server.settings import Settings

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
# One that takes long to load is asked less often: what it answers meanwhile costs, too.
_LONGEST_POLL_SECONDS = 0.5
_POLL_SHARE = 0.1
_EXIT_SECONDS = 2.0
# What the model server exits with when a prediction never returned.
_EXIT_STUCK = 75
_RETREAT_SECONDS = 1.0
_CALL_SECONDS = 5.0
# A replica names why it ends when it ends, in one line of this size at most.
_LAST_LINES = 20
_LINE_CHARS = 4096


class LocalReplica(Replica):
    """A model process of this machine, steered over its control socket."""

    def __init__(
        self,
        spec: ReplicaSpec,
        port: int,
        child: Child,
        control: ControlSocket,
        settings: Settings,
    ) -> None:
        self.spec = spec
        self.port = port
        self._child = child
        self._control = control
        self._settings = settings
        self.teller: Teller | None = None
        """Tells it which tokens predict, where that is not open to everybody."""
        self._ended = asyncio.create_task(self._watch())
        self._draining: asyncio.Task[None] | None = None

    async def _watch(self) -> EngineError:
        said: deque[str] = deque(maxlen=_LAST_LINES)
        while (line := await self._child.line()) is not None:
            # Not read before its end: one that writes and writes would keep us busy.
            if len(line) <= _LINE_CHARS:
                said.append(line)
        code = await self._child.wait()
        for line in reversed(said):
            if (failure := _failure_in(line)) is not None:
                return failure
        if code == _EXIT_STUCK:
            return EngineError(STUCK)
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        return EngineError("replica_ended", reason=reason, evidence=last_words(self._child.log))

    async def _call(
        self, method: str, path: str, *, seconds: float | None = None, **more: Any
    ) -> tuple[int, bytes]:
        return await self._control.ask(method, path, seconds=seconds or _CALL_SECONDS, **more)

    async def ready(self) -> None:
        """Wait until the replica has answered a real inference; it takes no traffic yet."""
        deadline = self._settings.load_seconds
        try:
            async with asyncio.timeout(deadline):
                await self._until_loaded()
                status, body = await self._call(
                    "POST", "/ready", seconds=self._settings.smoke_seconds
                )
        except TimeoutError:
            raise EngineError("load_timeout", seconds=round(deadline)) from None
        if status != 200:
            raise _refusal(body)

    async def _until_loaded(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            if self._ended.done():
                raise self._ended.result()
            with contextlib.suppress(EngineError, ValueError):
                status, body = await self._call("GET", "/state")
                if status == 200 and read_event(body).get("loaded") is True:
                    return
            pause = min(_LONGEST_POLL_SECONDS, (loop.time() - began) * _POLL_SHARE)
            await asyncio.wait([self._ended], timeout=max(_POLL_SECONDS, pause))

    async def admit(self) -> None:
        """Let it take traffic."""
        if self.teller is not None:
            # Before it knows who may predict it would refuse everybody.
            await self.teller.renew(_CALL_SECONDS)
        status, body = await self._call("POST", "/accept")
        if status != 200:
            raise _refusal(body)

    async def tell(self, admitted: Admitted) -> tuple[int, bytes]:
        """Hand over the tokens that predict; return its answer, status and body."""
        return await self._call("POST", "/tokens", said=admitted)

    async def retreat(self) -> None:
        """Let it accept no further connection; those that it has go on. Already gone is success."""
        draining = self._drain_once()
        with contextlib.suppress(TimeoutError):
            # One that is too busy to listen to us must not hold up the next version.
            async with asyncio.timeout(_RETREAT_SECONDS):
                while not draining.done() and await self._accepts():
                    await asyncio.wait([draining], timeout=_POLL_SECONDS)

    async def _accepts(self) -> bool:
        try:
            status, body = await self._call("GET", "/state")
            return status != 200 or bool(read_event(body).get("accepting", True))
        except (EngineError, ValueError):
            return not self._ended.done()

    async def drain(self) -> None:
        """Let it finish what it has; it takes nothing new. Already gone is success."""
        await asyncio.shield(self._drain_once())

    def _drain_once(self) -> asyncio.Task[None]:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return self._draining

    async def _drain(self) -> None:
        seconds = self._settings.drain_seconds + self._settings.predict_seconds + _CALL_SECONDS
        with contextlib.suppress(EngineError):
            await self._call("POST", "/drain", seconds=seconds)

    async def stop(self) -> None:
        """End the process with everything it started. Already gone is success."""
        if not self._ended.done():
            with contextlib.suppress(EngineError):
                await self._call("POST", "/exit", seconds=_EXIT_SECONDS)
            await asyncio.wait([self._ended], timeout=_EXIT_SECONDS)
        await self._child.kill()
        await self._ended
        if self._draining is not None:
            await self._draining
        self._control.close()

    async def ended(self) -> EngineError:
        """Wait until the process has ended, and return why."""
        return await asyncio.shield(self._ended)

    async def probe(self) -> None:
        """Let it answer the passport's warm-up as a real inference that nobody counts."""
        # It gives the prediction up by itself, and says so.
        seconds = self._settings.predict_seconds + _CALL_SECONDS
        status, body = await self._call("POST", "/ready", seconds=seconds)
        if status != 200:
            raise _refusal(body)

    async def scrape(self) -> str:
        """Return its metrics as Prometheus text."""
        status, body = await self._call("GET", "/metrics")
        if status != 200:
            raise EngineError("replica_silent", evidence=f"status {status}")
        return body.decode("utf-8", errors="replace")


def _failure_in(line: str) -> EngineError | None:
    """Read a failure that the process named on its way out; its text is not trusted."""
    try:
        event = read_event(line)
        return _named(event) if event.get("event") == "failed" else None
    except ValueError:
        logger.debug("a replica wrote a line that is no event")
    return None


def _refusal(body: bytes) -> EngineError:
    with contextlib.suppress(ValueError):
        return _named(read_event(body))
    return EngineError("replica_not_ready")


def _named(event: dict[str, Any]) -> EngineError:
    code, evidence, params = read_failure(event)
    return EngineError(code, evidence=evidence, permanent=True, **params)
