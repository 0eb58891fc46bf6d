"""Unmodified public clients of the protocol, at a deployment's own address and through the gateway."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio

from tests.support.client_environments import PROGRAMS, run_client
from tests.support.clients.exact import pack
from tests.support.onnx_echoes import echo
from tests.support.service import running
from tests.support.tensors import DATATYPES, FLOATS, INTEGERS, NUMPY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.environments import ModelEnvironments

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
WINES = json.loads((ROOT / "examples" / "wine_rows.json").read_text())["rows"][:10]
ROWS = [row["values"] for row in WINES]
TEXTS = ["", "plain", 'quo"te\\', "Привет, 世界", "a\0b\n", "long " * 100]
WAYS = [
    f"{there} {back}"
    for there in ("binary", "json", "mixed")
    for back in ("binary", "json", "mixed", "unsaid")
]


class Served(NamedTuple):
    """The service's address, and the runIds and own addresses of its models."""

    gateway: str
    models: dict[str, str]
    addresses: dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    environments: ModelEnvironments, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    await asyncio.to_thread(environments.python, "onnx")
    data_dir = environments.lend(tmp_path_factory.mktemp("clients") / "data")
    files = {
        "echo": echo(*(datatype for datatype in DATATYPES if datatype != "BF16")),
        "brain": echo("BF16", "FP32", "BOOL"),
        "wine": (ROOT / "examples" / "wine.onnx").read_bytes(),
    }
    models, addresses = {}, {}
    async with running(data_dir) as (_service, caller):
        for name, content in files.items():
            models[name], deployed = await caller.ship(content)
            addresses[name] = deployed["endpoint"]
        yield Served(deployed["gateway"], models, addresses)


# ── what is sent and what has to come back


def table(datatype: str, *, finite: bool = True) -> Any:
    """Two rows of three: the extremes of a datatype and what lies between."""
    dtype = NUMPY[datatype]
    if datatype == "BOOL":
        values: list[Any] = [True, False, True, True, False, False]
    elif datatype in INTEGERS:
        limits = np.iinfo(dtype)
        values = [limits.min, limits.max, 0, 1, limits.max - 1, limits.min + 1]
    elif datatype in FLOATS:
        limits = ml_dtypes.finfo(dtype)
        odd = [np.nan, np.inf, -np.inf] if not finite else [0.1, 1.0, -2.5]
        values = [limits.max, limits.min, limits.smallest_subnormal, *odd]
    else:
        values = [text.encode() for text in TEXTS]
    array = np.empty(6, dtype=dtype)
    array[:] = values
    return array.reshape(2, 3)


def arrays_of(datatypes: list[str], *, rows: int = 2, finite: bool = True) -> dict[str, Any]:
    arrays = {}
    for datatype in datatypes:
        whole = table(datatype, finite=finite)
        arrays[datatype.lower()] = whole[:rows]
        arrays[f"{datatype.lower()}_one"] = whole[1, 2:].reshape(())
    return arrays


def tensors_of(client: str) -> dict[str, Any]:
    """What a client sends to have it echoed: by kind, the model, the arrays and the ways."""
    every = [datatype for datatype in DATATYPES if datatype != "BF16"]
    kinds: dict[str, tuple[str, dict[str, Any], list[str]]] = {
        "full": ("echo", arrays_of(every), WAYS),
        "empty": ("echo", arrays_of(every, rows=0), WAYS),
        "odd": ("echo", arrays_of(every, finite=False), ["binary binary"]),
    }
    if client == "tritonclient":
        # The other one does not know this type.
        brains = ["BF16", "FP32", "BOOL"]
        kinds["full brain"] = ("brain", arrays_of(brains), WAYS)
        kinds["odd brain"] = ("brain", arrays_of(brains, finite=False), ["binary unsaid"])
    return {
        kind: {
            "model": model,
            "arrays": {name: pack(array) for name, array in arrays.items()},
            "ways": ways,
        }
        for kind, (model, arrays, ways) in kinds.items()
    }


def labels(*rows: int) -> dict[str, Any]:
    return {"label": pack(np.array([WINES[row]["label"] for row in rows], dtype=np.int64))}


TEN, MANY = labels(*range(10)), labels(*[*range(10)] * 9)
AT_ONCE = [[str(place), WINES[place % 10]["label"]] for place in range(40)]


