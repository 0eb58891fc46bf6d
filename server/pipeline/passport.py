"""The passport as the model's process wrote it: checked, since that process is not trusted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from server.errors import StepFailedError
from server.sandbox.events import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.environments.lock import Lock
    from server.records import Params

_TEXT_CHARS = 300
_WARNINGS = 10
_BATCHES = 10
_PACKAGES = 500
_TENSORS = 10_000
_RANK = 64
_LARGEST = 2**53


def read_passport(said: Any) -> Params:
    """Return what is known of a passport, in the form that the rest of the service relies on.

    Raises:
        StepFailedError: ``passport_malformed``.
    """
    try:
        return {
            **{name: _text(said[name]) for name in ("kind", "framework", "framework_version")},
            **{name: _text(said[name]) for name in ("python", "device_asked", "device")},
            "packages": _texts(said["packages"]),
            "signature": {
                side: [_tensor(tensor) for tensor in _few(said["signature"][side])]
                for side in ("inputs", "outputs")
            },
            "load_seconds": _number(said["load_seconds"]),
            "peak_memory_bytes": _whole(said["peak_memory_bytes"]),
            "latency_ms": {name: _number(said["latency_ms"][name]) for name in ("p50", "p95")},
            "latency_by_batch_ms": [
                _batch(batch) for batch in said["latency_by_batch_ms"][:_BATCHES]
            ],
            "measured_elements": _whole(said["measured_elements"]),
            "batching": {
                "equal": said["batching"]["equal"] is True,
                "gain": _number(said["batching"].get("gain", 0.0)),
            },
            "warmup": {
                "source": _text(said["warmup"]["source"]),
                "inputs": [_given(given) for given in _few(said["warmup"]["inputs"])],
            },
            "warnings": [read_text(warning) for warning in said["warnings"][:_WARNINGS]],
        }
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StepFailedError("passport_malformed", evidence=type(error).__name__) from error


def sealed(passport: Params, *, digest: str, lock: Lock, made_with: Mapping[str, str]) -> Params:
    """Return a passport as it is kept, with what the model's process cannot know.

    ``digest`` is the upload's, ``made_with`` what its files say that wrote it.
    """
    return {
        **passport,
        "digest": digest,
        "made_with": dict(made_with),
        "lock": lock.text,
        "environment": lock.digest,
        "lock_device": lock.device,
    }


def _batch(said: Any) -> Params:
    return {"rows": _whole(said["rows"]), "p50": _number(said["p50"]), "p95": _number(said["p95"])}


def _text(value: Any) -> str:
    return str(value)[:_TEXT_CHARS]


def _texts(values: Mapping[Any, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in list(values.items())[:_PACKAGES]}


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("number")
    return number


def _whole(value: Any) -> int:
    number = int(value)
    if abs(number) > _LARGEST:
        raise ValueError("number")
    return number


def _tensor(said: Any) -> Params:
    tensor: Params = {"name": _text(said["name"]), "datatype": _text(said["datatype"])}
    if said.get("shape") is not None:
        tensor["shape"] = [_whole(size) for size in said["shape"][:_RANK]]
    return tensor


def _few(said: Any) -> list[Any]:
    if not isinstance(said, list) or len(said) > _TENSORS:
        raise ValueError("tensors")
    return said


def _given(said: Any) -> Params:
    """Read a tensor of the warm-up; the model's process alone makes sense of its values."""
    tensor = _tensor(said)
    values = [said["fill"]] if "fill" in said else said["data"]
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        raise ValueError("values")
    kind = (said.get("parameters") or {}).get("content_type")
    if kind is not None:
        tensor["parameters"] = {"content_type": _text(kind)}
    return {**tensor, **({"fill": values[0]} if "fill" in said else {"data": values})}
