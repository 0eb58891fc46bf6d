"""What schemathesis is told about this service: models to upload, patience, and which 5xx are fine.

Loaded by ``tests/support/schemathesis.toml``. ``FUZZ_TALLY`` names the file that gets the count of
answers by operation and status.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import time
import zlib
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.failures import AcceptedNegativeData, ServerError
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import TestPhase
from schemathesis.transport.serialization import Binary

from server.messages import Messages
from tests.support import onnx_files, pickle_files

if TYPE_CHECKING:
    from schemathesis import Case, CheckContext, HookContext, Response
    from schemathesis.core.failures import Failure

ROOT = Path(__file__).parents[2]
RUN_ID = re.compile(r"[0-9a-f]{32}")
KEPT_RUNS = 12
MOST_REPLICAS = 2
PATIENCE_SECONDS = 30.0

SOUND = [onnx_files.shifted(1), onnx_files.shifted(2), onnx_files.linear()]
STRANGE = [
    onnx_files.never_finite(),
    onnx_files.zipmap(),
    onnx_files.with_external_data("weights"),
    onnx_files.linear()[:-20],
    pickle_files.zipped({"model.onnx": onnx_files.shifted(3), "README": b"text"}),
    pickle_files.zipped({"model.onnx": b"", "other.onnx": b"\x08\x01"}),
    pickle_files.zipped({"model.onnx": onnx_files.shifted(4)})[:-8],
    pickle_files.torch_saved(b"\x80\x04."),
    b"cos\nsystem\n(S'true'\ntR.",
]
PREDICTION = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}

# A service may be busy or full, and a model may fail: the code says which.
EXPLAINED = {503, 504, 507}
OF_THE_MODEL = {"model_raised", "output_missing", "output_datatype_unsupported"}

CODES = Messages().codes("en")

tally: Counter[str] = Counter()
uploaded: deque[str] = deque()


@schemathesis.hook
def before_load_schema(_context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Take away what stands for unforeseen answers: every status has to be foreseen."""
    for item in raw_schema["paths"].values():
        for operation in item.values():
            operation["responses"].pop("default", None)


@schemathesis.hook
def before_call(_context: HookContext, case: Case, _kwargs: dict[str, Any]) -> None:
    """Do what a sensible caller does: send models, wait for what is under way, ask what fits."""
    name = operation_of(case)
    name_known_run(case, name)
    if "true" in str(case.query.get("follow")).lower():
        # It would never end.
        case.query["follow"] = "false"
    if not is_well_meant(case):
        return
    if "replicas" in case.query:
        # Each is a process.
        case.query["replicas"] = min(int(case.query["replicas"]), MOST_REPLICAS)
    if name == "upload":
        send_model(case)
    elif name == "createToken" and isinstance(case.body, dict):
        # What can be printed is no pattern that can be written down.
        shown = "".join(filter(str.isprintable, str(case.body.get("name")))).strip()
        case.body = {**case.body, "name": shown or "walk"}
    elif name == "startDeployment":
        wait_for(f"/prepare/status?runId={case.query.get('runId')}")
    elif "name" in case.path_parameters:
        run_id, environment = case.path_parameters["name"], case.path_parameters["env"]
        wait_for(f"/deploy/status?runId={run_id}&env={environment}")
        if case.media_type == "application/json" and often(case):
            case.body = PREDICTION
            case.headers.pop("Inference-Header-Content-Length", None)


def operation_of(case: Case) -> str:
    return str(case.operation.definition.raw["operationId"])


def is_well_meant(case: Case, place: ParameterLocation | None = None) -> bool:
    """Whether a case, or one part of it, is as the document wants it."""
    if case.meta is None:
        return True
    part = None if place is None else case.meta.components.get(place)
    return (part or case.meta.generation).mode is GenerationMode.POSITIVE


