"""Models that bring code: bundles, MLflow's models from code and exported programs, from the upload to predictions."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from tests.support.pickle_files import zipped
from tests.support.predictions import addresses, assert_predicts, request_for
from tests.support.proofs import make_models
from tests.support.service import Caller, Service, passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MANIFEST = b"""
inputs: [{name: rows, datatype: FP32, shape: [-1, 2]}]
outputs: [{name: score, datatype: FP32, shape: [-1]}]
"""
CODE = b"""
import numpy, packaging
from helper import total

class Model:
    def load(self, path, device):
        self.weights = numpy.load(f"{path}/weights/w.npy")
        assert (device, packaging.__version__) == ("cpu", "24.2")

    def predict(self, inputs):
        rows = inputs["rows"]
        if (rows < 0).any():
            raise ValueError("no row may be negative, see /etc/passwd")
        return {"score": total(rows * self.weights)}
"""
CODED = {
    "scorer/python_env.yaml": b"python: 3.8.1",
    "scorer/MLmodel": b"""
flavors:
  python_function: {loader_module: mlflow.pyfunc.loaders.code_model, model_code_path: scorer.py}
signature:
  inputs: '[{"type": "tensor", "name": "rows",
             "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]'
""",
    "scorer/scorer.py": b"""
import mlflow

class Scorer(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        if (model_input["rows"] < 0).any():
            raise ValueError("no row may be negative")
        return model_input["rows"].sum(1)

mlflow.models.set_model(Scorer())
""",
}
PRYING = b"""
import os, socket, subprocess
import numpy

def opened(name):
    with open(name) as file:
        return file.read()

class Model:
    def load(self, path, device):
        self.path = path

    def predict(self, inputs):
        tries = [
            lambda: opened("/etc/passwd"),
            lambda: opened(self.path + "/../../spec.json"),
            lambda: open(self.path + "/new", "w"),
            lambda: os.listdir(self.path + "/../../..")[1],
            lambda: socket.create_connection(("127.0.0.1", PORT), 1),
            lambda: subprocess.run(["/bin/sh", "-c", "true"], check=True),
            lambda: os.fork(),
        ]
        return {"score": numpy.array([float(self.works(each)) for each in tries], "float32")}

    def works(self, each):
        try:
            each()
        except Exception:
            return False
        return True
"""
HOSTILE = b"""
import fcntl, os, select, socket, stat, threading
import numpy

INTERIM = b"HTTP/1.1 100 Continue\\r\\n\\r\\n" * 1000
EVENT = b'{"event": "failed", "code": "internal_error", "a": [' + b"[]," * 30000 + b"0]}\\n"

def flood(descriptor):
    while True:
        try:
            os.write(descriptor, EVENT)
        except BlockingIOError:
            select.select([], [descriptor], [])

def keep_on(connection):
    connection.setblocking(True)
    with connection:
        while True:
            connection.sendall(INTERIM)

def answer(listener):
    while True:
        select.select([listener], [], [])
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        threading.Thread(target=keep_on, args=[connection], daemon=True).start()

def mode_of(descriptor):
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE

def take_over():
    found = {}
    for descriptor in range(256):
        try:
            found[descriptor] = os.fstat(descriptor)
        except OSError:
            pass
    pipes = [each for each in found if stat.S_ISFIFO(found[each].st_mode)]
    # Into the event loop's own pipe it would write nothing but its end.
    own = {found[each].st_ino for each in pipes if mode_of(each) == os.O_RDONLY}
    for descriptor in pipes:
        if mode_of(descriptor) == os.O_WRONLY and found[descriptor].st_ino not in own:
            threading.Thread(target=flood, args=[descriptor], daemon=True).start()
    for descriptor in found:
        if stat.S_ISSOCK(found[descriptor].st_mode):
            listener = socket.socket(fileno=os.dup(descriptor))
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                threading.Thread(target=answer, args=[listener], daemon=True).start()

class Model:
    def load(self, path, device):
        pass

    def predict(self, inputs):
        if (inputs["rows"] < 0).any() and threading.active_count() < 50:
            take_over()
        return {"score": inputs["rows"].sum(1)}
"""
WEIGHTS = (
    b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".ljust(79)
    + b"\n\x00\x00\x80\x3f\x00\x00\x00\x40"
)
# Its own callers get an answer of the model, or are told why there is none.
OF_A_LOST_REPLICA = {
    (200, None),
    (503, "replica_broke_off"),
    (503, "replica_absent"),
    (504, "prediction_timed_out_at_gateway"),
}
BUNDLE = {
    "scorer/persephone.yaml": MANIFEST,
    "scorer/model.py": CODE,
    "scorer/helper.py": b"def total(rows):\n    return rows.sum(1)\n",
    "scorer/weights/w.npy": WEIGHTS,
    "scorer/requirements.txt": b"packaging==24.2\n",
}


@pytest.fixture(scope="module")
def made(environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with programs that torch has exported."""
    folder = tmp_path_factory.mktemp("made")
    make_models(environments.python("torch_export"), "torch_export", folder)
    environments.python("code")
    environments.python("mlflow")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory, made: Path
) -> AsyncIterator[Service]:
    data_dir = environments.lend(tmp_path_factory.mktemp("service") / "data")
    async with Service(data_dir) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def caller(service: Service) -> AsyncIterator[Caller]:
    async with passing(service.url) as one:
        yield one


