"""Whether CUDA programs can run on this machine at all."""

from __future__ import annotations

import asyncio
import sys

_LIBRARY = "libcuda.so.1"
_SECONDS = 10.0


async def has_cuda_driver() -> bool:
    """Tell whether the driver's CUDA library can be loaded.

    NVML alone is no proof: a container may be given the management library only, and then the
    gigabytes of a CUDA build would be installed for nothing. It is tried in a process of its
    own, since loading runs the driver's code.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import ctypes; ctypes.CDLL({_LIBRARY!r})",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            return await process.wait() == 0
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
