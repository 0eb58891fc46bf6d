"""A pickle of an old scikit-learn is served by that one, on a Python that has wheels for it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest

from server.environments.build import Environments
from server.environments.fitting import fit
from server.environments.plan import plan
from server.settings import Settings
from tests.support.predictions import assert_predicts
from tests.support.pythons import older_python
from tests.support.service import Caller, Service
from tests.support.wheels import wheel_links

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.environments import ModelEnvironments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VERSION = "1.0.2"
MAKE = """
import json, pickle, sys
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
values, labels = load_iris(return_X_y=True)
model = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=3))
model.fit(values, labels)
with open(sys.argv[1], "wb") as file:
    pickle.dump(model, file)
rows = values[::40]
print(json.dumps([rows.tolist(), model.predict(rows).tolist(), model.predict_proba(rows).tolist()]))
"""


@pytest.fixture
def python() -> str:
    return older_python("3.10", "3.9")


async def trained(python: str, environments: ModelEnvironments, path: Path) -> list[list[float]]:
    """Train with the old scikit-learn itself; return rows and what it answers to them."""
    links = tuple(part for part in wheel_links().split(",") if part)
    builder = Environments(Settings(wheel_links=links, pythons=(python,)), environments.folder)
    made_with = {"scikit-learn": VERSION}
    lock = await fit(builder, partial(plan, "sklearn", "pickle", None, "cpu", made_with, ()))
    environment = await builder.build(lock, lambda _code, _params: None)
    await builder.close()
    command = [environment.python, "-I", "-c", MAKE, path]
    told = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    return list(json.loads(told.stdout))


async def test_an_old_pickle_answers_what_its_own_scikit_learn_answers(
    python: str, environments: ModelEnvironments, data_dir: Path, tmp_path: Path
) -> None:
    rows, labels, probabilities = await trained(python, environments, tmp_path / "model.pkl")
    settings = {"PERSEPHONE_PYTHONS": python}
    async with Service(data_dir, settings) as service, Caller(service.url) as caller:
        _, status = await caller.ship((tmp_path / "model.pkl").read_bytes(), name="model.pkl")
        told = {"predict": labels, "predict_proba": probabilities}
        await assert_predicts(caller, status, {"input": rows}, told)


async def test_without_such_a_python_the_version_is_named(
    python: str, environments: ModelEnvironments, data_dir: Path, tmp_path: Path
) -> None:
    await trained(python, environments, tmp_path / "model.pkl")
    async with Service(data_dir) as service, Caller(service.url) as caller:
        run = await caller.upload((tmp_path / "model.pkl").read_bytes())
        status = await caller.prepare(run)

    (failed,) = [step for step in status["steps"] if step["status"] == "Failed"]
    assert (failed["name"], failed["code"]) == ("environment", "sklearn_version_unavailable")
    assert VERSION in failed["message"]
    assert "PERSEPHONE_PYTHONS" in failed["message"]
