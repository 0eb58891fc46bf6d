"""Short runs of the coverage-guided targets of tests/fuzz; ``TEST_FUZZ`` makes them longer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.fuzzing import FACTOR
from tests.support.needs import lacks

FOLDER = Path(__file__).parents[1] / "fuzz"
SECONDS = max(1, round(4 * FACTOR))

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300 + 2 * SECONDS)]


@pytest.mark.parametrize(
    "target", ["sniffer", "unpacker", "pickle_machine", "unpickler", "tensors"]
)
def test_whatever_the_bytes_nothing_escapes_hangs_or_fails_without_a_name(
    target: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec("atheris") is None:
        lacks("needs atheris, which has no wheel for this Python")
    seeds, found = tmp_path / "seeds", tmp_path / "found"
    seeds.mkdir()
    found.mkdir()
    with zipfile.ZipFile(FOLDER / "seeds" / f"{target}.zip") as kept:
        kept.extractall(seeds)
    program = [sys.executable, "-W", "ignore", FOLDER / f"{target}.py"]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
    subprocess.run([*program, "--seeds", seeds], check=True, env=environment)

    options = [f"-max_total_time={SECONDS}", "-timeout=60", "-rss_limit_mb=0"]
    options += ["-print_final_stats=1", f"-artifact_prefix={tmp_path}/crash-"]
    done = subprocess.run(
        [*program, *options, found, seeds],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )

    crashes = {path.name: path.read_bytes()[:2000] for path in tmp_path.glob("crash-*")}
    assert (done.returncode, crashes) == (0, {}), done.stderr[-3000:]