# ── running the clients


class Found:
    """What one client printed after it had talked to one address."""

    def __init__(self, served: Served, printed: dict[str, Any], *, is_own: bool) -> None:
        self.served = served
        self.is_own = is_own
        self._printed = printed

    def __getitem__(self, topic: str) -> Any:
        found = self._printed[topic]
        if isinstance(found, dict) and "failed" in found:
            pytest.fail(found["failed"])
        return found


async def talked(client: str, program: str, served: Served, address: str) -> Found:
    """Let a client talk to every model: at the gateway to all of them, else to each on its own."""
    tensors = tensors_of(client)
    is_own = address == "own"
    printed: dict[str, Any] = {"echoes": {}}
    echoing = sorted({one["model"] for one in tensors.values()})
    for name in (*echoing, "wine") if is_own else ("wine",):
        url = served.addresses[name] if is_own else served.gateway
        if client == "tritonclient":
            url = url.removeprefix("http://")
        here = {kind: one for kind, one in tensors.items() if not is_own or one["model"] == name}
        given = {"url": url, "is_own": is_own, "models": served.models, "wine": ROWS}
        given["tensors"] = here
        given["only echoes"] = name != "wine"
        raw = await asyncio.to_thread(
            run_client, client, [PROGRAMS / program], given=json.dumps(given)
        )
        answers = json.loads(raw)
        echoes = {**printed["echoes"], **answers.pop("echoes")}
        printed = {**printed, **answers, "echoes": echoes}
    return Found(served, printed, is_own=is_own)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["own", "gateway"])
async def triton(served: Served, request: pytest.FixtureRequest) -> Found:
    return await talked("tritonclient", "triton_client.py", served, request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["own", "gateway"])
async def kserve(served: Served, request: pytest.FixtureRequest) -> Found:
    return await talked("kserve", "kserve_client.py", served, request.param)


def assert_echoed(found: Found, client: str) -> None:
    echoes = found["echoes"]
    for kind, sent in tensors_of(client).items():
        wanted = {f"{name}_out": array for name, array in sent["arrays"].items()}
        for way in sent["ways"]:
            assert echoes[f"{kind}: {way}"] == wanted, (kind, way)


INPUT_UNKNOWN = 'The model has no input "wine". Its inputs are: input. Correct the name.'
DATATYPE_DIFFERS = 'Input "input": expected type FP32, got INT64. Correct datatype.'


# ── tritonclient


def test_tritonclient_gets_back_every_datatype_in_every_way(triton: Found) -> None:
    assert_echoed(triton, "tritonclient")


