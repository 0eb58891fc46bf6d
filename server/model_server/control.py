"""The HTTP side that only the service sees: a replica's private control socket."""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Dict, Mapping, Protocol, Tuple

import orjson
from aiohttp import web

from metrics.instruments import CONTENT_TYPE
from server.model_server.connections import Connection
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.refusals import Answers, Refusal, refusal_of


class Controlled(Protocol):
    """What the control socket can ask of a replica."""

    def state(self) -> Dict[str, Any]:
        """Say where the replica is in its life."""

    def metrics(self) -> str:
        """Return its figures in Prometheus' text format."""

    async def warm_up(self) -> None:
        """Answer a real inference that nobody counts."""

    def accept(self) -> None:
        """Start accepting on the shared socket."""

    async def drain(self) -> None:
        """Stop accepting and come to rest."""

    def end(self, code: int = 0) -> None:
        """End the process."""


_Handler = Callable[[], Awaitable[web.Response]]


class ControlApplication:
    """Answers the service's orders."""

    def __init__(self, replica: Controlled, answers: Answers) -> None:
        self._replica = replica
        self._answers = answers
        self._routes: Dict[Tuple[str, str], _Handler] = {
            ("GET", "/state"): self._state,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/ready"): self._ready,
            ("POST", "/accept"): self._accept,
            ("POST", "/drain"): self._drain,
            ("POST", "/exit"): self._exit,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Carry out one order; a failure is answered with its code and parameters."""
        connection = request.protocol
        if isinstance(connection, Connection):
            connection.request_started()
        try:
            response = await self._answered(request)
            await response.prepare(request)
            await response.write_eof()
        finally:
            if isinstance(connection, Connection):
                connection.request_ended()
        if (request.method, request.path) == ("POST", "/exit"):
            self._replica.end()
        return response

    async def _answered(self, request: web.BaseRequest) -> web.Response:
        handler = self._routes.get((request.method, request.path))
        try:
            if handler is None:
                raise Refusal(404, "route_unknown")
            return await handler()
        except ModelFailure as failure:
            params = {"evidence": failure.evidence, **failure.params}
            status = 409 if failure.code == "replica_drained" else 503
            return self._json({"code": failure.code, "params": params}, status=status)
        except BadInputError as error:
            return self._json({"code": error.code, "params": error.params}, status=503)
        except Exception as error:  # noqa: BLE001 - every fault has an answer in JSON
            return self._answers.refuse(request, refusal_of(error))

    def _json(self, body: Mapping[str, Any], status: int = 200) -> web.Response:
        return self._answers.json(orjson.dumps(body, default=str), status=status)

    async def _state(self) -> web.Response:
        return self._json(self._replica.state())

    async def _metrics(self) -> web.Response:
        text = self._replica.metrics().encode()
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _ready(self) -> web.Response:
        await self._replica.warm_up()
        return self._json({})

    async def _accept(self) -> web.Response:
        self._replica.accept()
        return self._json({})

    async def _drain(self) -> web.Response:
        await self._replica.drain()
        return self._json({})

    async def _exit(self) -> web.Response:
        return self._json({})
