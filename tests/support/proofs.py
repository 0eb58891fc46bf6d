"""Proves models inside their model environments, and reads what that said."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"


@dataclass(frozen=True)
class Proof:
    """How proving one model went."""

    code: int
    events: list[dict[str, Any]]
    answers: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, Any] = field(default_factory=dict)
    """Code and parameters, if the inputs were not answered."""

    @property
    def failure(self) -> str:
        assert self.code == 1, self.events[-1]
        assert self.events[-1]["event"] == "failed"
        return str(self.events[-1]["code"])

    @property
    def evidence(self) -> str:
        return str(self.events[-1]["evidence"])

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.events[-1]["params"])

    @property
    def passport(self) -> dict[str, Any]:
        assert self.code == 0, self.events[-1]
        return dict(self.events[-1]["passport"])

    @property
    def inputs(self) -> dict[str, tuple[str, list[int]]]:
        tensors = self.passport["signature"]["inputs"]
        return {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in tensors}

    @property
    def outputs(self) -> dict[str, tuple[str, list[int]]]:
        tensors = self.passport["signature"]["outputs"]
        return {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in tensors}


def specification(kind: str, path: Path, **more: Any) -> dict[str, Any]:
    base = {"run_id": "r1", "names": ["r1"], "kind": kind, "path": str(path), "digest": "0" * 64}
    return {**base, **more}


def environment(folder: Path) -> dict[str, str]:
    """Environment of a child that finds the product and none of the test's own packages."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}


def prove_many(python: Path, jobs: list[dict[str, Any]], folder: Path) -> dict[str, Proof]:
    """Prove many models in one process, which spares most of the time: imports."""
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [python, SUPPORT / "prove_many.py", listed],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        result["name"]: Proof(
            result["code"],
            result["events"],
            result.get("answers", {}),
            result.get("refused", {}),
        )
        for result in results
    }


def make_models(python: Path, kind: str, folder: Path) -> list[dict[str, Any]]:
    """Let the framework make its models; returns a job for each, with inputs where noted."""
    subprocess.run(
        [python, SUPPORT / f"make_{kind}_models.py", folder],
        env=environment(folder),
        check=True,
        timeout=100,
        capture_output=True,
    )
    jobs = []
    for path in sorted(folder.glob("*.bin")):
        job: dict[str, Any] = {"name": path.stem, "spec": specification(kind, path)}
        if path.with_suffix(".json").exists():
            job["inputs"] = json.loads(path.with_suffix(".json").read_text())["inputs"]
        jobs.append(job)
    return jobs


def assert_as_framework(proof: Proof, folder: Path, name: str) -> None:
    """Compare the answers with those that the framework itself gave to the same inputs."""
    expected = json.loads((folder / f"{name}.json").read_text())["outputs"]
    assert proof.code == 0, proof.events[-1]
    assert set(proof.answers) == set(expected)
    for output, values in expected.items():
        answered = proof.answers[output]["data"]
        if proof.answers[output]["datatype"] == "BYTES":
            assert answered == values
        else:
            assert flat(answered) == pytest.approx(flat(values), rel=1e-5, abs=1e-6)


def flat(values: Any) -> list[float]:
    if isinstance(values, list):
        return [number for value in values for number in flat(value)]
    return [values]
