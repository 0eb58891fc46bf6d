"""How a model process is started: interpreter, environment, what it sees."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.sandbox.launch import Launch, base_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Switches of numeric libraries that belong to the machine and not to the model.
_MACHINE_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "TZ")
_GPU_VARIABLES = ("LD_LIBRARY_PATH",)
# It writes nothing but what a library leaves in its own /tmp.
_FILE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProcess:
    """One start of the model server.

    ``python`` is that of the model environment below ``environment``, ``tree`` holds the model
    server's modules, ``folder`` the model, ``spec`` is the file that describes it; ``gpu`` is
    the UUID of the GPU, or empty for the CPU.
    """

    command: str
    python: Path
    environment: Path
    tree: Path
    folder: Path
    spec: Path
    gpu: str = ""
    threads: int = 1
    memory_bytes: int = 0
    listen_fd: int | None = None
    control_fd: int | None = None
    share_fd: int | None = None
    slot: int = 0

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
        "PYTHONPATH": str(process.tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(process.threads),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": process.gpu,
    }


def launch_of(process: ModelProcess) -> Launch:
    """Return the command that starts a model process and what it may see."""
    # -P: an uploaded file must never shadow a module (an interpreter before 3.11 has no -P).
    argv = [str(process.python), "-P", "-m", "server.model_server", *_arguments(process)]
    return Launch(
        argv=argv,
        read_only=[
            base_prefix(),
            process.environment,
            process.tree,
            process.folder,
            process.spec.parent,
        ],
        env=_environment(process),
        pass_fds=list(process.descriptors.values()),
        memory_bytes=process.memory_bytes,
        file_bytes=_FILE_BYTES,
        gpu=bool(process.gpu),
    )