def name_known_run(case: Case, operation: str) -> None:
    """Ask of the run that is there, mostly, unless the case follows an upload along links."""
    # Elsewhere it stays deployed.
    if operation == "stopDeployment" and case.query.get("env") != "stage":
        return
    follows = case.meta is not None and case.meta.phase.name is TestPhase.STATEFUL
    for place, name in ((ParameterLocation.QUERY, "runId"), (ParameterLocation.PATH, "name")):
        values = case.query if place is ParameterLocation.QUERY else case.path_parameters
        is_linked = follows and values.get(name) in uploaded
        if name in values and is_well_meant(case, place) and not is_linked and often(case):
            values[name] = os.environ["FUZZ_RUN"]
            if "version" in values:
                values["version"] = newest_version(values)


def newest_version(values: dict[str, Any]) -> str:
    path = f"/deploy/status?runId={values['name']}&env={values['env']}"
    return str(own("GET", path).json().get("version", values["version"]))


def often(case: Case) -> bool:
    """Whether this is one of the three in four cases that get what fits; the same in a repetition."""
    made = (case.query, case.path_parameters, case.body)
    return zlib.crc32(repr(made).encode()) % 4 > 0


def send_model(case: Case) -> None:
    """Put a model into the form in most cases; what schemathesis made of the file picks it."""
    if not isinstance(case.body, dict) or "file" not in case.body:
        return
    # Parts that nobody asked for are tried elsewhere; most of them only spoil the form.
    case.body = {name: case.body[name] for name in ("model", "file") if name in case.body}
    chosen = zlib.crc32(repr(case.body["file"]).encode())
    if chosen % 8:
        models = [*SOUND * len(STRANGE), *STRANGE]
        case.body["file"] = Binary(models[chosen // 8 % len(models)])
    while len(uploaded) > KEPT_RUNS:
        own("DELETE", f"/runs/{uploaded.popleft()}")


def wait_for(path: str) -> None:
    """Poll until it is under way no more; whatever else it is answered is fine."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while RUN_ID.search(path) and time.monotonic() < deadline:
        answer = own("GET", path)
        if answer.status_code != 200 or answer.json()["phase"] != "Running":
            return
        time.sleep(0.1)


def own(method: str, path: str) -> requests.Response:
    cookies = {"persephone_session": os.environ["FUZZ_SESSION"]}
    url = os.environ["FUZZ_URL"] + path
    return requests.request(method, url, cookies=cookies, timeout=PATIENCE_SECONDS)


@schemathesis.hook
def after_call(_context: HookContext, case: Case, response: Response) -> None:
    """Count the answers, and remember what was uploaded."""
    tally[f"{operation_of(case)} {response.status_code}"] += 1
    if operation_of(case) == "upload" and response.status_code == 200:
        uploaded.append(response.json()["runId"])


@schemathesis.hook
def filter_failure(_context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
    """Keep a failure, unless its 5xx has a cause with a name, or its body became a good one here."""
    if isinstance(failure, AcceptedNegativeData):
        return not is_model(case)
    return not (isinstance(failure, ServerError) and is_explained(case, response))


def is_model(case: Case) -> bool:
    file = case.body.get("file") if isinstance(case.body, dict) else None
    return isinstance(file, Binary) and file.data in {*SOUND, *STRANGE}


def is_explained(case: Case, response: Response) -> bool:
    code = response.json().get("code")
    is_prediction = operation_of(case).startswith("infer")
    return (response.status_code in EXPLAINED and code in CODES) or (
        is_prediction and response.status_code == 500 and code in OF_THE_MODEL
    )


@schemathesis.check
def errors_explain_themselves(_ctx: CheckContext, response: Response, _case: Case) -> None:
    """Every error has a known code and a sentence that tells nothing of the machine."""
    if response.status_code < 400 or response.request.method == "HEAD":
        return
    body = response.json()
    text = body["message"]
    assert body["code"] in CODES, body
    assert 0 < len(text) <= 600, body
    assert not re.search(r"Traceback|(?<!model)\.py\b", text), body
    assert str(ROOT) not in text, body


def write_tally() -> None:
    target = os.environ.get("FUZZ_TALLY")
    if target:
        Path(target).write_text(json.dumps(tally, indent=1, sort_keys=True), encoding="utf-8")


atexit.register(write_tally)
