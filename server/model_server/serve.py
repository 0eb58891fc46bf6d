"""The life of one replica: load, prove readiness, accept, drain, end.

A replica ends with 0 when it was told to, with 1 when its model could not be loaded, and with
``EXIT_STUCK`` when a prediction passed its deadline and its thread did not come back: it has
answered every request by then and has to be started again.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import uvloop

from metrics.instruments import InferenceInstruments
from server.model_server import loading, protocol
from server.model_server.admission import Admission
from server.model_server.app import Application, Served
from server.model_server.batching import GRACE_SECONDS, Batcher
from server.model_server.control import ControlApplication
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.listener import Listener
from server.model_server.messages import Messages
from server.model_server.refusals import Answers, refusal_of
from server.model_server.runtimes.base import Loaded, Runtime
from server.model_server.sharing import Share
from server.model_server.spec import ModelSpec

logger = logging.getLogger(__name__)

EXIT_LOAD_FAILED = 1
EXIT_STUCK = 75

Load = Callable[[], Tuple[Runtime, Loaded]]
Emit = Callable[[Dict[str, Any]], None]

_POLL_SECONDS = 0.02
_EXPIRE_SECONDS = 0.5
"""How often tokens are looked at: the system's clock may jump."""
_CLOSE_SECONDS = 5.0
"""How long connections may take to close once the drain time is over."""
_LOST_SECONDS = 2.0
"""How long the last answers may take to be written after a thread was given up."""


