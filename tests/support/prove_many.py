"""Proves many models in one process; started with a model environment's Python.

Reads jobs from the JSON file named first: ``{"name", "spec", "inputs"}``. Prints one JSON line
per job: the events, the exit code, and what the model answers to ``inputs`` after it was loaded
again with its passport, as a replica does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def arrays(inputs: dict[str, Any], signature: Any) -> dict[str, Any]:
    from server.model_server.runtimes.arrays import NUMPY_NAMES, encode_text

    made = {}
    for spec in signature.inputs:
        given = inputs[spec.name]
        if spec.datatype == "BYTES":
            made[spec.name] = encode_text(np.array(given, dtype=object))
        else:
            made[spec.name] = np.array(given, dtype=NUMPY_NAMES[spec.datatype])
    return made


def answers(spec: dict[str, Any], passport: dict[str, Any], inputs: Any) -> dict[str, Any]:
    from server.model_server.loading import load_model
    from server.model_server.runtimes.arrays import datatype_of
    from server.model_server.spec import ModelSpec

    runtime, loaded = load_model(ModelSpec(**{**spec, "sample": None, "passport": passport}))
    asked = arrays(inputs, loaded.signature)
    everything = runtime.predict(asked)
    first = next(iter(everything))
    narrowed = runtime.predict(asked, [first])
    assert list(narrowed) == [first]
    made = {}
    for name, array in everything.items():
        data = array.tolist()
        if array.dtype == object:
            data = [item.decode() for item in array.ravel()]
        made[name] = {"datatype": datatype_of(array), "shape": array.shape, "data": data}
    return made


def main() -> None:
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from server.model_server import prove
    from server.model_server.failures import BadInputError, ModelFailure
    from server.model_server.spec import ModelSpec

    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        events: list[dict[str, Any]] = []
        spec = {**job["spec"], "names": tuple(job["spec"]["names"])}
        code = prove.run(ModelSpec(**spec), events.append)
        result: dict[str, Any] = {"name": job["name"], "code": code, "events": events}
        if code == 0 and job.get("inputs") is not None:
            try:
                result["answers"] = answers(spec, events[-1]["passport"], job["inputs"])
            except (BadInputError, ModelFailure) as refused:
                result["refused"] = {"code": refused.code, "params": refused.params}
        private.write(json.dumps(result) + "\n")
    private.flush()


if __name__ == "__main__":
    main()
