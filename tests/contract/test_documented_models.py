"""What all kinds of models promise: the example of its page is taken, run, and answers as its framework."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.environments.plan import plan
from server.environments.trees import build_tree
from server.pipeline.report import read_report
from tests.support.environments import ModelEnvironments
from tests.support.proofs import flat, prove_many, specification

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PAGES = Path(__file__).parents[2] / "docs" / "models"
INSPECT = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from server.artifacts.child import main; sys.exit(main(sys.argv[2:]))"
)
NOTE = """
import json
import numpy
with open("answer.json", "w") as file:
    json.dump([numpy.asarray(rows).tolist(), numpy.asarray(answer).tolist()], file)
"""


@dataclass(frozen=True)
class Example:
    """Where the example of a page runs, and what comes out of it."""

    kind: str
    output: str
    needs: str


EXAMPLES = {
    "bundle": Example("code", "score", ""),
    "lightgbm": Example("lightgbm", "predict", "scikit-learn==1.9.1"),
    "mlflow-code": Example("mlflow", "predict", ""),
    "mlflow": Example(
        "xgboost", "predict", "scikit-learn==1.9.1\nmlflow-skinny==3.17.2\npandas==3.1.1"
    ),
    "onnx": Example("onnx", "predict", "onnx==1.23.2"),
    "sklearn": Example("sklearn", "predict_proba", ""),
    "skops": Example("skops", "predict_proba", ""),
    "torch-export": Example("torch_export", "output_0", ""),
    "torchscript": Example("torchscript", "output_0", ""),
    "triton": Example("onnx", "predict", "onnx==1.23.2"),
    "xgboost": Example("xgboost", "predict", "scikit-learn==1.9.1"),
}


def example_of(page: Path) -> str:
    """Return the first program of a page."""
    match = re.search(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def test_every_page_has_an_example_that_is_run() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(EXAMPLES)


@pytest.fixture
def environments(model_python: Callable[[str], Path]) -> ModelEnvironments:
    del model_python
    return ModelEnvironments()


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_of_a_page_answers_as_its_framework(
    environments: ModelEnvironments, tmp_path: Path, name: str
) -> None:
    example = EXAMPLES[name]
    trainer = environments.python_of(plan(example.kind, "any", example.needs, "cpu"))
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    program = example_of(PAGES / f"{name}.md") + NOTE
    assert len(program.splitlines()) < 25
    run([trainer, "-c", program], work)
    (artifact,) = [path for path in work.glob("model.*") if path.is_file()]

    tree = build_tree(tmp_path / "trees", "inspect")
    said = run([sys.executable, "-I", "-S", "-c", INSPECT, tree, artifact, out], work)
    report = read_report(json.loads(said))
    assert report.kind == example.kind
    wanted = plan(
        report.kind, report.format, report.requirements, "cpu", report.made_with, report.packages
    )
    file = out / report.file if (out / report.file).exists() else artifact
    rows, answer = json.loads((work / "answer.json").read_text())
    job = {
        "name": name,
        "spec": specification(report.kind, file),
        "inputs": {"input": rows},
    }
    proof = prove_many(environments.python_of(wanted), [job], tmp_path)[name]

    assert proof.code == 0, proof.events[-1]
    assert proof.passport["kind"] == example.kind
    assert proof.passport["device"] == "cpu"
    assert proof.inputs["input"][1][0] == -1
    assert flat(proof.answers[example.output]["data"]) == pytest.approx(flat(answer), abs=1e-5)


OWN_CLASS = """
import skops.io
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler
class Own(StandardScaler):
    pass
skops.io.dump(Own().fit(load_iris().data), "model.skops")
"""


def test_a_class_of_ones_own_in_a_skops_file_is_refused_by_name(
    environments: ModelEnvironments, tmp_path: Path
) -> None:
    python = environments.python("skops")
    run([python, "-c", OWN_CLASS], tmp_path)
    job = {"name": "own", "spec": specification("skops", tmp_path / "model.skops")}
    proof = prove_many(python, [job], tmp_path)["own"]
    assert (proof.failure, proof.params) == ("unsafe_pickle", {"name": "__main__.Own"})


def test_a_skops_file_that_skops_cannot_read_says_so(
    environments: ModelEnvironments, tmp_path: Path
) -> None:
    python = environments.python("skops")
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", '{"__loader__": "NoSuchNode", "protocol": 2}')
    job = {"name": "unreadable", "spec": specification("skops", path)}
    proof = prove_many(python, [job], tmp_path)["unreadable"]
    assert proof.failure == "skops_not_loadable"
    assert "__module__" in proof.evidence


def run(command: list[Any], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout
