"""Open Inference Protocol in as few steps as can be, without any validation: for the peers that bring none.

JSON and the binary extension, one input, any number of outputs.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import orjson
from oip_session import open_session

HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES = {"FP32": np.float32, "INT32": np.int32}
DATATYPES = {"float32": "FP32", "int64": "INT64"}
THREADS = os.cpu_count() or 1


class Predictor:
    """One model: bytes in, bytes out."""

    def __init__(self, path: str) -> None:
        self.session = open_session(path)
        self.outputs = [output.name for output in self.session.get_outputs()]
        # A quick model would only be slowed by the way to a thread and back.
        self.is_quick = os.path.getsize(path) < 100_000  # noqa: PTH202

    def read(self, body: bytes, header_length: str | None) -> dict[str, Any]:
        if header_length is None:
            tensor = orjson.loads(body)["inputs"][0]
            values = np.array(tensor["data"], DTYPES[tensor["datatype"]])
        else:
            length = int(header_length)
            tensor = orjson.loads(body[:length])["inputs"][0]
            values = np.frombuffer(body, DTYPES[tensor["datatype"]], offset=length)
        return {tensor["name"]: values.reshape(tensor["shape"])}

    def run(self, feed: dict[str, Any]) -> list[Any]:
        answers: list[Any] = self.session.run(self.outputs, feed)
        return answers

    def write(self, answers: list[Any], is_binary: bool) -> tuple[bytes, int | None]:
        """Return a body, and the length of its JSON if bytes of tensors follow that."""
        outputs = []
        for name, answer in zip(self.outputs, answers, strict=True):
            entry = {"name": name, "datatype": DATATYPES[answer.dtype.name], "shape": answer.shape}
            if is_binary:
                entry["parameters"] = {"binary_data_size": answer.nbytes}
            else:
                entry["data"] = answer.ravel()
            outputs.append(entry)
        head = {"model_name": "model", "model_version": "1", "outputs": outputs}
        text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
        if not is_binary:
            return text, None
        return b"".join((text, *(answer.tobytes() for answer in answers))), len(text)
