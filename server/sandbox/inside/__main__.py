"""``python -m server.sandbox.inside PLAN TARGET ARGUMENT…``: confines itself, then runs TARGET.

To be started with ``-S``: what a stranger's package leaves in an environment runs as soon as the
environment's packages are looked for, and that has to be inside. TARGET is a module with a function
``main`` that takes the arguments and returns the exit code.
"""

import contextlib
import importlib
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import List, NoReturn, Tuple

from server.sandbox.inside import identity, landlock, reach
from server.sandbox.inside.kernel import PR_SET_PDEATHSIG, prctl
from server.sandbox.inside.plan import KERNEL, Plan
from server.sandbox.inside.seccomp import filter_calls

EXIT_ORPHANED = 71
EXIT_NOT_CONFINED = 78

_CPU_GRACE_SECONDS = 5
_PROC = "/proc"
_OWN_PROC = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm")


def main(arguments: List[str]) -> NoReturn:
    """Confine this process, run the target and end; without all of the plan nothing is run."""
    text, target, *rest = arguments
    try:
        plan = Plan.of(text)
        confine(plan)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is not confined
        sys.stderr.write(f"not confined: {error}\n")
        sys.stderr.flush()
        os._exit(EXIT_NOT_CONFINED)
    if plan.python:
        _look_for_packages(plan.python)
    sys.argv = [target, *rest]
    sys.exit(importlib.import_module(target).main(rest))


def confine(plan: Plan) -> None:
    """Carry out a plan.

    Raises:
        ConfinementError, OSError, ValueError: some part of it cannot be had.
    """
    _die_with(plan.parent)
    # Where memory runs out the kernel is to end a model, and not the service.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for file in plan.groups:
        os.write(file, b"0\n")
        os.close(file)
    if plan.reach:
        reach.bring(plan.read, plan.write, plan.user)
    for name, value in plan.limits.items():
        # The first second over the limit is a signal of its own kind, and not that of a kill.
        most = value + _CPU_GRACE_SECONDS if name == "CPU" else value
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, most))
    if plan.user:
        os.umask(0o022)
        identity.become(plan.user)
    if plan.has_user_namespace:
        identity.enter_user_namespace()
    identity.give_up_rights()
    # A change of user takes the signal back.
    _die_with(plan.parent)
    if plan.level >= KERNEL:
        landlock.restrict(_granted(plan))
        filter_calls(has_memory_files=plan.has_gpu)


def _granted(plan: Plan) -> List[Tuple[str, int]]:
    own = (_PROC,) if plan.level > KERNEL else _OWN_PROC
    # CUDA writes the names of its threads there.
    proc = landlock.READ | (landlock.WRITE_FILE if plan.has_gpu else 0)
    granted = [(path, proc) for path in own if Path(path).exists()]
    granted += [(path, landlock.READ) for path in plan.read]
    granted += [(path, landlock.READ | landlock.WRITE) for path in plan.write]
    return granted + [(path, landlock.DEVICE) for path in plan.devices]


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent; already an orphan: end now."""
    prctl("die with parent", PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if (parent and os.getppid() != parent) or _nobody_reads():
        os._exit(EXIT_ORPHANED)


def _nobody_reads() -> bool:
    """Whether the service is gone already, though the parent is there.

    The parent may be a sandbox, which survives a service that ended while it was setting up.
    """
    watch = select.poll()
    watch.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def _look_for_packages(python: str) -> None:
    """Do what the interpreter does at its start without ``-S``, for another one's environment."""
    sys.executable = python
    import site

    site.main()


if __name__ == "__main__":
    main(sys.argv[1:])
