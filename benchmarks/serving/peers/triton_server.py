"""Triton as nvidia-pytriton brings it: onnxruntime in a bound Python process, dynamic batches."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

import numpy as np
from oip_session import DTYPES, open_session
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

OUTPUTS = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tensor(described: Any, dtypes: dict[str, Any]) -> Tensor:
    # It has to be given one dimension at least beside that of the batch.
    shape = tuple(size if isinstance(size, int) else -1 for size in described.shape[1:]) or (1,)
    return Tensor(name=described.name, dtype=dtypes[described.type], shape=shape)


def main() -> None:
    logging.disable(logging.WARNING)
    session = open_session(sys.argv[1])
    names = [output.name for output in session.get_outputs()]

    @batch
    def infer(**inputs: Any) -> dict[str, Any]:
        answers = session.run(names, inputs)
        return {
            name: answer if answer.ndim > 1 else answer.reshape(-1, 1)
            for name, answer in zip(names, answers, strict=True)
        }

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[2]),
        allow_grpc=False,
        metrics_port=free_port(),
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[tensor(one, DTYPES) for one in session.get_inputs()],
            outputs=[tensor(one, OUTPUTS) for one in session.get_outputs()],
            config=ModelConfig(
                max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=500)
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
