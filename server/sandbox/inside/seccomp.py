"""The filter of system calls: what a model process can no longer ask of the kernel.

Classic BPF, written here: a filter of this shape needs no library, which a model environment would
have to bring. Calls without a look at their arguments cost nothing: the kernel works out once which
numbers always pass and then runs no filter for them.
"""

import ctypes
import os
import platform
import struct
from typing import Dict, List, Tuple

from server.sandbox.inside.kernel import PR_SET_SECCOMP, ConfinementError, prctl
from server.sandbox.inside.syscalls import ABSENT, CHECKED, LAST, MEMORY_FILES, REFUSED, Number

ARCHITECTURES: Dict[str, Tuple[int, int]] = {
    "x86_64": (0, 0xC000003E),
    "aarch64": (1, 0xC00000B7),
}
"""Column of the tables and the kernel's name of the architecture, by ``platform.machine()``."""

ALLOW = 0x7FFF0000
KILL = 0x80000000
REFUSE = 0x00050000 | 1
"""EPERM."""
UNKNOWN = 0x00050000 | 38
"""ENOSYS."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_MODE_FILTER = 2
_ALL = 0xFFFFFFFF

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080
_FAST_OPEN = 0x20000000
_UNIX, _STREAM, _KINDS_OF_SOCKETS = 1, 1, 0xF
_SIGNALS_BY_FILES = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: the kernel would signal others for us."""
_FILE_NOTIFICATIONS = 1026
_LEASES = (1024, 1040)
"""F_SETLEASE, F_SETDELEG: whoever opens the file, another model or the service, would wait for us."""
_SOCKET_REQUESTS, _SOCKET_REQUEST_BITS = 0x8900, 0xFFFFFF00
"""The interfaces of the machine, and the owner of a socket's signals."""
_WAITING = (20, 66)
"""SO_RCVTIMEO: a listening socket is shared with the service, which must never wait on it for long."""
_TERMINAL_REQUESTS = (0x5412, 0x541C)
_PROCESS_OPTIONS = (1, 22, 35, 62)
"""PR_SET_PDEATHSIG would let it outlive the service; PR_SET_SECCOMP, PR_SET_MM, PR_SCHED_CORE."""

Test = Tuple[int, int, int, bool]
"""Argument, bits of it, value, and whether they have to be equal."""


def tests_of(pid: int) -> Dict[str, List[Test]]:
    """Return what has to hold for each call that is checked; ``pid`` is the process's own.

    Only the lower half of an argument is looked at: the kernel takes all of these for 32 bits.
    """
    myself: List[Test] = [(0, _ALL, pid, True)]
    this_thread: List[Test] = [(0, _ALL, 0, True)]
    return {
        "sendto": [(3, _FAST_OPEN, 0, True)],
        "sendmsg": [(2, _FAST_OPEN, 0, True)],
        "sendmmsg": [(3, _FAST_OPEN, 0, True)],
        "fcntl": [
            (1, _ALL, code, False) for code in (*_SIGNALS_BY_FILES, _FILE_NOTIFICATIONS, *_LEASES)
        ],
        "ioctl": [
            (1, _SOCKET_REQUEST_BITS, _SOCKET_REQUESTS, False),
            *((1, _ALL, code, False) for code in _TERMINAL_REQUESTS),
        ],
        "prctl": [(0, _ALL, code, False) for code in _PROCESS_OPTIONS],
        "clone": [(0, _CLONE_THREAD, _CLONE_THREAD, True), (0, _CLONE_NAMESPACES, 0, True)],
        "socketpair": [(0, _ALL, _UNIX, True), (1, _KINDS_OF_SOCKETS, _STREAM, True)],
        "setsockopt": [(2, _ALL, option, False) for option in _WAITING],
        "kill": myself,
        "tgkill": myself,
        "prlimit64": this_thread,
        "sched_setaffinity": this_thread,
        "sched_setattr": this_thread,
        "sched_setparam": this_thread,
        "sched_setscheduler": this_thread,
        "migrate_pages": this_thread,
        "move_pages": this_thread,
        "setpriority": [(0, _ALL, 0, True), (1, _ALL, 0, True)],
        "ioprio_set": [(0, _ALL, 1, True), (1, _ALL, 0, True)],
    }


def program(machine: str, pid: int, *, has_memory_files: bool = False) -> bytes:
    """Return the filter for the process ``pid`` on a machine.

    Raises:
        ConfinementError: we do not know the calls of this machine.
    """
    if machine not in ARCHITECTURES:
        raise ConfinementError(f"seccomp: no table of system calls for {machine}")
    column, architecture = ARCHITECTURES[machine]

    def numbers(table: Dict[str, Tuple[Number, Number]]) -> List[int]:
        return sorted(number for row in table.values() if (number := row[column]) is not None)

    code = [
        _step(_LOAD, _ARCHITECTURE_AT),
        *_unless(architecture, KILL),
        _step(_LOAD, _NUMBER_AT),
    ]
    tests = tests_of(pid)
    for name, row in CHECKED.items():
        number = row[column]
        if number is not None:
            block = _checks(tests[name])
            code += [_step(_EQUAL, number, 0, len(block)), *block]
    for number in numbers(REFUSED):
        code += _when(number, REFUSE)
    for number in numbers(ABSENT) if has_memory_files else numbers({**ABSENT, **MEMORY_FILES}):
        code += _when(number, UNKNOWN)
    # Calls of the x32 interface have the bit 30 in their numbers.
    code += [_step(_AT_LEAST, LAST + 1, 0, 1), _step(_RETURN, UNKNOWN)]
    return b"".join([*code, _step(_RETURN, ALLOW)])


def _step(what: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", what, if_so, if_not, value)


def _when(number: int, answer: int) -> List[bytes]:
    return [_step(_EQUAL, number, 0, 1), _step(_RETURN, answer)]


def _unless(number: int, answer: int) -> List[bytes]:
    return [_step(_EQUAL, number, 1, 0), _step(_RETURN, answer)]


def _checks(tests: List[Test]) -> List[bytes]:
    code: List[bytes] = []
    for argument, bits, value, equal in tests:
        code.append(_step(_LOAD, _ARGUMENTS_AT + 8 * argument))
        if bits != _ALL:
            code.append(_step(_AND, bits))
        code += _unless(value, REFUSE) if equal else _when(value, REFUSE)
    return [*code, _step(_RETURN, ALLOW)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def filter_calls(*, has_memory_files: bool) -> None:
    """Load the filter for this process and the threads that it will start; for good.

    Raises:
        ConfinementError: the kernel has no such filters.
    """
    code = program(platform.machine(), os.getpid(), has_memory_files=has_memory_files)
    steps = ctypes.create_string_buffer(code, len(code))
    loaded = _Program(len(code) // 8, ctypes.addressof(steps))
    prctl("seccomp", PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(loaded))
