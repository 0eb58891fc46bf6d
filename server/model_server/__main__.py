"""Entry of a model process: ``serve`` answers predictions, ``prove`` shows that they work.

``pack`` saves a proven model in a form whose weights all processes share. The process is confined by
now, and bound to end with the service.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from typing import Any, Dict, NoReturn, Optional, Sequence


def main(argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Run one model process to its end; never returns."""
    private = _private_stdout()
    code = 1
    try:
        code = _run(_arguments(argv), private)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        logging.getLogger(__name__).exception("the model process failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Frameworks leave threads and destructors that can hold or crash a normal exit.
        os._exit(code)


def _run(arguments: argparse.Namespace, private: int) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

    def emit(event: Dict[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False, default=str) + "\n"
        data = line.encode("utf-8", "replace")
        while data:
            data = data[os.write(private, data) :]

    from server.model_server.spec import ModelSpec

    spec = ModelSpec.read(arguments.spec)
    if arguments.command == "prove":
        from server.model_server import prove

        return prove.run(spec, emit)
    if arguments.command == "pack":
        from server.model_server import packing

        return packing.run(spec, emit)
    from server.model_server import serve

    return serve.run(
        spec,
        shared=_inherited(arguments.listen_fd),
        control=_inherited(arguments.control_fd),
        share=_share(arguments),
        emit=emit,
    )


def _arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="server.model_server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prove = commands.add_parser("prove", help="load the model, try it, print its passport")
    pack = commands.add_parser("pack", help="save the model with weights that processes share")
    serve = commands.add_parser("serve", help="answer predictions on inherited sockets")
    for command in (prove, pack, serve):
        command.add_argument("--spec", required=True, help="JSON file that says what to run")
    serve.add_argument("--control-fd", type=int, required=True, help="private unix socket")
    serve.add_argument("--listen-fd", type=int, required=True, help="shared listening socket")
    serve.add_argument("--share-fd", type=int, help="memory that the replicas share")
    serve.add_argument("--slot", type=int, default=0, help="this replica's place in it")
    prove.add_argument("--control-fd", type=int, help="not used")
    return parser.parse_args(argv)


def _private_stdout() -> int:
    """Keep the events' channel apart from what the model prints, which goes to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def _inherited(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return sock


def _share(arguments: argparse.Namespace) -> Any:
    if arguments.share_fd is None:
        return None
    from server.model_server.sharing import Share

    share = Share(arguments.share_fd, arguments.slot)
    os.close(arguments.share_fd)
    return share


if __name__ == "__main__":
    main()
