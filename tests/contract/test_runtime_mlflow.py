"""What the runtime of MLflow's models from code promises: MLflow loads them, mistakes have names."""

from __future__ import annotations

import json
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

import pytest

from server.artifacts.inspect import inspect
from tests.support.pickle_files import write, zipped
from tests.support.proofs import Proof, prove_many, specification

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MLMODEL = """
flavors:
  python_function:
    loader_module: mlflow.pyfunc.loaders.code_model
    model_code_path: /somewhere/else/scorer.py
    artifacts: {{weights: {{path: artifacts/w.json, uri: w.json}}}}
is_signature_from_type_hint: {hinted}
saved_input_example_info: {{artifact_path: input.json, type: dataframe}}
signature: {{inputs: '{inputs}', outputs: {outputs}}}
"""
CODE = """
import json, mlflow, numpy, pandas
class Scorer(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        with open(context.artifacts["weights"]) as file:
            self.weights = json.load(file)
    def predict(self, context, model_input, params=None):
{predict}
mlflow.models.set_model(Scorer())
"""
PLAIN = [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 3]}}]
NAMED = [
    {"type": "tensor", "name": "x", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}},
    {"type": "tensor", "name": "y", "tensor-spec": {"dtype": "int64", "shape": [-1]}},
]
FRAME = [
    {"type": "double", "name": "length (cm)", "required": True},
    {"type": "string", "name": "colour", "required": True},
]
TEXTS = [{"type": "string", "required": True}]
ROWS = {"input": [[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]}
CHOOSY = {
    "dataframe_split": {"columns": ["length (cm)", "colour"], "data": [[2.0, "red"], [1.0, "blue"]]}
}
# name: inputs, outputs, predict, asked, answered
WORKING: dict[str, tuple[list[Any], list[Any], str, dict[str, Any], dict[str, Any]]] = {
    "tensor": (
        PLAIN,
        [],
        "return model_input @ numpy.array(self.weights)",
        ROWS,
        {"predict": {"datatype": "FP64", "shape": [2], "data": [14.0, 3.0]}},
    ),
    "tensors": (
        NAMED,
        [],
        "return {'sum': model_input['x'].sum(1), 'y': model_input['y']}",
        {"x": [[1, 2]], "y": [7]},
        {
            "sum": {"datatype": "FP32", "shape": [1], "data": [3.0]},
            "y": {"datatype": "INT64", "shape": [1], "data": [7]},
        },
    ),
    "frame": (
        FRAME,
        [{"type": "double", "name": "price"}],
        "return model_input['length (cm)'] * model_input['colour'].map(len)",
        {"length (cm)": [1.0, 2.0], "colour": ["red", "blue"]},
        {"price": {"datatype": "FP64", "shape": [2], "data": [3.0, 8.0]}},
    ),
    "frames": (
        FRAME,
        [],
        "return model_input[['colour']].assign(number=1)",
        {"length (cm)": [1.0], "colour": ["red"]},
        {
            "colour": {"datatype": "BYTES", "shape": [1], "data": ["red"]},
            "number": {"datatype": "INT64", "shape": [1], "data": [1]},
        },
    ),
    "texts": (
        TEXTS,
        [],
        "return [text.upper() for text in model_input]",
        {"input": ["a", "b"]},
        {"predict": {"datatype": "BYTES", "shape": [2], "data": ["A", "B"]}},
    ),
    "dates": (
        [{"type": "datetime", "name": "day"}, {"type": "long", "name": "n"}],
        [],
        "return model_input['day'].dt.year + model_input['n']",
        {"day": ["2024-02-29", "2025-01-01T10:00:00"], "n": [1, 2]},
        {"predict": {"datatype": "INT64", "shape": [2], "data": [2025, 2027]}},
    ),
    "choosy": (
        FRAME,
        [],
        "return numpy.array([{'red': 2.0, 'blue': 3.0}[name] for name in model_input['colour']])",
        {"length (cm)": [1.0], "colour": ["blue"]},
        {"predict": {"datatype": "FP64", "shape": [1], "data": [3.0]}},
    ),
}
# name: predict (or the whole file), code, parameters, evidence
BROKEN: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "raises": (
        "raise ValueError('see /etc/passwd')",
        "mlflow_predict_raised",
        {},
        "ValueError: see … (scorer.py, line 8)",
    ),
    "ragged": ("return [[1], [1, 2]]", "mlflow_predict_raised", {}, "ValueError"),
    "module": (
        "import no_such_module",
        "module_missing",
        {"module": "no_such_module", "package": "no-such-module"},
        "no_such_module",
    ),
    "no_model": ("FILE: x = 1", "mlflow_load_raised", {}, "set_model"),
    "import": (
        "FILE: import mlflow\nraise KeyError('weight')",
        "mlflow_load_raised",
        {},
        "KeyError: 'weight' (scorer.py, line 2)",
    ),
    "import_module": (
        "FILE: import no_such_module",
        "module_missing",
        {"module": "no_such_module", "package": "no-such-module"},
        "",
    ),
    "exits": ("FILE: raise SystemExit", "mlflow_load_raised", {}, "SystemExit"),
}


