"""Loads the model of a specification onto its device."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Optional, Tuple

from server.model_server.evidence import is_out_of_memory, one_line
from server.model_server.failures import ModelFailure, named_absence
from server.model_server.packed import found_in
from server.model_server.protocol import signature_of
from server.model_server.runtimes.base import Loaded, Runtime
from server.model_server.runtimes.registry import create
from server.model_server.scheduling import Plan, plan_of
from server.model_server.spec import ModelSpec

logger = logging.getLogger(__name__)

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def load_model(spec: ModelSpec) -> Tuple[Runtime, Loaded]:
    """Load the model that a specification names.

    The signature is the one that the passport holds, if there is one: a preparation may have
    learned it from a sample.

    Raises:
        ModelFailure: with a code that names the cause; ``silent_cpu_fallback`` if a GPU was
            given and the model runs beside it.
    """
    for name in _THREAD_SETTINGS:
        os.environ.setdefault(name, str(spec.threads))
    runtime = create(spec.kind)
    try:
        threads = plan_for(spec, runtime).framework_threads
        loaded = _load_packed(spec, runtime, threads) or runtime.load(
            spec.path, device=spec.device, threads=threads
        )
    except ModelFailure:
        raise
    except MemoryError as error:
        raise ModelFailure("model_memory_exceeded", evidence=one_line(error)) from error
    except ImportError as error:
        raise named_absence(error) or ModelFailure(
            "framework_missing", kind=spec.kind, evidence=one_line(error)
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelFailure("model_memory_exceeded", evidence=one_line(error)) from error
        logger.exception("the model could not be loaded")
        raise ModelFailure("model_load_failed", evidence=one_line(error)) from error
    loaded = _checked_device(spec, loaded)
    proven = signature_of(spec.passport)
    if proven is not None:
        runtime.adopt(proven)
        loaded = dataclasses.replace(loaded, signature=proven)
    return runtime, loaded


def _load_packed(spec: ModelSpec, runtime: Runtime, threads: int) -> Optional[Loaded]:
    folder = found_in(spec.packed)
    if folder is None or spec.device != "cpu":
        return None
    try:
        return runtime.load_packed(spec.path, folder, threads=threads)
    except Exception as error:  # noqa: BLE001 - the model itself is there, too
        logger.warning("the packed form cannot be used: %s", one_line(error))
        return None


def plan_for(spec: ModelSpec, runtime: Runtime) -> Plan:
    """Choose how the predictions of a specification's model are run."""
    return plan_of(
        spec.passport,
        threads=spec.threads,
        is_concurrent=runtime.is_concurrent,
        is_bounded=runtime.is_bounded,
    )


def _checked_device(spec: ModelSpec, loaded: Loaded) -> Loaded:
    if spec.device != "cuda" or loaded.device == "cuda":
        return loaded
    params = {"framework": loaded.framework}
    if not spec.allow_cpu_fallback:
        raise ModelFailure("silent_cpu_fallback", **params)
    warning = {"code": "cpu_fallback", "params": params}
    return dataclasses.replace(loaded, warnings=(*loaded.warnings, warning))
