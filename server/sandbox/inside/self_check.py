"""Looks from inside whether what a level promises is so: run by the service before it relies on it.

Prints one JSON object: ``open`` names what should be closed and is not, ``closed`` what a model
needs and cannot have.
"""

import json
import os
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List

from server.sandbox.inside.kernel import libc
from server.sandbox.inside.plan import NAMESPACES

WRITTEN = "written"
"""Name of a file that is tried to be made beside the service's."""

_NEW_USER_NAMESPACE = 0x10000000
_NONE = "0000000000000000"


def main(arguments: List[str]) -> int:
    """Look and tell; the argument is a JSON object made by the service."""
    given: Dict[str, Any] = json.loads(arguments[0])
    # The service looks whether this has reached it.
    _works(Path(given["canary"]).with_name(WRITTEN).touch)
    found = {
        "open": [name for name, happens in _forbidden(given).items() if happens()],
        "closed": [name for name, happens in _needed(given).items() if not happens()],
    }
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    return 0


def _forbidden(given: Dict[str, Any]) -> Dict[str, Callable[[], bool]]:
    canary, service = Path(given["canary"]), int(given["pid"])
    checks: Dict[str, Callable[[], bool]] = {
        "files of the service": lambda: _works(canary.read_bytes),
        "the service's environment": lambda: _works(Path(f"/proc/{service}/environ").read_bytes),
        "signals": lambda: _works(lambda: os.kill(service, 0)),
        "network sockets": lambda: _works(lambda: socket.socket(socket.AF_INET).close()),
        "unix sockets": lambda: _works(lambda: socket.socket(socket.AF_UNIX).close()),
        "new processes": lambda: _works(_fork),
        "other programs": lambda: _works(lambda: os.execv("/bin/true", ["true"])),  # noqa: S606
        "new namespaces": lambda: libc.unshare(_NEW_USER_NAMESPACE) == 0,
        "capabilities": lambda: any(_status(f"Cap{kind}") != _NONE for kind in ("Eff", "Prm")),
        "new privileges": lambda: _status("NoNewPrivs") != "1",
        "system calls": lambda: _status("Seccomp") != "2",
        "the user of the service": lambda: os.getuid() == given["user"],
    }
    if given["level"] >= NAMESPACES:
        for name, of_the_service in given["namespaces"].items():
            shared = partial(_shares_namespace, name, of_the_service)
            checks[f"the {name} namespace of the service"] = shared
        checks["other processes"] = lambda: len(_processes()) > _MOST_PROCESSES
        checks["network interfaces"] = lambda: _interfaces() != ["lo"]
        checks["the root folder"] = lambda: not os.statvfs("/").f_flag & os.ST_RDONLY
        checks["switches of the machine"] = lambda: os.access("/proc/sys/kernel/panic", os.W_OK)
    return checks


_MOST_PROCESSES = 3
"""bubblewrap's first process, this one, and room for one that is just ending."""


def _needed(given: Dict[str, Any]) -> Dict[str, Callable[[], bool]]:
    checks: Dict[str, Callable[[], bool]] = {
        "threads": _threads,
        "pairs of sockets": _pair,
        "its own folder": lambda: _works(Path(given["readable"]).read_bytes),
        "groups of its own": lambda: _groups(given["prefix"]) >= given["groups"],
        "its own state": lambda: _works(lambda: _status("VmHWM")),
    }
    for folder in given["writable"]:
        own = Path(folder) / "self-check"
        checks[f"writing to {folder}"] = partial(_works, partial(_leave_nothing, own))
    return checks


def _works(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, KeyError):
        return False
    return True


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _threads() -> bool:
    ran = threading.Event()
    try:
        thread = threading.Thread(target=ran.set)
        thread.start()
        thread.join()
    except RuntimeError:
        return False
    return ran.is_set()


def _pair() -> bool:
    def both() -> None:
        one, other = socket.socketpair()
        one.sendall(b"x")
        other.recv(1)
        one.close()
        other.close()

    return _works(both)


def _leave_nothing(path: Path) -> None:
    path.write_bytes(b"x")
    path.unlink()


def _status(field: str) -> str:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return dict(line.split(":", 1) for line in lines)[field].strip()


def _groups(prefix: str) -> int:
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    return sum(prefix in line.rsplit("/", 1)[-1] for line in lines)


def _shares_namespace(name: str, of_the_service: str) -> bool:
    return str(Path("/proc/self/ns", name).readlink()) == of_the_service


def _processes() -> List[str]:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _interfaces() -> List[str]:
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    return [line.split(":", 1)[0].strip() for line in lines]
