from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from server.pipeline.packing import is_worth_packing, pack
from server.sandbox.launch import Sandbox
from server.sandbox.levels import Level
from server.sandbox.model_process import ModelProcess

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024**2
GIB = 1024**3
LARGE = 20 * MIB


@pytest.mark.parametrize(
    ("kind", "device", "size", "free", "expected"),
    [
        ("onnx", "cpu", 16 * MIB, 2 * GIB, True),
        ("onnx", "cpu", 16 * MIB - 1, 2 * GIB, False),
        ("onnx", "cuda", LARGE, 2 * GIB, False),
        ("torchscript", "cpu", LARGE, 2 * GIB, False),
        ("onnx", "cpu", 100 * MIB, GIB + 300 * MIB, True),
        ("onnx", "cpu", 100 * MIB, GIB + 299 * MIB, False),
    ],
)
def test_a_large_onnx_model_of_the_cpu_is_packed_where_it_fits(
    kind: str, device: str, size: int, free: int, *, expected: bool
) -> None:
    assert is_worth_packing(kind, device, size, free) is expected


class Packing:
    """A proven model of 20 MiB, packed by a process that does what a shell script says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.model = folder / "models" / "r1"
        self.packed = self.model / "packed"
        self.file = self.model / "model.onnx"
        self.model.mkdir(parents=True)
        with self.file.open("wb") as file:
            file.truncate(LARGE)

    async def bytes(self, script: str, seconds: float = 30.0) -> int:
        program = self._folder / "python"
        program.write_text(f"#!/bin/sh\ncd {self.packed}\n{script}\n")
        program.chmod(0o700)
        spec: dict[str, Any] = {
            "run_id": "r1",
            "kind": "onnx",
            "device": "cpu",
            "path": str(self.file),
        }
        process = ModelProcess(
            command="prove",
            python=program,
            environment=self._folder,
            tree=self._folder,
            folder=self.model,
            spec=self._folder / "spec" / "spec.json",
        )
        bare = Sandbox(level=Level.LIMITS)
        return await pack(bare, process, spec, {"device": "cpu"}, seconds)


@pytest.fixture
def packing(tmp_path: Path) -> Packing:
    return Packing(tmp_path)


async def test_what_was_packed_is_counted(packing: Packing) -> None:
    said = """echo noise; echo '{"event": "packed", "bytes": 7}'"""

    assert await packing.bytes(f"echo weights > weights.bin; {said}") == 7
    assert (packing.packed / "weights.bin").read_text() == "weights\n"


@pytest.mark.parametrize(
    "script",
    [
        "echo half > weights.bin; exit 1",
        "echo half > weights.bin; kill -9 $$",
        """echo half > weights.bin; echo '{"event": "packed", "bytes": 7}'; exit 1""",
        """echo half > weights.bin; echo '{"event": "packed", "bytes": "many"}'""",
        """echo half > weights.bin; echo '{"event": "packed"}'""",
    ],
)
async def test_a_packing_that_fails_leaves_the_model_alone(packing: Packing, script: str) -> None:
    assert await packing.bytes(script) == 0
    assert not packing.packed.exists()
    assert (packing.model / "model.onnx").stat().st_size == LARGE


async def test_a_model_with_its_weights_beside_it_is_left_as_it_is(packing: Packing) -> None:
    packing.file = packing.model / "bundle" / "model.onnx"
    packing.file.parent.mkdir()
    (packing.model / "model.onnx").rename(packing.file)

    assert await packing.bytes("""echo '{"event": "packed", "bytes": 7}'""") == 0
    assert not packing.packed.exists()


async def test_a_packing_that_takes_too_long_is_given_up(packing: Packing) -> None:
    assert await packing.bytes("echo half > weights.bin; sleep 60", seconds=0.3) == 0
    assert not packing.packed.exists()


async def test_what_an_upload_calls_packed_is_not_touched(packing: Packing) -> None:
    packing.packed.mkdir()
    (packing.packed / "mine").write_text("mine")

    assert await packing.bytes("""echo '{"event": "packed", "bytes": 7}'""") == 0
    assert (packing.packed / "mine").read_text() == "mine"
