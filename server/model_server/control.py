"""The HTTP side that only the service sees: a replica's private control socket."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Protocol, Set, Tuple

import orjson

from metrics.instruments import CONTENT_TYPE
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.refusals import Answers, Refusal, refusal_of
from server.model_server.requests import Request, Response

_BODY_LIMIT = 64 * 1024


class Controlled(Protocol):
    """What the control socket can ask of a replica."""

    def state(self) -> Dict[str, Any]:
        """Say where the replica is in its life."""

    def renew(self, tokens: Mapping[str, Any]) -> List[str]:
        """Take the tokens that predict from now on; return which were used lately."""

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


_Order = Callable[[bytes], Awaitable[Response]]


class ControlApplication:
    """Answers the service's orders."""

    is_leaving = False
    body_limit = _BODY_LIMIT

    def __init__(self, replica: Controlled, answers: Answers) -> None:
        self._replica = replica
        self._answers = answers
        self._tasks: Set[asyncio.Task[None]] = set()
        self._orders: Dict[Tuple[str, str], _Order] = {
            ("GET", "/state"): self._state,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokens"): self._tokens,
            ("POST", "/ready"): self._ready,
            ("POST", "/accept"): self._accept,
            ("POST", "/drain"): self._drain,
            ("POST", "/exit"): self._exit,
        }

    def head(self, request: Request) -> Optional[Response]:
        """Take every request: unknown ones are answered when they are there."""
        del request
        return None

    def handle(self, request: Request) -> None:
        """Carry out one order; a failure is answered with its code and parameters."""
        task = asyncio.get_running_loop().create_task(self._carry_out(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def finished(self, request: Request, status: Optional[int]) -> None:
        """End the process once the order to do so has been answered."""
        if status == 200 and (request.head.method, request.head.path) == ("POST", "/exit"):
            self._replica.end()

    def abandoned(self, request: Request) -> None:
        """Carry the order out all the same."""

    def hold(self, size: int) -> bool:
        """Take any body of the size of an order's."""
        return size <= _BODY_LIMIT

    async def _carry_out(self, request: Request) -> None:
        request.answer(await self._answered(request))

    async def _answered(self, request: Request) -> Response:
        order = self._orders.get((request.head.method, request.head.path))
        try:
            if order is None:
                raise Refusal(404, "route_unknown")
            return await order(request.body)
        except ModelFailure as failure:
            params = {"evidence": failure.evidence, **failure.params}
            status = 409 if failure.code == "replica_drained" else 503
            return _json({"code": failure.code, "params": params}, status=status)
        except BadInputError as error:
            return _json({"code": error.code, "params": error.params}, status=503)
        except Exception as error:  # noqa: BLE001 - every fault has an answer in JSON
            return self._answers.refuse(request.head, refusal_of(error))

    async def _state(self, _body: bytes) -> Response:
        return _json(self._replica.state())

    async def _metrics(self, _body: bytes) -> Response:
        text = self._replica.metrics().encode()
        return Response(200, (text,), content_type=CONTENT_TYPE)

    async def _tokens(self, body: bytes) -> Response:
        try:
            return _json({"used": self._replica.renew(orjson.loads(body))})
        except ValueError:
            raise Refusal(400, "request_malformed") from None

    async def _ready(self, _body: bytes) -> Response:
        await self._replica.warm_up()
        return _json({})

    async def _accept(self, _body: bytes) -> Response:
        self._replica.accept()
        return _json({})

    async def _drain(self, _body: bytes) -> Response:
        await self._replica.drain()
        return _json({})

    async def _exit(self, _body: bytes) -> Response:
        return _json({})


def _json(body: Mapping[str, Any], status: int = 200) -> Response:
    return Response(status, (orjson.dumps(body, default=str),))
