"""The plan of one child's confinement: written by the service, carried out inside."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Tuple

LIMITS = 1
"""Level at which only limits and a clean environment hold."""
KERNEL = 2
"""Level at which the kernel also refuses files (Landlock) and calls (seccomp)."""
NAMESPACES = 3
"""Level at which the process also lives in namespaces of its own."""


@dataclass(frozen=True)
class Plan:
    """What to do before the target runs.

    ``limits`` maps names of ``resource.RLIMIT_*`` (without the prefix) to values. ``parent`` is the
    process that has to be the parent, zero where the parent cannot be seen. ``user`` is the uid and
    gid to become, zero stays. ``read`` and ``write`` are files and folders, ``devices`` are device
    nodes. ``reach`` mounts the paths where the new user would not get through to them.
    ``groups`` are open ``cgroup.procs`` files to enter, ``python`` is the interpreter whose packages
    the target needs (empty: none). ``has_gpu`` leaves what CUDA needs: files in memory, and the names
    of threads in ``/proc``.
    """

    level: int
    limits: Dict[str, int] = field(default_factory=dict)
    parent: int = 0
    user: int = 0
    has_user_namespace: bool = False
    reach: bool = False
    read: Tuple[str, ...] = ()
    write: Tuple[str, ...] = ()
    devices: Tuple[str, ...] = ()
    groups: Tuple[int, ...] = ()
    python: str = ""
    has_gpu: bool = False

    def text(self) -> str:
        """Return the plan as one argument of a command line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of(cls, text: str) -> "Plan":
        """Read what :meth:`text` wrote.

        Raises:
            ValueError, TypeError: it is no plan.
        """
        given: Dict[str, Any] = json.loads(text)
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return cls(**{**given, **lists})
