"""How a model process is started: interpreter, environment, what it sees."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.sandbox.child import LINE_BYTES, nobody
from server.sandbox.launch import Launch, base_python

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Switches of numeric libraries that belong to the machine and not to the model.
_MACHINE_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "TZ")
_GPU_VARIABLES = ("LD_LIBRARY_PATH",)
# It writes nothing but what a library leaves in its own /tmp.
_FILE_BYTES = 64 * 1024**2
_SERVING_LINE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProcess:
    """One start of the model server.

    ``python`` is that of the model environment below ``environment``, ``tree`` holds the model
    server's modules, ``folder`` the model, ``spec`` is the file that describes it, in a folder of
    this process's own; ``writable`` is a folder that it may write files of up to ``file_bytes`` to;
    ``gpu`` is the UUID of the GPU, or empty for the CPU, ``nodes`` are its device nodes;
    ``hear`` takes each line of its log.
    """

    command: str
    python: Path
    environment: Path
    tree: Path
    folder: Path
    spec: Path
    writable: Path | None = None
    file_bytes: int = _FILE_BYTES
    gpu: str = ""
    nodes: Sequence[str] = ()
    threads: int = 1
    memory_bytes: int = 0
    cpu_seconds: int = 0
    listen_fd: int | None = None
    control_fd: int | None = None
    share_fd: int | None = None
    slot: int = 0
    hear: Callable[[str], None] = nobody

    @property
    def descriptors(self) -> dict[str, int]:
        """What it inherits, by the argument that says so."""
        given = {"listen": self.listen_fd, "control": self.control_fd, "share": self.share_fd}
        return {name: fd for name, fd in given.items() if fd is not None}


def _arguments(process: ModelProcess) -> Sequence[str]:
    arguments = [process.command, "--spec", str(process.spec)]
    for name, descriptor in process.descriptors.items():
        arguments += [f"--{name}-fd", str(descriptor)]
    if process.share_fd is not None:
        arguments += ["--slot", str(process.slot)]
    return arguments


def _environment(process: ModelProcess) -> dict[str, str]:
    machine = _MACHINE_VARIABLES + (_GPU_VARIABLES if process.gpu else ())
    return {
        **{name: os.environ[name] for name in machine if name in os.environ},
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",  # noqa: S108 - the process's own tmpfs
        "TMPDIR": "/tmp",  # noqa: S108
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(process.threads),
        # onnxruntime from 1.29 on would tell its maker about models, and log that it cannot.
        "ORT_DISABLE_TELEMETRY": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": process.gpu,
    }


def _base(process: ModelProcess) -> Path | None:
    """Return the interpreter that an environment was made of; None for the service's own."""
    program = process.python.resolve()
    return None if program == Path(base_python()) else program


def launch_of(process: ModelProcess) -> Launch:
    """Return the command that starts a model process and what it may see."""
    return Launch(
        tree=process.tree,
        target="server.model_server.__main__",
        arguments=_arguments(process),
        python=process.python,
        base=_base(process),
        read_only=[process.environment, process.folder],
        writable=[] if process.writable is None else [process.writable],
        private=[process.spec.parent],
        env=_environment(process),
        pass_fds=list(process.descriptors.values()),
        memory_bytes=process.memory_bytes,
        file_bytes=process.file_bytes,
        cpu_seconds=process.cpu_seconds,
        # Of replicas there are many, and none has much to say.
        line_bytes=_SERVING_LINE_BYTES if process.command == "serve" else LINE_BYTES,
        gpu=process.nodes,
        has_gpu=bool(process.gpu),
        hear=process.hear,
    )