def job(folder: Path, name: str, inputs: list[Any], outputs: list[Any], predict: str) -> Any:
    """Inspect a folder of MLflow, as an upload is."""
    code = CODE.format(predict=indent(dedent(predict), " " * 8))
    said = MLMODEL.format(
        inputs=json.dumps(inputs),
        outputs=f"'{json.dumps(outputs)}'" if outputs else "null",
        hinted=str(name == "texts").lower(),
    )
    example = {"serving_input_example.json": json.dumps(CHOOSY)} if name == "choosy" else {}
    files = {
        "MLmodel": said,
        "scorer.py": predict.removeprefix("FILE: ") if "FILE: " in predict else code,
        "artifacts/w.json": "[1.0, 2.0, 3.0]",
        **example,
    }
    out = folder / name
    out.mkdir()
    content = zipped({each: text.encode() for each, text in files.items()})
    report = inspect(write(folder, f"{name}.zip", content), out)
    return {"name": name, "spec": specification(report.kind, out / report.file)}


UNDATED = {
    "no date": "soon",
    "beyond nanoseconds": "9999-12-31",
    "word of numpy": "now",
    "only a year": "2000",
    "no such day": "2001-02-30",
}


@pytest.fixture(scope="module")
def proofs(
    model_python: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Proof]:
    folder = tmp_path_factory.mktemp("coded")
    # The one that hands no model over comes first: MLflow keeps the last one of a process.
    broken = sorted(BROKEN, key=lambda name: name != "no_model")
    jobs = [job(folder, name, PLAIN, [], BROKEN[name][0]) for name in broken]
    jobs += [
        {**job(folder, name, inputs, outputs, predict), "inputs": asked}
        for name, (inputs, outputs, predict, asked, _) in WORKING.items()
    ]
    odd = "return model_input[:, 0] if model_input[0, 0] < 2 else ['x']"
    jobs.append({**job(folder, "odd", PLAIN, [], odd), "inputs": {"input": [[5.0, 1.0, 1.0]]}})
    dates = WORKING["dates"][0]
    for name, day in UNDATED.items():
        dated = {"day": [day], "n": [1]}
        jobs.append({**job(folder, name, dates, [], "return [1]"), "inputs": dated})
    uneven = {"length (cm)": [1.0], "colour": ["red", "red"]}
    jobs.append({**job(folder, "uneven", FRAME, [], "return model_input"), "inputs": uneven})
    return prove_many(model_python("mlflow"), jobs, folder)


@pytest.mark.parametrize("name", sorted(WORKING))
def test_a_model_from_code_is_given_what_its_signature_says(
    proofs: dict[str, Proof], name: str
) -> None:
    assert proofs[name].code == 0, proofs[name].events[-1]
    assert proofs[name].answers == WORKING[name][-1]


def test_inputs_are_those_of_the_signature(proofs: dict[str, Proof]) -> None:
    assert proofs["tensor"].inputs == {"input": ("FP64", [-1, 3])}
    assert proofs["frame"].inputs == {"length (cm)": ("FP64", [-1]), "colour": ("BYTES", [-1])}
    assert proofs["frame"].outputs == {"price": ("FP64", [-1])}
    assert proofs["tensor"].passport["framework"] == "mlflow"


def test_the_example_saved_with_a_model_is_asked_first(proofs: dict[str, Proof]) -> None:
    colours = proofs["choosy"].passport["warmup"]["inputs"][1]
    assert colours["data"] == ["red", "blue"]


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_each_mistake_has_a_code_and_its_place(proofs: dict[str, Proof], name: str) -> None:
    _, code, params, evidence = BROKEN[name]
    assert (proofs[name].failure, proofs[name].params) == (code, params)
    assert evidence in proofs[name].evidence


def test_an_answer_of_another_type_than_was_proven_is_refused(proofs: dict[str, Proof]) -> None:
    assert proofs["odd"].refused == {
        "code": "mlflow_output_differs",
        "params": {"name": "predict", "expected": "FP64", "found": "BYTES"},
    }


@pytest.mark.parametrize("name", sorted(UNDATED))
def test_text_that_is_no_date_is_the_callers_mistake(proofs: dict[str, Proof], name: str) -> None:
    assert proofs[name].refused["code"] == "tensor_value"
    assert proofs[name].refused["params"]["tensor"] == "day"


def test_columns_of_unequal_lengths_are_the_callers_mistake(proofs: dict[str, Proof]) -> None:
    assert proofs["uneven"].refused == {
        "code": "tensor_shape",
        "params": {"tensor": "colour", "expected": "[1]", "found": "[2]"},
    }