class Replica:
    """One model on two sockets: the deployment's shared one, and its private control socket.

    Owns both sockets. All methods belong to the event loop.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        load: Load,
        shared: socket.socket,
        control: socket.socket,
        messages: Messages,
        share: Optional[Share] = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._spec = spec
        self._load = load
        self._answers = Answers(messages)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._shared_socket = shared
        self._share = share
        self._shared: Optional[Listener] = None
        self._accepts = False
        self._application: Optional[Application] = None
        self._served: Optional[Served] = None
        self._admission = None if spec.secret is None else Admission(spec.secret)
        self._expiring: Optional[asyncio.TimerHandle] = None
        self._draining: Optional[asyncio.Task[None]] = None
        self._losing: Optional[asyncio.Task[None]] = None
        self._batcher = Batcher(
            seconds=spec.predict_seconds,
            grace=grace_seconds,
            on_stuck=self._poll,
            on_recovered=self._poll,
            on_lost=self._lost,
            on_wedged=self._wedged,
        )
        self._control = Listener(control, ControlApplication(self, self._answers), self._answers)
        self._control.start()
        self._expire()

    async def open(self) -> None:
        """Load the model; the control socket answers meanwhile.

        Raises:
            ModelFailure: the model cannot be loaded.
        """
        loaded = await self._batcher.load(self._load, partial(loading.plan_for, self._spec))
        self._served = Served(
            spec=self._spec,
            signature=loaded.signature,
            platform=f"{loaded.framework}_{self._spec.kind}",
            batcher=self._batcher,
            instruments=InferenceInstruments(
                None,
                framework=loaded.framework,
                framework_version=loaded.framework_version,
                digest=self._spec.digest,
                started_at=time.time(),
            ),
        )
        self._application = Application(self._served, self._answers, self._admission)
        self._shared = Listener(self._shared_socket, self._application, self._answers, self._share)
        # What was made while loading stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        _give_back()

    def state(self) -> Dict[str, Any]:
        """Say where the replica is in its life."""
        application, shared = self._application, self._shared
        return {
            "loaded": self._served is not None,
            "accepting": shared is not None and shared.is_accepting,
            "draining": self._draining is not None,
            "stuck": self._batcher.is_stuck,
            "in_flight": application.in_flight if application is not None else 0,
            "connections": shared.connections if shared is not None else 0,
            "pid": os.getpid(),
        }

    def renew(self, tokens: Mapping[str, Any]) -> List[str]:
        """Take the tokens that predict from now on; return which were used since the last time.

        Raises:
            ValueError: they cannot be read; those of before stay.
        """
        used = [] if self._admission is None else self._admission.renew(tokens)
        self._forget_checks()
        return used

    def _forget_checks(self) -> None:
        if self._application is not None:
            self._application.forget_checks()

    def _expire(self) -> None:
        """Drop the tokens whose time is over, and look again when the next one's is."""
        if self._admission is None:
            return
        now = time.time()
        if self._admission.expire(now):
            self._forget_checks()
        end = self._admission.first_end
        pause = _EXPIRE_SECONDS if end is None else min(_EXPIRE_SECONDS, max(0.0, end - now))
        self._expiring = asyncio.get_running_loop().call_later(pause, self._expire)

    def metrics(self) -> str:
        """Return the replica's figures in Prometheus' text format.

        Raises:
            ModelFailure: ``replica_loading``.
        """
        return self._loaded().instruments.text()

    async def warm_up(self) -> None:
        """Answer the passport's warm-up as a real inference that nobody counts.

        Raises:
            ModelFailure: it could not be answered, or the model is still being loaded.
            BadInputError: the passport does not fit the model.
        """
        served = self._loaded()
        given = self._spec.passport.get("warmup", {}).get("inputs", [])
        asked = protocol.warm_up(given, served.signature, takes_fp64=served.takes_fp64)
        answer = await self._batcher.predict(asked.inputs)
        codec = protocol.InferCodec(
            served.signature, takes_fp64=served.takes_fp64, model_version=self._spec.version
        )
        codec.render(asked, answer, self._spec.run_id)

    def accept(self) -> None:
        """Start accepting on the shared socket; already doing so is success.

        Raises:
            ModelFailure: ``replica_loading``, or ``replica_drained`` once a drain has begun.
        """
        self._loaded()
        if self._draining is not None:
            raise ModelFailure("replica_drained")
        self._accepts = True
        self._poll()

    async def drain(self) -> None:
        """Stop accepting, answer what is under way, then close what is idle.

        Every further request of a connection is answered with ``Connection: close``. A second
        call waits for the first.
        """
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        await asyncio.shield(self._draining)

    def end(self, code: int = 0) -> None:
        """Let the process end with an exit code; the first one counts."""
        if not self._ended.done():
            self._ended.set_result(code)

    async def wait(self) -> int:
        """Wait for the end of the replica and return its exit code."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Close both sockets and every connection."""
        if self._expiring is not None:
            self._expiring.cancel()
        for task in (self._draining, self._losing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._batcher.close()
        for listener in (self._shared, self._control):
            if listener is not None:
                listener.close()
                await listener.finish()
        self._shared_socket.close()

    def _loaded(self) -> Served:
        if self._served is None:
            raise ModelFailure("replica_loading")
        return self._served

    def _poll(self) -> None:
        """Accept while that is wanted and predictions come back."""
        if self._shared is None or self._draining is not None:
            return
        if self._accepts and not self._batcher.is_stuck:
            self._shared.start()
        else:
            self._shared.stop()

    async def _drain(self) -> None:
        self._accepts = False
        if self._shared is None or self._application is None:
            return
        self._application.is_draining = True
        self._shared.close()
        await asyncio.sleep(self._spec.drain_seconds)
        await self._application.at_rest()
        await self._close_connections(_CLOSE_SECONDS)

    async def _close_connections(self, seconds: float) -> None:
        """Close idle connections, wait for the others, and cut off what is left at the end."""
        assert self._shared is not None  # noqa: S101 - only called once it is open
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._shared.connections and loop.time() < deadline:
            self._shared.close_idle()
            await asyncio.sleep(_POLL_SECONDS)
        self._shared.abort()

    def _lost(self) -> None:
        self._losing = asyncio.create_task(self._lose())

    async def _lose(self) -> None:
        if self._application is not None:
            self._application.is_draining = True
        if self._shared is not None:
            await self._close_connections(_LOST_SECONDS)
        self.end(EXIT_STUCK)

    def _wedged(self) -> None:
        """Answer what hangs in the event loop, from another thread, and end the process."""
        seconds = f"{self._spec.predict_seconds:g}"
        refusal = refusal_of(ModelFailure("prediction_timed_out", seconds=seconds))
        response = self._answers.refuse(None, refusal)
        if self._shared is not None:
            for connection in list(self._shared.open_connections):
                connection.cut_off(response)
        os._exit(EXIT_STUCK)


def _give_back() -> None:
    """Return to the system what loading needed and serving does not: several MiB of optimised graph."""
    with suppress(AttributeError, OSError):
        # Only glibc has it.
        ctypes.CDLL(None).malloc_trim(0)


def run(
    spec: ModelSpec,
    *,
    shared: socket.socket,
    control: socket.socket,
    emit: Emit,
    share: Optional[Share] = None,
) -> int:
    """Serve one model until told to end; return the exit code."""
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()

    def replica() -> Replica:
        return Replica(
            spec,
            load=partial(loading.load_model, spec),
            shared=shared,
            control=control,
            messages=Messages(),
            share=share,
        )

    return loop.run_until_complete(_run(replica, emit))


async def _run(make: Callable[[], Replica], emit: Emit) -> int:
    replica = make()
    _end_on_signal(replica)
    opening = asyncio.ensure_future(replica.open())
    waiting = asyncio.ensure_future(replica.wait())
    await asyncio.wait({opening, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        try:
            await opening
        except (ModelFailure, BadInputError) as failure:
            emit(
                {
                    "event": "failed",
                    "code": failure.code,
                    "params": failure.params,
                    "evidence": getattr(failure, "evidence", ""),
                }
            )
            return EXIT_LOAD_FAILED
    return await waiting


def _end_on_signal(replica: Replica) -> None:
    """Drain at the first SIGTERM and end at once at the second."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def drain() -> None:
        await replica.drain()
        replica.end()

    def told() -> None:
        if tasks:
            replica.end()
        tasks.add(loop.create_task(drain()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