def test_tritonclient_reads_what_server_and_model_say_of_themselves(triton: Found) -> None:
    described = triton["described"]
    wine = triton.served.models["wine"]
    assert [described[name] for name in ("live", "ready", "model ready")] == [True] * 3
    assert described["other model ready"] is False
    assert described["server"]["name"] == "persephone"
    if triton.is_own:
        assert "binary_tensor_data" in described["server"]["extensions"]
    model = described["model"]
    assert (model["name"], model["versions"]) == (wine, ["1"])
    assert model["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 13]}]


# The gateway has neither.
@pytest.mark.parametrize("triton", ["own"], indirect=True)
def test_tritonclient_reads_versions_and_statistics_at_the_own_address(triton: Found) -> None:
    own = triton["own address"]
    assert own["version"]["versions"] == ["1"]
    assert (own["version ready"], own["version 9 ready"]) == (True, False)
    assert own["by version"] == labels(0, 1, 2)
    (model,) = own["statistics"]["model_stats"]
    assert (model["name"], model["version"]) == (triton.served.models["wine"], "1")
    assert model["inference_stats"]["success"]["count"] >= 2
    assert model["inference_count"] >= 6
    assert own["all statistics"] == own["statistics"]


def test_tritonclient_s_request_id_and_requested_output_are_heeded(triton: Found) -> None:
    named = triton["asked"]["named"]
    assert named["id"] == "call-7 ü"
    (output,) = named["outputs"]
    assert (output["name"], output["shape"]) == ("probabilities", [2, 3])


def test_tritonclient_s_classification_names_the_likeliest_classes_first(triton: Found) -> None:
    for way in ("binary", "json"):
        for count, width in ((1, 1), (2, 2), (9, 3)):
            found = triton["asked"]["classes"][f"{count} {way}"]
            assert (found["dtype"], found["shape"]) == ("text", [2, width])
            said = [bytes.fromhex(item).decode().split(":") for item in found["data"]]
            values = np.array([float(value) for value, _place in said]).reshape(2, width)
            assert (np.diff(values, axis=1) <= 0).all()
            firsts = [int(place) for _value, place in said[::width]]
            assert firsts == [WINES[0]["label"], WINES[1]["label"]]


def test_tritonclient_packs_requests_and_unpacks_answers(triton: Found) -> None:
    packings = triton["packings"]
    assert len(packings) == 9
    for way, answer in packings.items():
        back = way.split()[1]
        came = [] if back == "None" else [back]
        assert answer["label"] == MANY["label"], way
        assert answer["came"] == came, way


def test_tritonclient_s_exception_carries_the_message_and_the_status(triton: Found) -> None:
    refused = triton["refusals"]
    assert refused["input"] == {"status": "400", "message": INPUT_UNKNOWN}
    assert refused["datatype"] == {"status": "400", "message": DATATYPE_DIFFERS}
    assert refused["after all that"] == labels(0)
    parts = {
        "shape": ("400", "[1, 12]"),
        "output": ("400", '"other"'),
        "classes": ("400", "no classes to choose from"),
        "shared memory": ("400", "shared memory"),
        "config": ("404", ""),
        "repository": ("404", ""),
    }
    for name, (status, part) in parts.items():
        assert refused[name]["status"] == status, name
        assert part in refused[name]["message"]
        assert "exception occurred in the client" not in refused[name]["message"]
    assert re.search("[а-я]", refused["russian"]["message"])


def test_tritonclient_s_requests_at_once_get_their_own_answers(triton: Found) -> None:
    assert triton["at once"] == AT_ONCE


def test_tritonclient_for_asyncio_gets_the_same(triton: Found) -> None:
    found = triton["asynchronous"]
    wine = triton.served.models["wine"]
    assert found["described"] == [True, True, True, False, "persephone", wine]
    assert found["at once"] == [row["label"] for row in WINES]
    assert found["packings"] == {"None": MANY, "gzip": MANY, "deflate": MANY}
    assert found["json"] == TEN
    assert found["refused"] == {"status": "400", "message": INPUT_UNKNOWN}


# ── kserve


def test_kserve_gets_back_every_datatype_in_every_way(kserve: Found) -> None:
    assert_echoed(kserve, "kserve")


def test_kserve_sees_what_is_ready(kserve: Found) -> None:
    described = kserve["described"]
    assert [described[name] for name in ("live", "ready", "model ready")] == [True] * 3
    assert described["other model ready"] is False


def test_kserve_gets_answers_as_it_asks_for_them(kserve: Found) -> None:
    asked = kserve["asked"]
    assert (asked["id"], asked["model"]) == ("call-7 ü", kserve.served.models["wine"])
    assert asked["json"] == asked["binary"] == MANY
    assert asked["dictionary"] == labels(0)


def test_kserve_s_error_carries_the_message_and_the_status(kserve: Found) -> None:
    refused = kserve["refusals"]
    assert {name: one["status"] for name, one in refused.items()} == dict.fromkeys(refused, 400)
    assert refused["input"]["message"].startswith(INPUT_UNKNOWN)
    assert refused["datatype"]["message"].startswith(DATATYPE_DIFFERS)


def test_kserve_s_requests_at_once_get_their_own_answers(kserve: Found) -> None:
    assert kserve["at once"] == AT_ONCE


# ── what the pages promise


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("client", ["tritonclient", "kserve"])
async def test_the_example_of_a_client_in_the_documentation_works(
    client: str, served: Served
) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    (example,) = re.findall(rf"```python\n([^`]*\b{client}\b[^`]*)```", page)
    here = urlsplit(served.gateway)
    assert "127.0.0.1:8000/prod" in example
    example = example.replace("127.0.0.1:8000/prod", f"{here.netloc}{here.path}")
    example = re.sub(r"[0-9a-f]{32}", served.models["wine"], example)
    printed = await asyncio.to_thread(run_client, client, ["-c", example])
    assert printed.startswith("[2]")
