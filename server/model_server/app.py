"""The HTTP side of one model: Open Inference Protocol v2 on the deployment's own address."""

from __future__ import annotations

import asyncio
import hmac
import time
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional
from urllib.parse import unquote

import orjson
from aiohttp import web

from metrics.instruments import InferenceInstruments
from server.model_server import protocol
from server.model_server.batching import Batcher
from server.model_server.bodies import read_body
from server.model_server.connections import Connection
from server.model_server.failures import ModelFailure
from server.model_server.refusals import REQUEST_ID, Answers, Refusal, given_id, refusal_of
from server.model_server.runtimes.base import Signature
from server.model_server.spec import ModelSpec

SERVER_VERSION = "0.1.0"
SECRET_HEADER = "X-Persephone-Secret"  # noqa: S105 - a header's name
_BODIES_HELD = 4
"""How many bodies of the largest size may be in memory at once."""
_WATCHED_ANSWER_BYTES = 64 * 1024


class Target(NamedTuple):
    """What a path of the protocol means."""

    action: str
    model: str = ""
    version: str = ""


_METHODS = {"infer": ("POST",)}
_READING = ("GET", "HEAD")
_PATHS = {
    ("v2",): "server",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
}
_MODEL_PATHS = {(): "model", ("ready",): "model_ready", ("infer",): "infer"}


def target_of(raw_path: str) -> Optional[Target]:
    """Read a path, or return None if the protocol has no such path."""
    parts = tuple(raw_path.split("/")[1:])
    if parts in _PATHS:
        return Target(_PATHS[parts])
    if parts[:2] != ("v2", "models") or len(parts) < 3 or not parts[2]:
        return None
    rest, version = parts[3:], ""
    if rest[:1] == ("versions",) and len(rest) > 1:
        version, rest = unquote(rest[1]), rest[2:]
    action = _MODEL_PATHS.get(rest)
    return None if action is None else Target(action, unquote(parts[2]), version)


@dataclass(frozen=True)
class Served:
    """The model behind the address."""

    spec: ModelSpec
    signature: Signature
    platform: str
    batcher: Batcher
    instruments: InferenceInstruments

    @property
    def takes_fp64(self) -> bool:
        """Whether FP64 is taken for every numeric input."""
        return self.spec.kind == "sklearn"


