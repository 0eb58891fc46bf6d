"""MLServer with a runtime of its own, as it brings none for ONNX; no worker processes, no debug."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    folder = Path("mlserver")
    folder.mkdir(exist_ok=True)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": int(sys.argv[2]),
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        # In processes of its own it answers a third as many requests.
        "parallel_workers": 0,
    }
    model = {
        "name": "model",
        "implementation": "mlserver_runtime.OnnxRuntime",
        "parameters": {"uri": sys.argv[1]},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    program = Path(sys.executable).with_name("mlserver")
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    os.execve(program, [str(program), "start", str(folder)], environment)


if __name__ == "__main__":
    main()
