"""What a model process is told at its start: one JSON file, read once.

Starts in a model environment of Python 3.9 or newer: standard library only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Tuple


@dataclass(frozen=True)
class ModelSpec:
    """One model and how to run it.

    Paths are those the process sees (inside the sandbox, if there is one). Times are in
    seconds, sizes in bytes.
    """

    run_id: str
    names: Tuple[str, ...]
    """Names under which the model answers: the run's id and the model's name."""
    kind: str
    """Runtime that loads it, by its name in ``runtimes.registry``."""
    path: str
    """The model's file."""
    digest: str
    """SHA-256 of the uploaded artifact, in hex."""
    sample: Optional[str] = None
    """``sample.npz`` or ``sample.json`` that the upload carried."""
    version: str = "0"
    environment: str = ""
    device: str = "cpu"
    """``cpu`` or ``cuda``; which GPU is said by CUDA_VISIBLE_DEVICES."""
    allow_cpu_fallback: bool = False
    threads: int = 1
    """Processor cores that the replica may use."""
    predict_seconds: float = 10.0
    drain_seconds: float = 3.0
    max_body_bytes: int = 64 * 1024 * 1024
    secret: Optional[str] = None
    """If set, the deployment's own address answers only requests that carry it, or a token."""
    packed: Optional[str] = None
    """Folder for the packed forms of the model, if it is large enough to have some."""
    passport: Dict[str, Any] = field(default_factory=dict)
    """What the smoke test proved; empty while it is still to be proven."""

    @classmethod
    def read(cls, path: str) -> ModelSpec:
        """Read a specification from its file."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values["names"] = tuple(values["names"])
        return cls(**values)
