"""The filter of system calls, run by a small interpreter of its own: every decision, both machines."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sandbox.inside.kernel import ConfinementError
from server.sandbox.inside.seccomp import ALLOW, ARCHITECTURES, KILL, REFUSE, UNKNOWN, program
from server.sandbox.inside.syscalls import ABSENT, CHECKED, LAST, MEMORY_FILES, REFUSED
from tests.support.needs import lacks

PID = 4321
MACHINES = sorted(ARCHITECTURES)
LOWER = 0xFFFFFFFF
# What a replica asks all day; the kernel looks at no argument of these but of the last three.
HOT = {
    "x86_64": (0, 1, 3, 7, 9, 11, 28, 47, 202, 228, 232, 281, 288),
    "aarch64": (56, 57, 63, 64, 73, 98, 22, 113, 212, 215, 222, 233, 242),
}


def decide(code: bytes, number: int, *arguments: int, architecture: int) -> int:
    """Run classic BPF over one call as the kernel does."""
    data = struct.pack("=iIQ6Q", ctypes.c_int32(number).value, architecture, 0, *arguments)
    steps = list(struct.iter_unpack("=HBBI", code))
    at, accumulator = 0, 0
    while True:
        what, if_so, if_not, value = steps[at]
        at += 1
        if what == 0x20:
            [accumulator] = struct.unpack_from("=I", data, value)
        elif what == 0x54:
            accumulator &= value
        elif what in {0x15, 0x35}:
            holds = accumulator == value if what == 0x15 else accumulator >= value
            at += if_so if holds else if_not
        else:
            assert what == 0x06
            return value


class Filter:
    """The filter of one machine, asked by the names of calls."""

    def __init__(self, machine: str, **more: bool) -> None:
        self.column, self.architecture = ARCHITECTURES[machine]
        self.code = program(machine, PID, **more)

    def number(self, name: str) -> int | None:
        tables = {**REFUSED, **ABSENT, **CHECKED, **MEMORY_FILES}
        return tables[name][self.column]

    def __call__(self, name: str | int, *arguments: int) -> int:
        number = self.number(name) if isinstance(name, str) else name
        assert number is not None
        filled = (*arguments, *(0 for _ in range(6 - len(arguments))))
        return decide(self.code, number, *filled, architecture=self.architecture)


@pytest.fixture(params=MACHINES)
def ask(request: pytest.FixtureRequest) -> Filter:
    return Filter(request.param)


def test_every_listed_call_is_refused_and_those_that_have_an_older_way_are_unknown(
    ask: Filter,
) -> None:
    for name in REFUSED:
        if ask.number(name) is not None:
            assert ask(name) == REFUSE, name
    for name in (*ABSENT, *MEMORY_FILES):
        assert ask(name) == UNKNOWN, name


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_replica_does_all_day_is_allowed(machine: str) -> None:
    ask = Filter(machine)

    assert {ask(number, *(LOWER for _ in range(6))) for number in HOT[machine]} == {ALLOW}


def test_a_gpu_process_may_keep_files_in_memory() -> None:
    assert Filter("x86_64", has_memory_files=True)("memfd_create") == ALLOW


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        # threads share everything and leave nothing behind
        ("clone", [(0x3D0F00,)], [(17,), (0,), (0x4100,), (0x10000 | 0x10000000,), (0x10080,)]),
        ("kill", [(PID, 6)], [(0, 9), (1, 0), (PID + 1, 0), (LOWER, 9)]),
        ("tgkill", [(PID, 7, 6)], [(PID - 1, 7, 6), (LOWER, 1, 6)]),
        ("prlimit64", [(0, 7, 0, 0)], [(PID, 7, 0, 0), (1, 7, 0, 0)]),
        ("sched_setaffinity", [(0, 8, 0)], [(PID, 8, 0)]),
        ("setpriority", [(0, 0, 5)], [(0, 1, 5), (2, 0, 5)]),
        ("ioprio_set", [(1, 0, 0)], [(1, PID, 0), (3, 0, 0)]),
        ("move_pages", [(0,)], [(PID,)]),
        (
            "fcntl",
            [(3, 2, 1), (3, 4, 0x800)],
            [(3, 8, 1), (3, 10, 9), (3, 15, 0), (3, 1026, 1), (3, 1024, 1), (3, 1040, 1)],
        ),
        ("ioctl", [(3, 0x5421, 0), (3, 0x541B, 0)], [(3, 0x8912), (3, 0x8901), (0, 0x5412)]),
        ("prctl", [(15, 0), (3,)], [(1, 0), (22, 2), (35, 1), (62, 1)]),
        ("sendto", [(3, 0, 9, 0), (3, 0, 9, 0x4040)], [(3, 0, 9, 0x20000000, 1, 16)]),
        ("sendmsg", [(3, 0, 0x4000)], [(3, 0, 0x20004000)]),
        ("sendmmsg", [(3, 0, 1, 0)], [(3, 0, 1, 0x20000000)]),
        ("setsockopt", [(3, 6, 1, 0), (3, 1, 64, 0)], [(3, 1, 20, 0, 16), (3, 1, 66, 0, 16)]),
        ("socketpair", [(1, 1, 0), (1, 0x80801, 0)], [(1, 2, 0), (1, 5, 0), (2, 1, 0), (16, 3, 0)]),
    ],
)
def test_calls_that_are_checked_pass_by_their_arguments(
    ask: Filter, name: str, allowed: list[tuple[int, ...]], refused: list[tuple[int, ...]]
) -> None:
    assert {ask(name, *arguments) for arguments in allowed} == {ALLOW}
    assert {ask(name, *arguments) for arguments in refused} == {REFUSE}
    # Of these arguments the kernel drops the upper half, so nothing may hang on it.
    upper = 0xABCD << 32
    for arguments in allowed:
        assert ask(name, *(value | upper for value in arguments)) == ALLOW
    for arguments in refused:
        assert ask(name, *(value | upper for value in arguments)) == REFUSE


@given(number=st.integers(0, 2**32 - 1), arguments=st.lists(st.integers(0, 2**64 - 1), max_size=6))
def test_any_call_gets_one_of_the_four_answers_and_unknown_ones_none_but_unknown(
    number: int, arguments: list[int]
) -> None:
    ask = Filter("x86_64")

    answer = ask(number, *arguments)

    assert answer in {ALLOW, REFUSE, UNKNOWN}
    if number > LAST:
        assert answer == UNKNOWN


def test_calls_of_another_architecture_end_the_process() -> None:
    code = program("x86_64", PID)

    for architecture in (0x40000003, ARCHITECTURES["aarch64"][1], 0):
        assert decide(code, 39, 0, 0, 0, 0, 0, 0, architecture=architecture) == KILL


def test_a_machine_without_a_table_gets_no_filter() -> None:
    with pytest.raises(ConfinementError, match="s390x"):
        program("s390x", PID)


def test_no_call_stands_in_two_tables() -> None:
    tables = [REFUSED, ABSENT, CHECKED, MEMORY_FILES]
    for column in (0, 1):
        numbers = [row[column] for table in tables for row in table.values() if row[column]]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_that_libseccomp_knows(machine: str) -> None:
    path = ctypes.util.find_library("seccomp")
    if path is None:
        lacks("needs libseccomp: apt-get install libseccomp2")
    resolve = ctypes.CDLL(path).seccomp_syscall_resolve_name_arch
    column, architecture = ARCHITECTURES[machine]

    for name, row in {**REFUSED, **ABSENT, **CHECKED, **MEMORY_FILES}.items():
        known = resolve(ctypes.c_uint32(architecture), name.encode())
        # It has negative numbers of its own for calls that another machine has, or that are newer.
        if known >= 0 or row[column] is None:
            assert (known if known >= 0 else None) == row[column], name


def test_the_filter_is_short_enough_for_the_kernel() -> None:
    for machine in MACHINES:
        assert len(program(machine, PID)) // 8 < 4096 // 8
