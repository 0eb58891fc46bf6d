"""The deployments' own addresses, whose sockets are shared with foreign code."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import closing

import pytest

from server.engines.addresses import bind_if_free

pytestmark = pytest.mark.timeout(20)


def test_who_shares_an_address_cannot_make_the_service_wait_there() -> None:
    listener = bind_if_free("127.0.0.1", 0)
    assert listener is not None
    with closing(listener):
        # What a model process may do: the flag belongs to the socket, not to who opened it.
        os.set_blocking(listener.fileno(), True)
        # Ends what would else last for good, with another error.
        rescue = threading.Timer(5, listener.shutdown, [socket.SHUT_RDWR])
        rescue.start()

        with pytest.raises(BlockingIOError):
            # Past the waiting of Python's own, as the event loop does it.
            listener._accept()  # type: ignore[attr-defined]

        rescue.cancel()
