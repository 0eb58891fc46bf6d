"""Saves the packed form of a model, and keeps it only if it answers exactly as the model does."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Tuple

from server.model_server import protocol
from server.model_server.evidence import one_line
from server.model_server.loading import load_model
from server.model_server.packed import folder_in
from server.model_server.runtimes.registry import create
from server.model_server.spec import ModelSpec

logger = logging.getLogger(__name__)

Emit = Callable[[Dict[str, Any]], None]


def run(spec: ModelSpec, emit: Emit) -> int:
    """Save the form of ``spec.path`` below ``spec.packed`` and say its size; return the exit code.

    The model serves as well without it, so a failure is no more than a line in the log.
    """
    assert spec.packed is not None  # noqa: S101 - the service names it to this command
    folder = folder_in(spec.packed)
    try:
        _save(spec, folder)
    except Exception as error:  # noqa: BLE001 - see above
        logger.warning("the model cannot be packed: %s", one_line(error))
        shutil.rmtree(str(folder), ignore_errors=True)
        return 1
    emit({"event": "packed", "bytes": sum(file.stat().st_size for file in folder.iterdir())})
    return 0


def _save(spec: ModelSpec, folder: Path) -> None:
    inputs, expected = _answered(spec)
    folder.mkdir(parents=True)
    create(spec.kind).pack(spec.path, str(folder))
    packed = create(spec.kind)
    # Not by way of ``load_model``, which takes the model itself where this fails.
    packed.load_packed(spec.path, str(folder), threads=1)
    adopted = protocol.signature_of(spec.passport)
    if adopted is not None:
        packed.adopt(adopted)
    if not _are_equal(packed.predict(inputs), expected):
        raise ValueError("the packed form answers otherwise")
    for file in (*folder.iterdir(), folder, folder.parent):
        _sync(file)


def _answered(spec: ModelSpec) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return the warm-up's inputs and the model's answer; the model is let go of by then."""
    runtime, loaded = load_model(spec)
    given = spec.passport.get("warmup", {}).get("inputs", [])
    inputs = protocol.warm_up(given, loaded.signature).inputs
    return inputs, runtime.predict(inputs)


def _sync(path: Path) -> None:
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return set(one) == set(other) and all(_same(one[name], other[name]) for name in one)


def _same(one: Any, other: Any) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((one == other).all()) if one.dtype == object else one.tobytes() == other.tobytes()
