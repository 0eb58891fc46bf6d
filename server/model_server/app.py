"""Answers the requests for one model: Open Inference Protocol v2 on the deployment's address."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, Mapping, Optional, Set

import orjson

from metrics.instruments import InferenceInstruments
from metrics.names import OVERLOAD_STATUSES
from server.model_server import encodings, protocol
from server.model_server.admission import Admission
from server.model_server.batching import Batcher
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.protocol import InferCodec, InferRequest
from server.model_server.refusals import REQUEST_ID, Answers, Refusal, given_id, refusal_of
from server.model_server.requests import JSON, Head, Request, Response
from server.model_server.runtimes.base import Signature
from server.model_server.spec import ModelSpec
from server.model_server.targets import (
    METHODS,
    READING,
    STATISTICS_OF_ALL,
    Target,
    known_targets,
    target_of,
)

logger = logging.getLogger(__name__)

SERVER_VERSION = "0.1.0"
BINARY_HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data", "classification", "statistics")
_BODIES_HELD = 4
"""How many bodies of the largest size may be in memory at once."""
_BINARY = "application/octet-stream"
_QUICK_BYTES = 64 * 1024
"""Up to this size a body is packed in the event loop; larger ones take a thread."""
_CLASSES = {2: "2xx", 4: "4xx", 5: "5xx"}


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
        return self.spec.kind in ("sklearn", "skops")


class Application:
    """Answers requests; knows how many are under way and whether it is draining."""

    def __init__(
        self, served: Served, answers: Answers, admission: Optional[Admission] = None
    ) -> None:
        spec = served.spec
        self._served = served
        self._admission = admission
        # Heads that were checked bear it.
        self._era = object()
        self._answers = answers
        self._batcher = served.batcher
        self._instruments = served.instruments
        self._statistics = served.batcher.statistics
        self._codec = InferCodec(
            served.signature, takes_fp64=served.takes_fp64, model_version=spec.version
        )
        self._known = known_targets(spec.names, spec.version)
        self._held = 0
        self._rest: Optional[asyncio.Future[None]] = None
        self._packing: Set[asyncio.Task[None]] = set()
        self.body_limit = spec.max_body_bytes
        self.in_flight = 0
        self.is_draining = False

    @property
    def is_leaving(self) -> bool:
        """Whether whoever waits here for its next request would be cut off."""
        return self.is_draining or self._batcher.is_stuck

    async def at_rest(self) -> None:
        """Wait until no request is under way."""
        while self.in_flight:
            self._rest = asyncio.get_running_loop().create_future()
            await self._rest

    def forget_checks(self) -> None:
        """Check every head anew: others may be let in than before."""
        self._era = object()

    # ── the connections' side

    def head(self, request: Request) -> Optional[Response]:
        """Count a request, and refuse by its head what would be read in vain."""
        self.in_flight += 1
        head = request.head
        try:
            if head.era is not self._era:
                head.target = self._known.get(head.path) or target_of(head.path)
            if _is_prediction(head):
                self._instruments.in_progress.inc()
            if head.era is not self._era:
                self._check(head)
                head.era = self._era
            if self._batcher.is_stuck and head.method == "POST":
                raise ModelFailure("replica_restarting")
            if self._batcher.is_full and head.method == "POST":
                raise ModelFailure("replica_overloaded")
        except Exception as error:  # noqa: BLE001 - every fault has an answer in JSON
            return self._answers.refuse(head, refusal_of(error))
        return None

    def handle(self, request: Request) -> None:
        """Answer a request: at once, or when its prediction has been made."""
        target: Target = request.head.target
        try:
            if target.action == "infer":
                self._infer(request)
            else:
                body = orjson.dumps(self._described(target))
                request.answer(Response(200, (body,)))
        except Exception as error:  # noqa: BLE001 - every fault has an answer in JSON
            self._refuse(request, error)

    def finished(self, request: Request, status: Optional[int]) -> None:
        """Count a request's end; the caller has its answer, or is gone."""
        was_given, request.job = request.job is not None, None
        self.in_flight -= 1
        if _is_prediction(request.head):
            self._instruments.in_progress.dec()
            if status is not None:
                self._instruments.observe(
                    _CLASSES[status // 100],
                    time.perf_counter() - request.began if was_given else None,
                    overloaded=status in OVERLOAD_STATUSES,
                )
        if not self.in_flight and self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    def abandoned(self, request: Request) -> None:
        """Do not predict it after a long wait: most likely nobody would read the answer."""
        if request.job is not None:
            request.job.is_left = True

    def hold(self, size: int) -> bool:
        """Take room for a body's bytes; False if there is none. Negative gives it back."""
        if size > 0 and self._held + size > _BODIES_HELD * self.body_limit:
            return False
        self._held += size
        return True

    # ── heads

    def _check(self, head: Head) -> None:
        """Judge what stays the same however often a head comes."""
        spec, target = self._served.spec, head.target
        if self._admission is not None:
            self._admission.check(head.headers)
        if target is None:
            raise Refusal(404, "route_unknown")
        if target == STATISTICS_OF_ALL and target.model not in spec.names:
            head.target = target = Target("stats", spec.names[0])
        if target.model and target.model not in spec.names:
            if self.is_draining:
                # Another run may have taken over, and a kept connection still leads to this one.
                raise Refusal(421, "model_moved", found=target.model)
            raise Refusal(404, "model_unknown", found=target.model, expected=", ".join(spec.names))
        if target.version and target.version != spec.version:
            raise Refusal(404, "model_version_unknown", found=target.version, expected=spec.version)
        allowed = METHODS.get(target.action, READING)
        if head.method not in allowed:
            names = ", ".join(allowed)
            raise Refusal(
                405,
                "method_unsupported",
                headers={"Allow": names},
                method=head.method,
                allowed=names,
            )
        if target.action == "infer":
            self._check_infer(head)

    def _check_infer(self, head: Head) -> None:
        if head.length > self.body_limit:
            raise Refusal(413, "request_too_large", limit=self.body_limit)
        encoding = _encoding_of(head)
        if encoding and encoding not in encodings.ACCEPTED:
            raise Refusal(
                415,
                "content_encoding_unsupported",
                headers={"Accept-Encoding": ", ".join(encodings.ACCEPTED)},
                found=encoding,
            )

    # ── what is described

    def _described(self, target: Target) -> Dict[str, Any]:
        served = self._served
        if target.action == "server":
            return {
                "name": "persephone",
                "version": SERVER_VERSION,
                "extensions": list(EXTENSIONS),
            }
        if target.action == "live":
            return {"live": True}
        if target.action == "model":
            return protocol.metadata(
                served.signature,
                model_name=target.model,
                model_version=served.spec.version,
                platform=served.platform,
            )
        if target.action == "stats":
            return self._statistics.described(target.model, served.spec.version)
        if self._batcher.is_stuck:
            raise ModelFailure("replica_restarting")
        if target.action == "ready":
            return {"ready": True}
        return {"name": target.model, "ready": True}

    # ── predictions

    def _infer(self, request: Request) -> None:
        encoding = _encoding_of(request.head)
        if encoding:
            self._apart(request, self._unpack(request, encoding))
            return
        self._predict(request)

    async def _unpack(self, request: Request, encoding: str) -> None:
        inflate = partial(encodings.inflate, request.body, encoding, self.body_limit)
        body = await asyncio.get_running_loop().run_in_executor(None, inflate)
        if not self.hold(len(body)):
            raise ModelFailure("replica_overloaded")
        request.held += len(body)
        request.body = body
        self._predict(request)

    def _predict(self, request: Request) -> None:
        began = time.perf_counter()
        body, request.body = request.body, b""
        asked = self._codec.parse(body, _json_length(request.head, len(body)))
        del body
        self._statistics.read(time.perf_counter() - began)

        def done(answer: Optional[Mapping[str, Any]], error: Optional[Exception]) -> None:
            if isinstance(error, BadInputError):
                # The model was never run on it.
                request.job = None
            try:
                if answer is None:
                    raise error or ModelFailure("model_raised")
                self._write(request, asked, answer)
            except Exception as failure:  # noqa: BLE001 - every fault has an answer in JSON
                self._refuse(request, failure)

        request.job = self._batcher.submit(asked.inputs, asked.outputs, done)

    def _write(self, request: Request, asked: InferRequest, answer: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        written = self._codec.render(asked, answer, request.head.target.model)
        self._statistics.written(time.perf_counter() - began)
        headers: Dict[str, str] = {}
        content_type = JSON
        if written.header_length is not None:
            content_type = _BINARY
            headers[BINARY_HEADER] = str(written.header_length)
        if b"x-request-id" in request.head.headers:
            given = given_id(request.head)
            if given is not None:
                headers[REQUEST_ID] = given
        response = Response(200, written.pieces, content_type, headers)
        accepted = request.head.header(b"accept-encoding")
        encoding = None if accepted is None else encodings.choose(accepted)
        size = sum(map(len, written.pieces)) if encoding is not None else 0
        if encoding is None or size < encodings.WORTH_BYTES:
            request.answer(response)
        elif size <= _QUICK_BYTES:
            _packed(response, encoding, encodings.deflate(written.pieces, encoding))
            request.answer(response)
        else:
            self._apart(request, self._pack(request, response, encoding))

    async def _pack(self, request: Request, response: Response, encoding: str) -> None:
        deflate = partial(encodings.deflate, response.pieces, encoding)
        data = await asyncio.get_running_loop().run_in_executor(None, deflate)
        _packed(response, encoding, data)
        request.answer(response)

    def _apart(self, request: Request, work: Any) -> None:
        """Do work on a request in a task of its own."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - every fault has an answer in JSON
                self._refuse(request, error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._packing.add(task)
        task.add_done_callback(self._packing.discard)

    def _refuse(self, request: Request, error: Exception) -> None:
        request.answer(self._answers.refuse(request.head, refusal_of(error)))


def _is_prediction(head: Head) -> bool:
    return head.method == "POST" and head.target is not None and head.target.action == "infer"


def _encoding_of(head: Head) -> str:
    """Return how a body is packed, or nothing."""
    encoding = head.headers.get(b"content-encoding")
    if encoding is None:
        return ""
    name = encoding.decode("latin-1").strip().lower()
    return "" if name == "identity" else name


def _json_length(head: Head, size: int) -> Optional[int]:
    """Return the length of the JSON before binary tensors, None if there are none.

    Raises:
        BadInputError: ``binary_header_length``.
    """
    given = head.headers.get(b"inference-header-content-length")
    if given is None:
        return None
    if not given.isdigit() or len(given) > 12 or int(given) > size:
        found = given.decode("latin-1")[:40]
        raise BadInputError("binary_header_length", found=found, size=size)
    return int(given)


def _packed(response: Response, encoding: str, data: bytes) -> None:
    response.pieces = (data,)
    response.headers = {**response.headers, "Content-Encoding": encoding, "Vary": "Accept-Encoding"}
