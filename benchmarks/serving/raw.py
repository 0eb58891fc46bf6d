"""Calls of onnxruntime alone: so many threads, each calling run in a loop on one session.

Prints calls per second and the processor time of one call in µs. Run by a peer's interpreter.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import numpy as np
import onnxruntime


def calls(session: Any, feed: dict[str, Any], until: float, counted: list[int]) -> None:
    number = 0
    while time.perf_counter() < until:
        for _ in range(4):
            session.run(None, feed)
        number += 4
    counted.append(number)


def main() -> None:
    path, columns, threads, seconds = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    asked = session.get_inputs()[0]
    dtype = np.float32 if asked.type == "tensor(float)" else np.int32
    feed: dict[str, Any] = {asked.name: np.ones((1, columns), dtype)}
    for _ in range(20):
        session.run(None, feed)
    counted: list[int] = []
    began, used = time.perf_counter(), time.process_time()
    workers = [
        threading.Thread(target=calls, args=(session, feed, began + seconds, counted))
        for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took, used = time.perf_counter() - began, time.process_time() - used
    print(sum(counted) / took, 1e6 * used / sum(counted))


if __name__ == "__main__":
    main()
