"""Opens TorchScript files, and tells apart what torch saves under the same extension."""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, Iterator, Tuple

from server.model_server.evidence import is_out_of_memory, one_line
from server.model_server.failures import ModelFailure

_STATE_DICT_GLOBALS = re.compile(
    r"^(collections OrderedDict|torch\._utils _rebuild_\w+|torch(\.storage)? \w*Storage"
    r"|torch (Size|device|dtype|\w+)|torch\.serialization _get_layout|_codecs encode|builtins \w+"
    r"|numpy\.\S+ \w+|numpy \w+|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter \w+)$"
)

_CAUSES: Tuple[Tuple[str, str], ...] = (
    ("torchscript_operator_missing", r"Unknown builtin op: (?P<name>[\w:]+(?:\.\w+)*)"),
    ("torchscript_operator_missing", r"Couldn't find an operator for (?P<name>[\w:]+(?:\.\w+)*)"),
    ("torchscript_version_too_new", r"maximum supported version for reading"),
    ("torchscript_class_missing", r"Unknown type name '(?P<name>[^']+)'"),
    ("torchscript_no_forward", r"Method 'forward' is not defined|Tried to access nonexistent"),
)
"""Codes and what torch says in that case."""


def load(torch: Any, path: str, device: str) -> Any:
    """Load a module, ready to predict.

    Raises:
        ModelFailure: ``state_dict_not_torchscript``, ``module_pickle_not_torchscript``,
            ``torchscript_operator_missing``, ``torchscript_version_too_new``, ``torchscript_class_missing``,
            ``torchscript_no_forward`` or ``torchscript_invalid``.
    """
    _check(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise _failure(error) from error


def _failure(error: Exception) -> ModelFailure:
    for code, pattern in _CAUSES:
        found = re.search(pattern, str(error))
        if found is not None:
            params = {key: value[:100] for key, value in found.groupdict().items()}
            return ModelFailure(code, evidence=one_line(error), **params)
    return ModelFailure("torchscript_invalid", evidence=one_line(error))


def _check(path: str) -> None:
    if zipfile.is_zipfile(path):
        _check_archive(path)
        return
    with Path(path).open("rb") as file:
        if file.read(1) == b"\x80":
            file.seek(0)
            raise _plain_pickle(file)
    raise ModelFailure("torchscript_invalid", evidence="not a zip archive")


def _check_archive(path: str) -> None:
    with zipfile.ZipFile(path) as archive:
        names = {name.split("/", 1)[-1]: name for name in archive.namelist()}
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return
        if "data.pkl" in names:
            with archive.open(names["data.pkl"]) as file:
                raise _plain_pickle(io.BytesIO(file.read(64 * 1024 * 1024)))
    raise ModelFailure("torchscript_invalid", evidence="no code in the archive")


def _plain_pickle(file: IO[bytes]) -> ModelFailure:
    """Tell a saved state dict from a saved module by the names in it; nothing is loaded."""
    for name in _globals(file):
        if not _STATE_DICT_GLOBALS.match(name):
            shown = "".join(c for c in name if c.isprintable() and c not in "{}/\\")
            return ModelFailure("module_pickle_not_torchscript", name=shown.replace(" ", ".")[:100])
    return ModelFailure("state_dict_not_torchscript")


def _globals(file: IO[bytes]) -> Iterator[str]:
    """Names in the pickles that stand one after another in torch's older format."""
    strings = ["", ""]
    for _ in range(4):
        try:
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    yield str(argument)
                elif opcode.name == "STACK_GLOBAL":
                    yield " ".join(strings)
                elif isinstance(argument, str):
                    strings = [strings[1], argument]
        except ValueError:
            return
