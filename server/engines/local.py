"""Replicas as child processes of the service, on sockets that they inherit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

import aiohttp

from server.engines.addresses import Address, bind_again, bind_free, bind_if_free
from server.engines.base import STUCK, Engine, EngineError, Replica, ReplicaSpec
from server.engines.doorman import make_doorman
from server.sandbox.events import last_words, read_event, read_failure
from server.sandbox.model_process import ModelProcess, launch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from server.messages import Messages
    from server.records import DeploymentKey
    from server.sandbox.launch import Child, Sandbox
    from server.settings import Settings

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_EXIT_SECONDS = 2.0
# What the model server exits with when a prediction never returned.
_EXIT_STUCK = 75
_RETREAT_SECONDS = 1.0
_CALL_SECONDS = 5.0
_SCRAPE_BYTES = 1024 * 1024


class LocalReplica(Replica):
    """A model process of this machine, steered over its control socket."""

    def __init__(
        self,
        spec: ReplicaSpec,
        port: int,
        child: Child,
        control: aiohttp.ClientSession,
        settings: Settings,
    ) -> None:
        self.spec = spec
        self.port = port
        self._child = child
        self._control = control
        self._settings = settings
        self._failure: EngineError | None = None
        self._ended = asyncio.create_task(self._watch())
        self._draining: asyncio.Task[None] | None = None

    async def _watch(self) -> EngineError:
        while (line := await self._child.line()) is not None:
            self._failure = _failure_in(line) or self._failure
        code = await self._child.wait()
        if self._failure is not None:
            return self._failure
        if code == _EXIT_STUCK:
            return EngineError(STUCK)
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        return EngineError("replica_ended", reason=reason, evidence=last_words(self._child.log))

    async def _call(
        self, method: str, path: str, *, seconds: float = _CALL_SECONDS
    ) -> tuple[int, bytes]:
        if self._control.closed:
            raise EngineError("replica_silent", evidence="ended")
        timeout = aiohttp.ClientTimeout(total=seconds)
        url = f"http://replica{path}"
        try:
            async with self._control.request(
                method, url, timeout=timeout, allow_redirects=False, auto_decompress=False
            ) as answer:
                return answer.status, await _body_of(answer)
        # RuntimeError: the session was closed in the meantime; ValueError: it speaks no HTTP.
        except (aiohttp.ClientError, TimeoutError, OSError, RuntimeError, ValueError) as error:
            raise EngineError("replica_silent", evidence=type(error).__name__) from error

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
        while True:
            if self._ended.done():
                raise self._ended.result()
            with contextlib.suppress(EngineError, ValueError):
                status, body = await self._call("GET", "/state")
                if status == 200 and read_event(body).get("loaded") is True:
                    return
            await asyncio.wait([self._ended], timeout=_POLL_SECONDS)

    async def admit(self) -> None:
        """Let it take traffic."""
        status, body = await self._call("POST", "/accept")
        if status != 200:
            raise _refusal(body)

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
        await self._control.close()

    async def ended(self) -> EngineError:
        """Wait until the process has ended, and return why."""
        return await asyncio.shield(self._ended)

    async def scrape(self) -> str:
        """Return its metrics as Prometheus text."""
        status, body = await self._call("GET", "/metrics")
        if status != 200:
            raise EngineError("replica_silent", evidence=f"status {status}")
        return body.decode("utf-8", errors="replace")


async def _body_of(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > _SCRAPE_BYTES:
            raise EngineError("replica_silent", evidence="its answer is too long")
    return bytes(body)


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


class LocalEngine(Engine):
    """Runs replicas on this machine; they die with the service."""

    def __init__(
        self,
        settings: Settings,
        sandbox: Sandbox,
        messages: Messages,
        refused: Callable[[DeploymentKey], None],
    ) -> None:
        self._settings = settings
        self._sandbox = sandbox
        self._messages = messages
        self._refused = refused
        self._folder = settings.data_dir / "replicas"
        self._folder_fd = -1
        self._addresses: dict[DeploymentKey, Address] = {}
        self._replicas: set[LocalReplica] = set()
        self._forgetting: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Make ready; nothing is running yet."""
        await asyncio.to_thread(self._prepare_folder)
        self._folder_fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)

    def _prepare_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)

    async def close(self) -> None:
        """End everything that was started."""
        await asyncio.gather(*(replica.stop() for replica in self._replicas))
        await asyncio.gather(*self._forgetting)
        for key in list(self._addresses):
            await self.unlisten(key)
        os.close(self._folder_fd)

    async def listen(self, key: DeploymentKey, port: int, *, reserved: Collection[int] = ()) -> int:
        """Open a deployment's address and return its port; being open is success."""
        host = self._settings.endpoint_host
        known = self._addresses.get(key)
        if known is not None:
            if known.listens_on != known.port and (freed := bind_if_free(host, known.port)):
                await known.move(freed)
            return known.port
        if port:
            listener = await bind_again(host, port)
            if listener is None:
                logger.warning("port %d is taken: only the gateway serves", port)
                # Not of the range: those are the addresses of other deployments.
                listener = bind_free(host, (0, 0), ())
        else:
            used = {address.port for address in self._addresses.values()}
            listener = bind_free(host, self._settings.endpoint_ports, used.union(reserved))
        doorman = make_doorman(self._messages, lambda: self._refused(key))
        address = Address(listener, port or listener.getsockname()[1], doorman)
        self._addresses[key] = address
        return address.port

    async def attend(self, key: DeploymentKey, *, nobody_home: bool) -> None:
        """Answer 503 on a deployment's address, or leave it to its replicas."""
        address = self._addresses.get(key)
        if address is not None:
            await address.attend(nobody_home=nobody_home)

    async def unlisten(self, key: DeploymentKey) -> None:
        """Close a deployment's address; being closed is success."""
        address = self._addresses.pop(key, None)
        if address is not None:
            await address.close()

    async def start(self, spec: ReplicaSpec) -> Replica:
        """Start a replica on its deployment's address."""
        folder = self._folder / spec.replica_id
        try:
            await asyncio.to_thread(_write_spec, folder, spec.model)
            control = self._control_socket(spec.replica_id)
        except OSError as error:
            raise EngineError("replica_not_started", evidence=error.strerror or "") from error
        address = self._addresses[spec.key]
        slot = address.shares.take()
        process = ModelProcess(
            command="serve",
            python=spec.python,
            environment=spec.environment,
            tree=spec.tree,
            folder=spec.folder,
            spec=folder / "spec.json",
            gpu=spec.gpu,
            threads=int(spec.model["threads"]),
            memory_bytes=self._settings.model_memory_bytes,
            listen_fd=address.listener.fileno(),
            control_fd=control.fileno(),
            share_fd=None if slot is None else address.shares.descriptor,
            slot=slot or 0,
        )
        try:
            child = await self._sandbox.start(launch_of(process))
        except BaseException as error:
            if slot is not None:
                address.shares.give_back(slot)
            if not isinstance(error, OSError):
                raise
            raise EngineError("replica_not_started", evidence=error.strerror or "") from error
        finally:
            control.close()
        connector = aiohttp.UnixConnector(path=self._control_path(spec.replica_id))
        session = aiohttp.ClientSession(connector=connector)
        replica = LocalReplica(spec, address.listens_on, child, session, self._settings)
        self._replicas.add(replica)
        task = asyncio.create_task(self._forget(replica, folder, address, slot))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)
        return replica

    async def _forget(
        self, replica: LocalReplica, folder: Path, address: Address, slot: int | None
    ) -> None:
        await replica.ended()
        self._replicas.discard(replica)
        if slot is not None:
            address.shares.give_back(slot)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _control_path(self, replica_id: str) -> str:
        # Through the open folder: a socket's path has room for 107 bytes only.
        return f"/proc/self/fd/{self._folder_fd}/{replica_id}/control"

    def _control_socket(self, replica_id: str) -> socket.socket:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(self._control_path(replica_id))
        control.listen()
        return control


def _write_spec(folder: Path, model: dict[str, Any]) -> None:
    folder.mkdir(mode=0o700)
    (folder / "spec.json").write_text(json.dumps(model), encoding="utf-8")
