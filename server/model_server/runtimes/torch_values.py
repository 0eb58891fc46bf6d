"""Between numpy's arrays and torch's tensors, for every runtime of torch."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, Iterator, Mapping, Tuple

import numpy as np

from server.model_server.runtimes.arrays import bfloat16, is_bfloat16, plain


def named(answer: Any, name: str = "") -> Iterator[Tuple[str, Any]]:
    """Name every part of a nested answer: its place, or its key; what is None is left out."""
    if isinstance(answer, Mapping):
        for key, item in answer.items():
            yield from named(item, f"{name}_{key}" if name else str(key))
    elif isinstance(answer, (tuple, list)) and not _all_text(answer):
        for place, item in enumerate(answer):
            yield from named(item, f"{name or 'output'}_{place}")
    elif answer is not None:
        yield name or "output_0", answer


def _all_text(answer: Any) -> bool:
    return bool(answer) and all(isinstance(item, str) for item in answer)


def as_array(item: Any) -> Any:
    """Return a tensor, a number or a text as an array of a type that the protocol has."""
    if not hasattr(item, "detach"):
        return plain(np.asarray(item))
    tensor = item.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.cpu().contiguous().view(torch.int16).numpy().view(bfloat16())
    return plain(tensor.cpu().numpy())


def as_tensor(torch: Any, array: Any, device: str, cast: Any = None) -> Any:
    """Return an array as a tensor of a device, of another type where ``cast`` names one."""
    array = np.ascontiguousarray(array) if array.ndim else array
    if not array.flags.writeable:
        array = array.copy()
    if is_bfloat16(array.dtype):
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    if device == "cpu" and cast is None:
        return tensor
    if device != "cpu":
        # From pinned memory the copy is the GPU's own work, in the order of the stream.
        tensor = tensor.pin_memory()
    return tensor.to(device, cast, non_blocking=True)


class Streams:
    """Lets a thread's work on a GPU run beside that of others: each has a stream of its own."""

    def __init__(self) -> None:
        self._streams = threading.local()

    def of(self, torch: Any, device: str) -> Any:
        """Return a context for the calling thread's work on a device.

        The answer's way back to the host waits for the stream. Written after torch's documentation
        of streams and pinned memory; no GPU was at hand to measure it.
        """
        if device == "cpu":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream()
        return torch.cuda.stream(self._streams.own)
