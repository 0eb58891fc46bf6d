"""Checks an ONNX file before onnxruntime gets to see it: where its weights lie, then onnx's checker.

The checker is onnx's compiled part alone, which takes a hundredth of a second to import; the
package around it takes twenty times that. Runs in the inspecting child too.
"""

from __future__ import annotations

import mmap
import os
import posixpath
import re
from typing import TYPE_CHECKING

from server.artifacts.failures import InspectionError
from server.artifacts.limits import shown
from server.artifacts.onnx_wire import check_wire, versions_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODEL = "model.onnx"
FOLDER = ".folder"
"""Ending of the folder that a candidate is given together with its weights."""

# A name in an archive may hold more; here it becomes one on the disk.
_LOCATION = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}/){0,4}[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}"
)
# onnxruntime may know more versions and operators than the checker, and has names for their lack.
_NOT_OURS = re.compile(r"higher than the checker's|domain_version of|No [Oo]pset")


def check_onnx(path: Path, beside: Mapping[str, Path] | None = None) -> Path | None:
    """Check a model's file, and that its weights are there where they lie in other files.

    ``beside`` are the files that came with it, by their names as the model writes them. A model
    with such weights is given a folder together with them, which is returned; there its name is
    ``MODEL``.

    Raises:
        InspectionError: ``onnx_damaged``, ``onnx_external_data``, ``onnx_external_file_missing``
            or ``onnx_check_failed``.
        OSError: a file cannot be read or linked.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        external = check_wire(data)
    if not external:
        _check(path)
        return None
    if beside is None:
        raise InspectionError("onnx_external_data", tensor=external[0].tensor)
    folder = path.with_name(path.name + FOLDER)
    folder.mkdir()
    os.link(path, folder / MODEL)
    for each in external:
        name = posixpath.normpath(each.location)
        place = folder / name
        is_safe = _LOCATION.fullmatch(name) is not None and name != MODEL
        found = beside.get(name) if is_safe else None
        if found is not None and found.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            # No link: readers of such files refuse those that have several names.
            found.rename(place)
        if found is None or not place.is_file() or place.stat().st_size < each.end:
            raise InspectionError("onnx_external_file_missing", name=shown(each.location))
    _check(folder / MODEL)
    return folder


def versions_in(path: Path) -> dict[str, str]:
    """Return ``onnx-ir``, ``onnx-opset`` and ``onnx-ml-opset``, as far as a checked model has them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return versions_of(data)


def _check(path: Path) -> None:
    # In the child's tree this package is nothing but the compiled part.
    from onnx.onnx_cpp2py_export import checker  # noqa: PLC0415 - few files need it

    try:
        checker.check_model_path(str(path), False, False, False)
    except (checker.ValidationError, ValueError, RuntimeError) as error:
        said = str(error).replace(str(path), "…")
        if not _NOT_OURS.search(said):
            raise InspectionError("onnx_check_failed", evidence=said) from None
