"""What the runtime of bundles promises: code of one's own answers, and its mistakes have names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.api.openapi import document
from server.environments.lock import lock_of
from server.pipeline.passport import read_passport, sealed
from server.settings import Settings
from tests.support.proofs import Proof, prove_many, specification

ROWS = {"name": "rows", "datatype": "FP32", "shape": [-1, 2]}
SCORE = {"name": "score", "datatype": "FP32", "shape": [-1]}
DECLARED = {"inputs": [ROWS], "outputs": [SCORE]}
ASKED = {"rows": [[1.0, 2.0], [3.0, 4.0]]}

CLASS = """
import numpy
class Model:
    def load(self, path, device):
        {load}
    def predict(self, inputs):
        rows = inputs["rows"]
        {predict}
"""


def model(predict: str = "return {'score': rows.sum(1)}", load: str = "pass") -> str:
    return CLASS.format(predict=predict, load=load)


WORKING: dict[str, dict[str, str]] = {
    "plain": {"model.py": model()},
    "own_files": {
        "model.py": dedent("""
            from parts.own_helper import total
            class Model:
                def load(self, path, device):
                    with open(f"{path}/parts/factor.txt") as file:
                        self.factor = float(file.read()) * (device == "cpu")
                def predict(self, inputs):
                    return {"score": total(inputs["rows"]) * self.factor}
        """),
        "parts/own_helper.py": "def total(rows):\n    return rows.sum(1)\n",
        "parts/factor.txt": "1.0",
    },
    "lists": {"model.py": model("return {'score': [float(sum(row)) for row in rows]}")},
    "whole_numbers": {"model.py": model("return {'score': [int(sum(row)) for row in rows]}")},
    "changes_its_input": {"model.py": model("rows += 0; return {'score': rows.sum(1)}")},
    "prints": {"model.py": model(load="print('hello')")},
}
BROKEN: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "syntax": (
        "class Model:\n    def load(self path):\n",
        "bundle_code_invalid",
        {},
        "(model.py, line 2)",
    ),
    "module": (
        "import os\nimport no_such_module.x\n",
        "bundle_module_missing",
        {"name": "no_such_module"},
        "(model.py, line 2)",
    ),
    "import": (
        "x = 1\nraise ValueError('see /etc/passwd')\n",
        "bundle_import_raised",
        {},
        "ValueError: see … (model.py, line 2)",
    ),
    "exits": ("raise SystemExit", "bundle_import_raised", {}, "SystemExit (model.py, line 1)"),
    "no_class": ("Model = 1", "bundle_class_missing", {"name": "Model"}, ""),
    "no_method": (
        "class Model:\n    def load(self, path, device): pass\n",
        "bundle_method_missing",
        {"name": "Model", "method": "predict"},
        "",
    ),
    "load": (
        model(load="raise KeyError('weight')"),
        "bundle_load_raised",
        {},
        "KeyError: 'weight' (model.py, line 5)",
    ),
    "load_of_a_library": (
        model(load="numpy.load(path + '/none.npy')"),
        "bundle_load_raised",
        {},
        "(model.py, line 5)",
    ),
    "module_in_load": (
        model(load="import no_such_module"),
        "bundle_module_missing",
        {"name": "no_such_module"},
        "(model.py, line 5)",
    ),
    "module_in_predict": (
        model("import no_such_module"),
        "bundle_module_missing",
        {"name": "no_such_module"},
        "(model.py, line 8)",
    ),
    "memory_of_torch": (
        model(load="raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')"),
        "model_memory_exceeded",
        {},
        "DefaultCPUAllocator",
    ),
    "no_text": (
        "class Odd(Exception):\n    def __str__(self): raise SystemExit\nraise Odd\n",
        "bundle_import_raised",
        {},
        "Odd (model.py, line 3)",
    ),
    "long": (
        model(load="raise KeyError('x' * 5000)"),
        "bundle_load_raised",
        {},
        "x (model.py, line 5)",
    ),
    "predict": (
        model("raise RuntimeError('first' + chr(10) + 'second')"),
        "bundle_predict_raised",
        {},
        "RuntimeError: first second (model.py, line 8)",
    ),
    "no_mapping": (
        model("return rows.sum(1)"),
        "bundle_outputs_not_mapping",
        {"found": "ndarray"},
        "",
    ),
    "undeclared": (
        model("return {'score': rows.sum(1), 'more': 1}"),
        "bundle_output_undeclared",
        {"name": "more", "declared": "score"},
        "",
    ),
    "missing": (model("return {}"), "bundle_output_missing", {"name": "score"}, ""),
    "datatype": (
        model("return {'score': rows.sum(1).astype('float64')}"),
        "bundle_output_datatype",
        {"name": "score", "expected": "FP32", "found": "FP64"},
        "",
    ),
    "text": (
        model("return {'score': ['a' for _ in rows]}"),
        "bundle_output_datatype",
        {"name": "score", "expected": "FP32", "found": "BYTES"},
        "",
    ),
    "objects": (
        model("return {'score': numpy.array([1j for _ in rows])}"),
        "bundle_output_datatype",
        {"name": "score", "expected": "FP32", "found": "complex128"},
        "",
    ),
    "shape": (
        model("return {'score': rows}"),
        "bundle_output_shape",
        {"name": "score", "expected": "[-1]", "found": "[1, 2]"},
        "",
    ),
    "uneven": (
        model("return {'score': [[1.0], [1.0, 2.0]]}"),
        "bundle_output_shape",
        {"name": "score", "expected": "[-1]", "found": "[…]"},
        "",
    ),
    "gpu": (model(), "silent_cpu_fallback", {"framework": "python"}, ""),
}
TEXT = {
    "inputs": [{"name": "words", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "upper", "datatype": "BYTES", "shape": [-1]},
        {"name": "count", "datatype": "INT64", "shape": []},
    ],
}
UPPER = """
class Model:
    def load(self, path, device): pass
    def predict(self, inputs):
        words = inputs["words"]
        return {"upper": [word.decode().upper() for word in words], "count": len(words)}
