"""MLflow's scoring server with one worker, onnx flavour, in the environment that is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def save(path: str, folder: Path) -> None:
    """Save the model as MLflow keeps it; done once, so that a start is only a start."""
    import mlflow
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from oip_session import DTYPES, open_session

    asked = open_session(path).get_inputs()[0]
    columns = asked.shape[1]
    spec = TensorSpec(np.dtype(DTYPES[asked.type]), (-1, columns))
    mlflow.onnx.save_model(
        onnx.load(path),
        folder,
        signature=ModelSignature(inputs=Schema([spec])),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )


def main() -> None:
    folder = Path(f"mlflow-{Path(sys.argv[1]).stem}")
    if not folder.exists():
        save(sys.argv[1], folder)
    program = Path(sys.executable).with_name("mlflow")
    options = ("--host", "127.0.0.1", "--port", sys.argv[2], "--workers", sys.argv[3])
    command = ("models", "serve", "-m", str(folder), "--env-manager", "local")
    os.execve(program, [str(program), *command, *options], {**os.environ})


if __name__ == "__main__":
    main()
