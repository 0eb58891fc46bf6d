"""Replicas as child processes of the service, on sockets that they inherit."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

from server.engines.addresses import Address, bind_again, bind_free, bind_if_free
from server.engines.admission import Teller
from server.engines.base import Engine, EngineError, Replica, ReplicaSpec
from server.engines.control import ControlSocket
from server.engines.doorman import Calls, make_doorman
from server.engines.local_replica import LocalReplica
from server.errors import is_full
from server.machine import explained
from server.sandbox.launch import REFUSED
from server.sandbox.model_process import ModelProcess, launch_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from server.messages import Messages
    from server.records import Admitted, DeploymentKey
    from server.sandbox.launch import Sandbox
    from server.settings import Settings

logger = logging.getLogger(__name__)

# How long a change of tokens waits for a replica that does not listen.
_RENEW_SECONDS = 2.0


class LocalEngine(Engine):
    """Runs replicas on this machine; they die with the service.

    ``refused`` is told of a request that found no replica, ``make_room`` frees what it can of a full
    disk and says whether it did, ``hear`` returns what takes the lines of a replica's log.
    """

    def __init__(
        self,
        settings: Settings,
        sandbox: Sandbox,
        messages: Messages,
        refused: Callable[[DeploymentKey], None],
        *,
        make_room: Callable[[], Awaitable[bool]],
        admitted: Callable[[DeploymentKey], Admitted],
        used: Callable[[str], None],
        hear: Callable[[ReplicaSpec], Callable[[str], None]],
    ) -> None:
        self._hear = hear
        self._admitted = admitted
        self._used = used
        self._settings = settings
        self._sandbox = sandbox
        self._messages = messages
        self._refused = refused
        self._make_room = make_room
        self._folder = settings.data_dir / "replicas"
        self._folder_fd = -1
        self._addresses: dict[DeploymentKey, Address] = {}
        self._replicas: set[LocalReplica] = set()
        self._calls = Calls()
        self._forgetting: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Make ready; nothing is running yet."""
        await asyncio.to_thread(self._prepare_folder)
        self._folder_fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)

    def _prepare_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        # Passed by the users of model processes, listed by nobody else.
        self._folder.mkdir(parents=True, mode=0o711)

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
        doorman = make_doorman(self._messages, lambda: self._refused(key), self._calls)
        address = Address(listener, port or listener.getsockname()[1], doorman)
        self._addresses[key] = address
        return address.port

    async def attend(self, key: DeploymentKey, *, nobody_home: bool) -> None:
        """Answer 503 on a deployment's address, or leave it to its replicas."""
        address = self._addresses.get(key)
        if address is not None:
            await address.attend(nobody_home=nobody_home)

    async def renew(self, key: DeploymentKey) -> None:
        """Tell a deployment's replicas which tokens predict at its address now."""
        tellers = [replica.teller for replica in self._replicas if replica.spec.key == key]
        telling = [each.renew(_RENEW_SECONDS) for each in tellers if each is not None]
        for failure in await asyncio.gather(*telling, return_exceptions=True):
            if failure is not None:
                logger.warning("a replica does not hear of a change of tokens; it is tried again")

    async def unlisten(self, key: DeploymentKey) -> None:
        """Close a deployment's address; being closed is success."""
        address = self._addresses.pop(key, None)
        if address is not None:
            await address.close()

    async def start(self, spec: ReplicaSpec) -> Replica:
        """Start a replica on its deployment's address."""
        if refusal := self._sandbox.refusal(str(spec.model["kind"])):
            raise EngineError(REFUSED, permanent=True, refused=True, **refusal)
        folder = self._folder / spec.replica_id
        try:
            await self._describe(folder, spec.model)
            control = self._control_socket(spec.replica_id)
        except OSError as error:
            raise _not_started(error) from error
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
            nodes=spec.nodes,
            threads=int(spec.model["threads"]),
            memory_bytes=self._settings.model_memory_bytes,
            listen_fd=address.listener.fileno(),
            control_fd=control.fileno(),
            share_fd=None if slot is None else address.shares.descriptor,
            slot=slot or 0,
            hear=self._hear(spec),
        )
        try:
            child = await self._sandbox.start(launch_of(process))
        except BaseException as error:
            if slot is not None:
                address.shares.give_back(slot)
            if not isinstance(error, OSError):
                raise
            raise _not_started(error) from error
        finally:
            control.close()
        asked = ControlSocket(self._control_path(spec.replica_id))
        replica = LocalReplica(spec, address.listens_on, child, asked, self._settings)
        if not self._settings.inference_is_open:
            replica.teller = Teller(replica.tell, lambda: self._admitted(spec.key), self._used)
        self._replicas.add(replica)
        task = asyncio.create_task(self._forget(replica, folder, address, slot))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)
        return replica

    async def _describe(self, folder: Path, model: dict[str, Any]) -> None:
        try:
            await asyncio.to_thread(_write_spec, folder, model)
        except OSError as error:
            # What crashes on a full disk shall come back.
            if not is_full(error) or not await self._make_room():
                raise
            await asyncio.to_thread(_write_spec, folder, model)

    def environments(self) -> set[str]:
        """Return the names of the model environments that replicas run in."""
        return {replica.spec.environment.name for replica in self._replicas}

    async def _forget(
        self, replica: LocalReplica, folder: Path, address: Address, slot: int | None
    ) -> None:
        await replica.ended()
        self._replicas.discard(replica)
        if replica.teller is not None:
            replica.teller.close()
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


def _not_started(error: OSError) -> EngineError:
    known = explained(error)
    if known is not None:
        return EngineError(known.code, **known.params)
    return EngineError("replica_not_started", evidence=error.strerror or "")


def _write_spec(folder: Path, model: dict[str, Any]) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(model), encoding="utf-8")
