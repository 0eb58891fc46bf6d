"""Loads a model, asks it until it answers, and writes down what that proved: the passport."""

from __future__ import annotations

import logging
import platform
import resource
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import numpy as np

from server.model_server import tensors
from server.model_server.batch_proof import prove_batching
from server.model_server.batches import rows_of
from server.model_server.evidence import one_line
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.latencies import measure, measure_batches
from server.model_server.loading import load_model
from server.model_server.runtimes.arrays import are_finite, is_float
from server.model_server.runtimes.base import Runtime, Signature, TensorSpec
from server.model_server.smoke import Proof, smoke_test
from server.model_server.spec import ModelSpec

logger = logging.getLogger(__name__)

Emit = Callable[[Dict[str, Any]], None]

_WARM_UP_ELEMENTS = 65536
_WARM_UP_TEXT_BYTES = 64 * 1024
"""What the service reads of a passport has an end."""


def run(spec: ModelSpec, emit: Emit) -> int:
    """Prove one model and tell it in events; returns the exit code of the process."""
    try:
        passport = _prove(spec, emit)
    except ModelFailure as failure:
        emit(_failed(failure.code, failure.params, failure.evidence))
        return 1
    except MemoryError as error:
        emit(_failed("model_memory_exceeded", {}, one_line(error)))
        return 1
    except Exception as error:
        logger.exception("proving the model ended unexpectedly")
        emit(_failed("model_proof_failed", {}, one_line(error)))
        return 1
    emit({"event": "passport", "passport": passport})
    return 0


def _failed(code: str, params: Dict[str, Any], evidence: str) -> Dict[str, Any]:
    return {"event": "failed", "code": code, "params": params, "evidence": evidence}


def _prove(spec: ModelSpec, emit: Emit) -> Dict[str, Any]:
    def progress(code: str, params: Dict[str, Any]) -> None:
        emit({"event": "progress", "code": code, "params": params})

    progress("model_loading", {})
    started = time.perf_counter()
    runtime, loaded = load_model(spec)
    seconds = round(time.perf_counter() - started, 4)
    emit({"event": "loaded", "seconds": seconds})
    loaded_bytes = peak_memory_bytes()
    proof = smoke_test(runtime, loaded, spec.sample, progress)
    progress("smoke_test_measuring", {})
    latency = measure(runtime, proof.inputs)
    row_bytes = (peak_memory_bytes() - loaded_bytes) // max(1, rows_of(proof.inputs))
    batching = prove_batching(runtime, proof.signature, proof.inputs)
    warm_up = _warm_up(runtime, proof)
    # What it needs to serve; batches that nobody may ever send do not count.
    peak = peak_memory_bytes()
    return {
        "run_id": spec.run_id,
        "kind": spec.kind,
        "framework": loaded.framework,
        "framework_version": loaded.framework_version,
        "packages": _versions(loaded.packages),
        "python": platform.python_version(),
        "digest": spec.digest,
        "device_asked": spec.device,
        "device": loaded.device,
        "signature": _signature(proof.signature),
        "load_seconds": seconds,
        "latency_ms": latency,
        "measured_elements": sum(array.size for array in proof.inputs.values()),
        "latency_by_batch_ms": measure_batches(
            runtime, proof.signature, proof.inputs, latency, row_bytes=row_bytes
        ),
        "batching": batching,
        "warmup": warm_up,
        "warnings": list(loaded.warnings),
        "peak_memory_bytes": peak,
    }


def _versions(names: Sequence[str]) -> Dict[str, str]:
    """Return the installed versions of those distributions that are there."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _signature(signature: Signature) -> Dict[str, List[Dict[str, Any]]]:
    return {
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def _tensor(spec: TensorSpec) -> Dict[str, Any]:
    described: Dict[str, Any] = {"name": spec.name, "datatype": spec.datatype}
    if spec.shape is not None:
        described["shape"] = list(spec.shape)
    return described


def _warm_up(runtime: Runtime, proof: Proof) -> Dict[str, Any]:
    inputs = _one_row(runtime, proof)
    if not _is_small(inputs):
        fill = _fill_that_works(runtime, inputs)
        written = [_filled(spec, inputs[spec.name], fill) for spec in proof.signature.inputs]
    else:
        written = [_written(spec.name, inputs[spec.name]) for spec in proof.signature.inputs]
    return {"source": proof.source, "inputs": written}


def _is_small(inputs: Dict[str, Any]) -> bool:
    if sum(array.size for array in inputs.values()) > _WARM_UP_ELEMENTS:
        return False
    texts = [array for array in inputs.values() if array.dtype.kind == "O"]
    return sum(len(item) for array in texts for item in array.flat) <= _WARM_UP_TEXT_BYTES


def _one_row(runtime: Runtime, proof: Proof) -> Dict[str, Any]:
    """Cut a large sample to its first row, if the model's first dimensions are free."""
    free = all((spec.shape or (0,))[0] == -1 for spec in proof.signature.inputs if spec.shape)
    if _is_small(proof.inputs) or not free:
        return proof.inputs
    cut = {name: array[:1] if array.ndim else array for name, array in proof.inputs.items()}
    return cut if _answers(runtime, cut) else proof.inputs


def _fill_that_works(runtime: Runtime, inputs: Dict[str, Any]) -> int:
    for fill in (0, 1):
        filled = {name: _full(array, fill) for name, array in inputs.items()}
        if _answers(runtime, filled):
            return fill
    return 0


def _full(array: Any, fill: int) -> Any:
    return np.full(array.shape, b"" if array.dtype.kind == "O" else fill, dtype=array.dtype)


def _answers(runtime: Runtime, inputs: Dict[str, Any]) -> bool:
    try:
        answers = runtime.predict(inputs)
    except (BadInputError, ModelFailure):
        return False
    except Exception:  # noqa: BLE001 - a model can raise whatever it likes
        return False
    return all(
        not is_float(array.dtype) or bool(are_finite(array).all()) for array in answers.values()
    )


def _filled(spec: TensorSpec, array: Any, fill: int) -> Dict[str, Any]:
    value: Any = "" if array.dtype.kind == "O" else fill
    shape = list(array.shape)
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, "fill": value}


def _written(name: str, array: Any) -> Dict[str, Any]:
    if is_float(array.dtype):
        # A sample may hold NaN for a missing value; JSON has no such number.
        array = np.where(are_finite(array), array, array.dtype.type(0))
    tensor = tensors.encode(name, array)
    data = tensor["data"]
    return {**tensor, "data": data if isinstance(data, list) else data.tolist()}


def peak_memory_bytes() -> int:
    """Most memory that this process has held at once, in bytes.

    The kernel's own count starts with the program; ``getrusage`` would count the parent's
    memory at the time of the fork.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        logger.debug("no peak memory in /proc", exc_info=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
