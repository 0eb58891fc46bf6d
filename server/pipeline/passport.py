"""The passport as the model's process wrote it: checked, since that process is not trusted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from server.errors import StepFailedError
from server.sandbox.events import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.records import Params

_TEXT_CHARS = 300
_WARNINGS = 10
_PACKAGES = 500
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
                side: [_tensor(tensor) for tensor in said["signature"][side]]
                for side in ("inputs", "outputs")
            },
            "load_seconds": _number(said["load_seconds"]),
            "peak_memory_bytes": _whole(said["peak_memory_bytes"]),
            "latency_ms": {name: _number(said["latency_ms"][name]) for name in ("p50", "p95")},
            "measured_elements": _whole(said["measured_elements"]),
            "batching": {
                "equal": said["batching"]["equal"] is True,
                "gain": _number(said["batching"].get("gain", 0.0)),
            },
            "warmup": {
                "source": _text(said["warmup"]["source"]),
                "inputs": list(said["warmup"]["inputs"]),
            },
            "warnings": [read_text(warning) for warning in said["warnings"][:_WARNINGS]],
        }
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StepFailedError("passport_malformed", evidence=type(error).__name__) from error


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
        tensor["shape"] = [_whole(size) for size in said["shape"]]
    return tensor
