"""schemathesis walks the service's own document, over HTTP, against a real service."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.fuzzing import FACTOR, SECONDS, SEED
from tests.support.onnx_files import shifted
from tests.support.service import Caller, running, without_gpus

if TYPE_CHECKING:
    from tests.support.service import Service

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "support" / "schemathesis.toml"
EXAMPLES = max(1, round(15 * FACTOR))
ENVIRONMENTS = ("dev", "stage", "prod")


async def walk(service: Service, caller: Caller, run_id: str, folder: Path) -> tuple[int, str]:
    """Run schemathesis in the caller's session; return its exit code and what it printed."""
    [session] = [cookie.value for cookie in caller.http.cookie_jar]
    told = {
        "FUZZ_RUN": run_id,
        "FUZZ_SESSION": session,
        "FUZZ_TALLY": str(folder / "tally.json"),
        "FUZZ_URL": service.url,
    }
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        f"--config-file={CONFIG}",
        "--no-color",
        "run",
        f"{service.url}/openapi.json",
        f"--max-examples={EXAMPLES}",
        f"--seed={SEED}",
        cwd=folder,
        env={**os.environ, **told, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, printed.decode(errors="replace")


@pytest.mark.timeout(max(600, 2 * SECONDS))
async def test_the_service_is_what_its_document_says_whatever_is_asked(
    data_dir: Path, tmp_path: Path
) -> None:
    settings = {"PERSEPHONE_OFFER_CPU": "true", **without_gpus(tmp_path)}
    async with running(data_dir, settings) as (service, caller):
        run_id = await caller.upload(shifted(5))
        assert (await caller.prepare(run_id))["phase"] == "Succeeded"
        for environment in ENVIRONMENTS:
            assert (await caller.deploy(run_id, environment))["phase"] == "Succeeded"

        code, printed = await walk(service, caller, run_id, tmp_path)

        assert code == 0, printed[-20_000:]
        assert (await caller.get("/readyz"))["status"] == "ready"
        tally = json.loads((tmp_path / "tally.json").read_text())
        for reached in ("upload 200", "startPreparation 200", "monitorSummary 200", "infer 200"):
            assert tally.get(reached), (reached, tally)
    assert "unexpected error" not in service.log()
    requests = sum(tally.values())
    sys.stdout.write(f"seed {SEED}, {EXAMPLES} examples, {requests} answers: {tally}\n")
