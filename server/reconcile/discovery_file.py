"""The list of replicas as a file, for a Prometheus that reads it on this machine."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from metrics.targets import discovery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from metrics.targets import Target

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


class DiscoveryFile:
    """Keeps the file as the targets are; it is replaced, never half written.

    ``address`` is the API's own, as host:port.
    """

    def __init__(self, path: Path, address: str) -> None:
        self._path = path
        self._address = address
        self._written = ""
        self._changed = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def open(self, targets: Callable[[], Iterable[Target]]) -> None:
        """Begin to keep the file."""
        self._changed.set()
        self._task = asyncio.create_task(self._keep(targets))

    async def close(self) -> None:
        """Leave an empty list: whatever there was ends with the service."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await self._task

    def changed(self) -> None:
        """Note that there are other targets than before."""
        self._changed.set()

    async def _keep(self, targets: Callable[[], Iterable[Target]]) -> None:
        is_last = False
        while not is_last:
            await self._changed.wait()
            self._changed.clear()
            is_last = self._closing
            found = () if is_last else targets()
            text = json.dumps(discovery(found, self._address), indent=1) + "\n"
            if text == self._written:
                continue
            try:
                await asyncio.to_thread(self._write, text)
            except OSError as error:
                logger.warning("the list of replicas cannot be written: %s", error.strerror)
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._changed.set)
            else:
                self._written = text

    def _write(self, text: str) -> None:
        made = self._path.with_name(f"{self._path.name}.tmp")
        made.write_text(text, encoding="utf-8")
        made.replace(self._path)
