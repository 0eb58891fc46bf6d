"""Archives: what comes out is regular, of our own naming, within the limits and inside the folder."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from tests.fuzz import harness

harness.instrument()

from server.artifacts.code_bundle import root_of, take_bundle
from server.artifacts.failures import InspectionError
from server.artifacts.limits import Limits, Meter
from server.artifacts.recognise import HEAD_BYTES, recognise
from server.artifacts.unpack import SAMPLES, Unpacked, members_of, sort_out, unpack
from tests.corpus.every import every_technique
from tests.support.pickle_files import zipped

LIMITS = Limits(
    entries=200, total_bytes=1 << 20, ratio_floor_bytes=1 << 18, directory_bytes=1 << 16
)
_MEMORY = Path("/dev/shm")
_ROOT = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
_FOLDER = _ROOT / "out"
_CODE = _FOLDER / "code"
_BUNDLE = {
    "a/persephone.yaml": b"inputs: [{name: x, datatype: FP32, shape: [-1]}]\n"
    b"outputs: [{name: y, datatype: FP32, shape: [-1]}]\n",
    "a/model.py": b"class Model: pass\n",
    "a/b/weights.bin": bytes(100),
    "a/sample.json": b"{}",
}
_ARCHIVES = ("zip", "tar", "two things at once", "beside the model")


def target(data: bytes) -> None:
    leading = recognise(data[:HEAD_BYTES])
    kind = "tar" if leading.kind == "gzip" and leading.inner == "tar" else leading.kind
    if kind not in {"zip", "tar"}:
        # Most bytes are no archive: they are read as each kind all the same.
        kind = "zip" if data[:1] == b"P" else "tar"
    else:
        kind = leading.kind or kind
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir()
    try:
        found = unpack(
            members_of(kind, io.BytesIO(data), Meter(len(data), LIMITS)), _FOLDER, LIMITS
        )
        assert len(found.members) <= LIMITS.entries
        assert all(".." not in name.split("/") and name[0] != "/" for name in found.members)
        _take(found)
    except InspectionError as error:
        assert error.code
    kept = [path for path in _ROOT.rglob("*") if path.is_symlink() or not path.is_dir()]
    assert all(path.is_file() and not path.is_symlink() for path in kept)
    assert all(_has_its_place(path) for path in kept)
    written = (path for path in kept if path != _CODE / "declared.json")
    assert sum(path.stat().st_size for path in written) <= LIMITS.total_bytes


def _take(found: Unpacked) -> None:
    root = root_of(found.members)
    if root is None:
        sort_out(found, LIMITS)
    else:
        take_bundle(found.parts, root, _FOLDER, LIMITS)


def _has_its_place(path: Path) -> bool:
    is_ours = path.name.startswith("part-") or path.name in SAMPLES
    return (path.parent == _FOLDER and is_ours) or path.is_relative_to(_CODE)


def seeds() -> list[bytes]:
    made = [each.make("mark") for each in every_technique() if each.group in _ARCHIVES]
    made.append(zipped(_BUNDLE))
    return [content for content in made if len(content) < 20_000]


if __name__ == "__main__":
    harness.fuzz(target, seeds)