class Application:
    """Answers requests; knows how many are under way and whether it is draining."""

    def __init__(self, served: Served, answers: Answers) -> None:
        self._served = served
        self._answers = answers
        self._held = 0
        self._rest: Optional[asyncio.Future[None]] = None
        self.in_flight = 0
        self.is_draining = False

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request to its last byte; only predictions are counted."""
        started = time.perf_counter()
        connection = request.protocol
        target = target_of(request.rel_url.raw_path)
        counted = request.method == "POST" and target is not None and target.action == "infer"
        instruments = self._served.instruments
        self.in_flight += 1
        if counted:
            instruments.in_progress.inc()
        if isinstance(connection, Connection):
            connection.request_started()
        try:
            response = await self._answered(request, target)
            try:
                await self._send(request, response)
            finally:
                if counted:
                    instruments.observe(
                        f"{response.status // 100}xx", time.perf_counter() - started
                    )
            return response
        finally:
            self.in_flight -= 1
            if not self.in_flight and self._rest is not None and not self._rest.done():
                self._rest.set_result(None)
            if counted:
                instruments.in_progress.dec()
            if isinstance(connection, Connection):
                connection.request_ended()

    async def at_rest(self) -> None:
        """Wait until no request is under way."""
        while self.in_flight:
            self._rest = asyncio.get_running_loop().create_future()
            await self._rest

    async def _answered(self, request: web.BaseRequest, target: Optional[Target]) -> web.Response:
        try:
            response = await self._dispatch(request, target)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - every fault has an answer in JSON
            response = self._answers.refuse(request, refusal_of(error))
        # Whoever waits here for its next request would be cut off; and where a body was not
        # read to its end, there is no telling where the next request begins.
        leaving = self.is_draining or self._served.batcher.is_stuck
        if leaving or not request.content.is_eof():
            response.force_close()
        return response

    async def _send(self, request: web.BaseRequest, response: web.Response) -> None:
        if isinstance(response.body, bytes) and len(response.body) > _WATCHED_ANSWER_BYTES:
            connection = request.protocol
            if isinstance(connection, Connection):
                connection.watch_writing()
        await response.prepare(request)
        await response.write_eof()

    async def _dispatch(self, request: web.BaseRequest, target: Optional[Target]) -> web.Response:
        self._identify(request)
        if target is None:
            raise Refusal(404, "route_unknown")
        self._check_model(target)
        allowed = _METHODS.get(target.action, _READING)
        if request.method not in allowed:
            names = ", ".join(allowed)
            raise Refusal(
                405,
                "method_unsupported",
                headers={"Allow": names},
                method=request.method,
                allowed=names,
            )
        if target.action == "infer":
            return await self._infer(request, target)
        return self._answers.json(orjson.dumps(self._described(target)))

    def _identify(self, request: web.BaseRequest) -> None:
        secret = self._served.spec.secret
        if secret is None:
            return
        given = request.headers.get(SECRET_HEADER, "")
        if not hmac.compare_digest(given.encode(errors="replace"), secret.encode()):
            raise Refusal(
                401,
                "inference_needs_identification",
                headers={"WWW-Authenticate": 'Bearer realm="persephone"'},
            )

    def _check_model(self, target: Target) -> None:
        spec = self._served.spec
        if target.model and target.model not in spec.names:
            raise Refusal(404, "model_unknown", found=target.model, expected=", ".join(spec.names))
        if target.version and target.version != spec.version:
            raise Refusal(404, "model_version_unknown", found=target.version, expected=spec.version)

    def _described(self, target: Target) -> Dict[str, Any]:
        if target.action == "server":
            return {"name": "persephone", "version": SERVER_VERSION, "extensions": []}
        if target.action == "live":
            return {"live": True}
        if target.action == "model":
            return protocol.metadata(
                self._served.signature,
                model_name=target.model,
                model_version=self._served.spec.version,
                platform=self._served.platform,
            )
        if self._served.batcher.is_stuck:
            raise ModelFailure("replica_restarting")
        if target.action == "ready":
            return {"ready": True}
        return {"name": target.model, "ready": True}

    async def _infer(self, request: web.BaseRequest, target: Target) -> web.Response:
        served = self._served
        await self._check_head(request)
        held: List[int] = []
        try:
            body = await read_body(
                request,
                limit=served.spec.max_body_bytes,
                hold=lambda size: self._hold(held, size),
            )
            asked = protocol.parse_infer(body, served.signature, takes_fp64=served.takes_fp64)
            del body
            answer = await served.batcher.predict(asked.inputs, asked.outputs)
            written = protocol.render_infer(
                asked,
                answer,
                served.signature,
                model_name=target.model,
                model_version=served.spec.version,
            )
        finally:
            self._held -= sum(held)
        given = given_id(request)
        return self._answers.json(written, headers={REQUEST_ID: given} if given else None)

    async def _check_head(self, request: web.BaseRequest) -> None:
        """Refuse by the head what would be read in vain, then ask for the body if it waits."""
        headers = request.headers
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise Refusal(415, "content_encoding_unsupported", found=encoding)
        if "Inference-Header-Content-Length" in headers:
            raise Refusal(415, "binary_tensors_unsupported")
        if (request.content_length or 0) > self._served.spec.max_body_bytes:
            raise Refusal(413, "request_too_large", limit=self._served.spec.max_body_bytes)
        if self._served.batcher.is_stuck:
            raise ModelFailure("replica_restarting")
        if self._served.batcher.is_full:
            raise ModelFailure("replica_overloaded")
        expectation = headers.get("Expect")
        if expectation is not None:
            await _continue(request, expectation)

    def _hold(self, held: List[int], size: int) -> None:
        if self._held + size > _BODIES_HELD * self._served.spec.max_body_bytes:
            raise ModelFailure("replica_overloaded")
        self._held += size
        held.append(size)


async def _continue(request: web.BaseRequest, expectation: str) -> None:
    if expectation.strip().lower() != "100-continue":
        raise Refusal(417, "expectation_unsupported", found=expectation)
    if request.version >= (1, 1):
        writer = request.writer
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # These bytes are no part of the answer, which is yet to begin.
        writer.output_size = 0