"""


def bundle(folder: Path, files: dict[str, str], declared: dict[str, Any]) -> Path:
    for name, text in files.items():
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "declared.json").write_text(json.dumps(declared))
    return folder / "declared.json"


STRANGE = """
class Model:
    def load(self, path, device): pass
    def predict(self, inputs):
        words = inputs["words"]
        return {"upper": [self for word in words], "count": len(words)}
"""


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Proof]:
    """All in one process of the test's own Python: nothing here needs a package but numpy."""
    folder = tmp_path_factory.mktemp("bundles")
    files = {**WORKING, **{name: {"model.py": text} for name, (text, *_) in BROKEN.items()}}
    jobs = []
    for name, each in files.items():
        path = bundle(folder / name, each, DECLARED)
        device = "cuda" if name == "gpu" else "cpu"
        spec = specification("code", path, device=device)
        jobs.append({"name": name, "spec": spec, "inputs": ASKED})
    spec = specification("code", bundle(folder / "upper", {"model.py": UPPER}, TEXT))
    jobs.append({"name": "upper", "spec": spec, "inputs": {"words": ["a", "ß"]}})
    spec = specification("code", bundle(folder / "strange", {"model.py": STRANGE}, TEXT))
    jobs.append({"name": "strange", "spec": spec})
    return prove_many(Path(sys.executable), jobs, folder)


@pytest.mark.parametrize("name", sorted(WORKING))
def test_a_bundle_answers_what_its_code_says(proofs: dict[str, Proof], name: str) -> None:
    proof = proofs[name]
    assert proof.code == 0, proof.events[-1]
    assert proof.inputs == {"rows": ("FP32", [-1, 2])}
    assert proof.outputs == {"score": ("FP32", [-1])}
    assert proof.answers == {"score": {"datatype": "FP32", "shape": [2], "data": [3.0, 7.0]}}
    assert proof.passport["batching"]["equal"] is True


def strict(schema: Any) -> Any:
    """Return a schema that takes no field without a description of it."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    return {"additionalProperties": False, **made} if "properties" in schema else made


def test_every_field_of_a_real_passport_is_documented(proofs: dict[str, Proof]) -> None:
    schemas = strict(document(Settings(), "en")["components"]["schemas"])
    schema = {"$ref": "#/components/schemas/Passport", "components": {"schemas": schemas}}
    lock = lock_of("numpy==2.4.6\n", "cpu")
    for name in ("plain", "upper"):
        read = {**read_passport(proofs[name].passport), "packed_bytes": 0}
        passport = sealed(read, digest="0" * 64, lock=lock, made_with={"python": "3.11"})
        Draft202012Validator(schema).validate(passport)
        assert list(Draft202012Validator(schema).iter_errors({**passport, "more": 1}))
    assert set(passport) == set(schemas["Passport"]["required"])


def test_texts_and_numbers_by_themselves_are_answered(proofs: dict[str, Proof]) -> None:
    assert proofs["upper"].answers == {
        "upper": {"datatype": "BYTES", "shape": [2], "data": ["A", "SS"]},
        "count": {"datatype": "INT64", "shape": [], "data": 2},
    }


def test_objects_are_no_texts(proofs: dict[str, Proof]) -> None:
    assert proofs["strange"].failure == "bundle_output_datatype"
    assert proofs["strange"].params == {"name": "upper", "expected": "BYTES", "found": "Model"}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_each_mistake_has_a_code_and_its_place(proofs: dict[str, Proof], name: str) -> None:
    _, code, params, evidence = BROKEN[name]
    assert (proofs[name].failure, proofs[name].params) == (code, params)
    assert evidence in proofs[name].evidence
    assert len(proofs[name].evidence) <= 300
