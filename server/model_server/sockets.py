"""What a socket can be asked past its transport."""

from __future__ import annotations

import fcntl
import struct
import termios


def unread(descriptor: int) -> int:
    """Count the bytes that have arrived and were not read yet; 0 without a descriptor (-1).

    Raises:
        OSError: the descriptor is no open socket.
    """
    if descriptor < 0:
        return 0
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    return count