async def test_a_bundle_answers_and_what_its_code_raises_is_told_with_its_line(
    caller: Caller,
) -> None:
    run_id, status = await caller.ship(zipped(BUNDLE))
    await assert_predicts(caller, status, {"rows": [[1, 2], [3, 4]]}, {"score": [5, 11]})

    for base in addresses(status):
        request = await request_for(caller, base, run_id, {"rows": [[-1.0, 2.0]]})
        code, body = await caller.call("POST", f"{base}/v2/models/{run_id}/infer", json=request)
        assert (code, body["code"]) == (500, "bundle_predict_raised")
        assert "ValueError: no row may be negative, see … (model.py, line 13)" in body["message"]
    await assert_predicts(caller, status, {"rows": [[1, 2]]}, {"score": [5]})


@pytest.mark.parametrize(
    ("files", "step", "code", "said"),
    [
        (
            {"scorer/requirements.txt": b""},
            "load",
            "bundle_module_missing",
            "ModuleNotFoundError: No module named 'packaging' (model.py, line 2)",
        ),
        (
            {"scorer/pyproject.toml": b'[project]\nrequires-python = ">=3.90"'},
            "environment",
            "python_version_unavailable",
            ">=3.90",
        ),
        (
            {"scorer/persephone.yaml": MANIFEST.replace(b"FP32", b"float32")},
            "inspection",
            "bundle_field_invalid",
            "inputs[0].datatype",
        ),
        (
            {
                "scorer/persephone.yaml": MANIFEST.replace(
                    b"score, datatype: FP32", b"y, datatype: FP32"
                )
            },
            "smoke-test",
            "bundle_output_undeclared",
            "score",
        ),
    ],
)
async def test_a_mistake_in_a_bundle_ends_in_the_step_that_found_it(
    caller: Caller, files: dict[str, bytes], step: str, code: str, said: str
) -> None:
    status = await caller.prepare(await caller.upload(zipped({**BUNDLE, **files})))
    [failed] = [each for each in status["steps"] if each["status"] == "Failed"]
    assert (failed["name"], failed["code"]) == (step, code)
    assert said in failed["message"]


async def test_the_code_of_a_bundle_reaches_nothing_but_its_own(
    caller: Caller, service: Service
) -> None:
    other = await caller.prepare(await caller.upload(zipped(BUNDLE)))
    assert other["phase"] == "Succeeded"
    port = service.url.rpartition(":")[2].encode()
    prying = {
        "persephone.yaml": MANIFEST.replace(b"shape: [-1]}", b"shape: [7]}"),
        "model.py": PRYING.replace(b"PORT", port),
    }
    _, status = await caller.ship(zipped(prying))
    await assert_predicts(caller, status, {"rows": [[1.0, 2.0]]}, {"score": [0] * 7})


async def test_a_model_from_code_is_loaded_by_its_mlflow(caller: Caller) -> None:
    run_id, status = await caller.ship(zipped(CODED))
    await assert_predicts(caller, status, {"rows": [[1, 2], [3, 4]]}, {"predict": [3, 7]})

    passport = await caller.get(f"/runs/{run_id}/passport")
    assert passport["made_with"] == {"python": "3.8.1"}
    assert [warning["code"] for warning in passport["warnings"]] == ["python_differs"]
    base = status["endpoint"]
    request = await request_for(caller, base, run_id, {"rows": [[-1.0, 2.0]]})
    code, body = await caller.call("POST", f"{base}/v2/models/{run_id}/infer", json=request)
    assert (code, body["code"]) == (500, "mlflow_predict_raised")
    assert "ValueError: no row may be negative (scorer.py, line 7)" in body["message"]


async def test_a_model_that_takes_its_process_over_disturbs_nobody_else(
    caller: Caller, service: Service
) -> None:
    _, sound = await caller.ship(zipped(BUNDLE))
    files = {"persephone.yaml": MANIFEST, "model.py": HOSTILE}
    run_id, hostile = await caller.ship(zipped(files), "prod")
    request = await request_for(caller, hostile["endpoint"], run_id, {"rows": [[-1.0, 2.0]]})
    infer = f"/v2/models/{run_id}/infer"
    with contextlib.suppress(aiohttp.ClientError):
        await caller.call("POST", hostile["endpoint"] + infer, json=request)

    for _ in range(20):
        await assert_predicts(caller, sound, {"rows": [[1, 2], [3, 4]]}, {"score": [5, 11]})
        status, body = await caller.call("POST", hostile["gateway"] + infer, json=request)
        assert (status, body.get("code")) in OF_A_LOST_REPLICA
        for path in ("/runs", f"/deploy/status?runId={run_id}&env=prod"):
            await caller.get(path)
        async with caller.http.get(f"{caller.url}/runs/{run_id}/logs") as logs:
            assert logs.status == 200
        # As long as it takes to be asked for figures a few times.
        await asyncio.sleep(0.2)
    await caller.post(f"/deploy/stop?runId={run_id}&env=prod")
    assert (await caller.call("DELETE", f"/runs/{run_id}"))[0] == 200
    assert " ERROR " not in service.log()


async def test_an_exported_program_answers_what_torch_answers(caller: Caller, made: Path) -> None:
    noted = json.loads((made / "linear.json").read_text())

    run_id, status = await caller.ship((made / "linear.bin").read_bytes(), name="model.pt2")

    await assert_predicts(caller, status, noted["inputs"], noted["outputs"])
    base = status["endpoint"]
    request = await request_for(caller, base, run_id, {"rows": [[0.0] * 4] * 17})
    code, body = await caller.call("POST", f"{base}/v2/models/{run_id}/infer", json=request)
    assert (code, body["code"]) == (400, "exported_program_guard")
    assert "rows.size()[0] <= 16" in body["message"]
