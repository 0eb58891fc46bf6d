"""Has a large model saved in a form whose weights its replicas share."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from server.pipeline.files import write_spec
from server.pipeline.specs import PACKED
from server.sandbox.events import Events
from server.sandbox.model_process import ModelProcess, launch_of

if TYPE_CHECKING:
    from server.records import Params
    from server.sandbox.child import Child
    from server.sandbox.launch import Sandbox

logger = logging.getLogger(__name__)

_KINDS = frozenset({"onnx"})
_LEAST_BYTES = 16 * 1024**2
"""A smaller model gains less than a process costs."""

_GROWTH = 3
"""The packed form holds weights twice where kernels want another layout; the graph is small."""

_KEPT_BYTES = 1024**3
"""What stays free on the disk."""


def is_worth_packing(kind: str, device: str, size_bytes: int, free_bytes: int) -> bool:
    """Whether a model is large enough, of a kind that can be packed, and the disk has room."""
    fits = _GROWTH * size_bytes + _KEPT_BYTES <= free_bytes
    return kind in _KINDS and device == "cpu" and size_bytes >= _LEAST_BYTES and fits


async def pack(
    sandbox: Sandbox, proving: ModelProcess, spec: Params, passport: Params, seconds: float
) -> int:
    """Save the packed form and return its bytes; zero if there is none, which harms nobody.

    ``proving`` and ``spec`` are those that proved the model; the file of the spec is written anew.
    """
    model, packed = Path(spec["path"]), proving.folder / PACKED
    if model.parent != proving.folder:
        # Its weights lie in files beside it already.
        return 0
    # A spec for a GPU is never served from the packed form, whatever the model fell back to.
    device = passport["device"] if spec["device"] == "cpu" else spec["device"]
    try:
        size_bytes = (await asyncio.to_thread(model.stat)).st_size
        free = (await asyncio.to_thread(shutil.disk_usage, model)).free
        if not is_worth_packing(spec["kind"], device, size_bytes, free):
            return 0
        # What an upload has brought under this name is no form of ours, and maybe the model.
        await asyncio.to_thread(packed.mkdir)
    except OSError:
        return 0
    written = 0
    told = {**spec, "packed": str(packed), "passport": passport}
    try:
        await asyncio.to_thread(write_spec, proving.spec.parent, told)
        process = replace(proving, command="pack", writable=packed, file_bytes=_GROWTH * size_bytes)
        child = await sandbox.start(launch_of(process))
        try:
            async with asyncio.timeout(seconds):
                written = await _size(child)
        finally:
            await child.kill()
    except (OSError, TimeoutError) as error:
        logger.warning("the model of %s was not packed: %s", spec["run_id"], error)
    finally:
        if not written:
            await asyncio.to_thread(shutil.rmtree, packed, ignore_errors=True)
    return written


async def _size(child: Child) -> int:
    written, events = 0, Events(child)
    while (event := await events.next()) is not None:
        try:
            if event.get("event") == "packed":
                written = max(0, int(event["bytes"]))
        except (LookupError, TypeError, ValueError, ArithmeticError):
            continue
    return written if await child.wait() == 0 else 0
