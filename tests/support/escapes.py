"""What hostile code in a model tries: run from inside a pickle, standard library only.

Each attempt raises ``OSError`` where it was stopped; one that returns got through. The text of this
very file is the payload, with a call of ``report`` behind it.
"""

import _thread
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import socket
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
NUMBERS = {
    "bpf": (321, 280),
    "clone": (56, 220),
    "fork": (57, 0),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_open": (434, 434),
    "process_vm_readv": (310, 270),
    "prlimit64": (302, 261),
    "shmget": (29, 194),
    "tkill": (200, 130),
    "userfaultfd": (323, 282),
}
SIGCHLD, CLONE_PARENT = 17, 0x8000


def call(name, *arguments):
    """Make a system call by its number; raises what the kernel answers."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return checked(libc.syscall(ctypes.c_long(NUMBERS[name][0 if X86 else 1]), *words))


def checked(answer):
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def read(path):
    with open(path, "rb") as file:
        return file.read(1)


def write(path):
    with open(path, "ab") as file:
        file.write(b"x")


def in_child(started):
    """Leave a process that should not be at once."""
    if started == 0:
        os._exit(0)


# ── files


def files(given):
    data, own = given["data"], given["own"]
    yield "read the database", lambda: read(data + "/persephone.db")
    yield "read another run's model", lambda: read(data + "/models/other/model.bin")
    yield "read another replica's description", lambda: read(data + "/replicas/other/spec.json")
    yield "list the data folder", lambda: listed(data, "persephone.db")
    yield "list the runs", lambda: listed(data + "/models", "other")
    yield "read the users of the machine", lambda: read("/etc/passwd")
    yield "write into the database", lambda: write(data + "/persephone.db")
    yield "write beside the database", lambda: write(data + "/left-behind")
    yield "write into another run's folder", lambda: write(data + "/models/other/left-behind")
    yield "write into its own model", lambda: write(own)
    yield "write into the modules that run it", lambda: write(given["tree"] + "/left-behind.py")
    yield "write into the machine's /tmp", lambda: left_outside(given["outside"])
    yield "truncate the database", lambda: os.truncate(data + "/persephone.db", 0)
    yield "open the database to others", lambda: os.chmod(data + "/persephone.db", 0o666)
    yield "link to the database", lambda: os.link(data + "/persephone.db", given["outside"] + "/l")
    yield "change the database's time", lambda: os.utime(data + "/persephone.db")
    yield "watch the data folder", lambda: watched(data)
    yield (
        "make others wait for a file",
        lambda: fcntl.fcntl(os.open(own, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK),
    )
    yield "make a device node", lambda: os.mknod(given["outside"] + "/node", 0o20666, 259)
    yield "open the machine's memory", lambda: read("/dev/mem")
    yield "take the database's name away", lambda: os.rename(data + "/persephone.db", data + "/x")
    yield "open a file by its handle", lambda: call("open_by_handle_at", -100, b"\0" * 16, 0)


def listed(folder, name):
    # Of the folders on the way to its own files a stand-in is shown, with nothing else in it.
    if name not in os.listdir(folder):
        raise OSError(errno.ENOENT, "only its own")


def left_outside(folder):
    # A stand-in of its own under that name is allowed: the test looks at the real folder.
    write(folder + "/left-behind")
    raise OSError(errno.EPERM, "the test looks whether it is there")


def watched(folder):
    watch = checked(libc.inotify_init())
    checked(libc.inotify_add_watch(watch, folder.encode(), 0x100))


# ── other processes


def processes(given):
    service, sibling = given["service"], given["sibling"]
    for name, pid in (("the service", service), ("another model", sibling)):
        yield f"read the environment of {name}", lambda pid=pid: read(f"/proc/{pid}/environ")
        yield f"read the memory of {name}", lambda pid=pid: read(f"/proc/{pid}/mem")
        yield f"read the command line of {name}", lambda pid=pid: read(f"/proc/{pid}/cmdline")
        yield f"list the files of {name}", lambda pid=pid: os.listdir(f"/proc/{pid}/fd")
        yield f"signal {name}", lambda pid=pid: os.kill(pid, 0)
        yield f"signal a thread of {name}", lambda pid=pid: call("tkill", pid, 0)
        yield f"trace {name}", lambda pid=pid: checked(libc.ptrace(0x4206, pid, 0, 0))
        yield f"peek at {name}", lambda pid=pid: peek(pid)
        yield f"hold {name}", lambda pid=pid: call("pidfd_open", pid, 0)
        yield f"read limits of {name}", lambda pid=pid: call("prlimit64", pid, 7, 0, bytes(16))
        yield (
            f"pin {name} to a processor",
            lambda pid=pid: os.sched_setaffinity(pid, os.sched_getaffinity(0)),
        )
        yield f"slow {name}", lambda pid=pid: os.setpriority(os.PRIO_PROCESS, pid, 10)
        yield f"let the kernel signal {name}", lambda pid=pid: owned(pid)
    yield "signal everybody", lambda: os.kill(-1, 0)
    yield "outlive the service", lambda: checked(libc.prctl(1, 0, 0, 0, 0))


def peek(pid):
    room = ctypes.create_string_buffer(8)
    one = struct.pack("PP", ctypes.addressof(room), 8)
    call("process_vm_readv", pid, one, 1, one, 1, 0)


def owned(pid):
    reading, _ = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, pid)


# ── network


def network(given):
    yield "connect to the service by TCP", lambda: tcp(given["port"])
    yield "bind a port", lambda: bound(socket.socket())
    yield "send by UDP", lambda: udp(given["port"])
    yield "connect to an abstract unix socket", lambda: unix("\0" + given["abstract"])
    yield "connect to a replica's control socket", lambda: unix(given["control"])
    yield "send to a unix socket through a pair", lambda: through_a_pair(given["datagrams"])
    yield (
        "ask the kernel for the machine's addresses",
        lambda: socket.socket(16, socket.SOCK_RAW, 0),
    )
    yield "ask a given socket for interfaces", lambda: interfaces(given["inherited"])
    yield (
        "turn a given socket to another address",
        lambda: turned(given["inherited"], given["port"]),
    )
    yield (
        "let the service wait on a given socket",
        lambda: waiting(given["inherited"]),
    )
    yield "turn it without connecting", lambda: fast_open(given["inherited"], given["port"])


def tcp(port):
    socket.create_connection(("127.0.0.1", port), timeout=2).close()


def bound(sock):
    sock.bind(("127.0.0.1", 0))
    sock.listen()


def udp(port):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))


def unix(path):
    socket.socket(socket.AF_UNIX).connect(path)


def through_a_pair(path):
    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", path)


def interfaces(inherited):
    fcntl.ioctl(inherited, 0x8912, struct.pack("iP", 0, 0))


def turned(inherited, port):
    # Once it is shut down a listening socket can be connected, in the namespace it comes from.
    sock = socket.socket(fileno=os.dup(inherited))
    sock.shutdown(socket.SHUT_RDWR)
    sock.settimeout(2)
    sock.connect(("127.0.0.1", port))


def waiting(inherited):
    # Whether it blocks is the service's affair too, but then this bounds for how long.
    sock = socket.socket(fileno=os.dup(inherited))
    os.set_blocking(inherited, True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))


def fast_open(inherited, port):
    sock = socket.socket(fileno=os.dup(inherited))
    sock.sendmsg([b"x"], [], 0x20000000, ("127.0.0.1", port))


# ── programs, namespaces, the kernel


def programs(_given):
    yield "fork", lambda: in_child(os.fork())
    yield "spawn a shell", lambda: os.posix_spawn("/bin/sh", ["sh", "-c", ":"], {})
    yield "clone by number", lambda: in_child(call("clone", SIGCHLD, 0, 0, 0, 0))
    yield "clone a sibling", lambda: in_child(call("clone", CLONE_PARENT | SIGCHLD, 0, 0, 0, 0))
    if X86:
        yield "fork by number", lambda: in_child(call("fork"))
        yield "call by the x32 interface", lambda: checked(libc.syscall(0x40000000 + 39))
    yield "start a program from memory", from_memory


def from_memory():
    program = os.memfd_create("program", 0)
    os.write(program, b"#!/bin/true\n")
    os.posix_spawn(f"/proc/self/fd/{program}", ["true"], {})


def kernel(given):
    yield "make a user namespace", lambda: checked(libc.unshare(0x10000000))
    yield "make a mount namespace", lambda: checked(libc.unshare(0x00020000))
    yield "enter the service's namespaces", lambda: entered(given["service"])
    yield (
        "mount",
        lambda: checked(libc.mount(b"none", given["outside"].encode(), b"tmpfs", 0, None)),
    )
    yield "become root", lambda: became_root()
    yield "switches of the machine", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)
    yield "the machine's emergency keys", lambda: os.open("/proc/sysrq-trigger", os.O_WRONLY)
    yield "io_uring", lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(120))
    yield "bpf", lambda: call("bpf", 0, ctypes.create_string_buffer(64), 64)
    yield "keyrings", lambda: call("keyctl", 0, -3, 1)
    yield "performance counters", lambda: call("perf_event_open", events(), 0, -1, -1, 0)
    yield "page faults of its own", lambda: call("userfaultfd", 1)
    yield "shared memory that stays", lambda: call("shmget", 0, 4096, 0o1600)
    yield (
        "raise its own limits",
        lambda: resource.setrlimit(resource.RLIMIT_NPROC, (1 << 20, 1 << 20)),
    )


def last(given):
    """After which nothing else can be tried if it gets through."""
    yield "start a program", lambda: os.execv("/bin/true", ["true"])
    yield "change the root folder", lambda: os.chroot(given["outside"])


def entered(service):
    checked(libc.setns(os.open(f"/proc/{service}/ns/net", os.O_RDONLY), 0))


def became_root():
    if os.getuid() == 0:
        # What it is already counts as long as it can use it: no capability may be left.
        with open("/proc/self/status", encoding="ascii") as file:
            if any(line.split() == ["CapEff:", "0" * 16] for line in file):
                raise OSError(errno.EPERM, "root in name only")
    os.setuid(0)


def events():
    about = ctypes.create_string_buffer(128)
    struct.pack_into("IIQ", about, 0, 1, 128, 0)
    return about


# ── what takes away from everybody


def bomb(name, given):
    """Go off; whatever stops it is told, and nothing stops it in vain."""
    {
        "processes": fork_bomb,
        "threads": thread_bomb,
        "memory": memory_bomb,
        "memory of files": memory_file_bomb,
        "disk": disk_bomb,
        "files": file_bomb,
        "processor": processor_bomb,
        "old interface": old_interface,
    }[name](given)


def fork_bomb(_given):
    while True:
        os.fork()


def thread_bomb(_given):
    _thread.stack_size(64 * 1024)
    started = 0
    try:
        while True:
            _thread.start_new_thread(time.sleep, (60,))
            started += 1
    except RuntimeError:
        tell({"threads": started})
    os._exit(1)


def memory_bomb(_given):
    hoard = []
    while True:
        hoard.append(b"x" * (64 << 20))


def memory_file_bomb(_given):
    while True:
        os.write(os.memfd_create("hoard", 0), b"x" * (64 << 20))


def disk_bomb(given):
    written = 0
    for folder in given["folders"]:
        try:
            for number in range(100_000):
                with open(f"{folder}/{number}", "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, 32 << 20)
                    written += 32 << 20
        except OSError:
            continue
    tell({"bytes": written})
    raise OSError(errno.ENOSPC, "full")


def file_bomb(_given):
    while True:
        os.dup(1)


def processor_bomb(_given):
    while True:
        pass


def old_interface(_given):
    """Make a call of 32-bit programs: getpid by int 0x80, as machine code."""
    room = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    room.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    at = ctypes.addressof(ctypes.c_char.from_buffer(room))
    tell({"pid": ctypes.CFUNCTYPE(ctypes.c_int)(at)()})


# ── the report

ATTEMPTS = (files, processes, network, programs, kernel, last)


def report(given):
    """Try everything that is not a bomb and print what each attempt met.

    What replaces this process comes last; it meets nothing if it does.
    """
    for group in ATTEMPTS:
        for name, attempt in group(given):
            tell({"trying": name})
            tell({"met": outcome(attempt)})
    os._exit(3)


def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except ValueError:
        return "EPERM"
    return "open"


def tell(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
