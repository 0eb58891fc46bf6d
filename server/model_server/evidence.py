"""Turns an exception into the one line that shows its cause, without paths."""

from __future__ import annotations

import re
from typing import Optional

from server.scrubbing import scrubbed, without_full_stop

_CAUSES = 8
# What onnxruntime, torch, CUDA and C++ say; none of them raises Python's own error.
_NO_MEMORY = re.compile(
    r"out of memory|bad_alloc|[Ff]ailed to allocate memory|can't allocate memory|not enough memory"
    r"|OUT_OF_MEMORY|smaller than requested bytes"
)
# What onnxruntime puts before the cause: its class again, the node, a place in its own sources.
_PREAMBLE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"(?:Non-zero status code returned while running (?P<node>\w+) node\. Name:'[^']{0,200}' Status Message: )?"
    r"(?:/\S{1,300}:\d+ [^()]{1,300}\([^()]{0,300}\) (?:.{1,200}? was false\. )?)?"
)
_LOOKED_AT = 3000


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that the processor's or the GPU's memory is used up."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or _NO_MEMORY.search(str(error)) is not None
    )


_DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Modules whose packages are called otherwise."""


def package_of(module: str) -> str:
    """Return what a requirements file calls the package that a module comes with."""
    return _DISTRIBUTIONS.get(module, module.replace("_", "-"))


def missing_module(error: Optional[BaseException]) -> str:
    """Return the package that an exception says is not there, as it is imported, or nothing.

    Libraries put such an error into one of their own, so what it was raised from counts, too.
    """
    for _ in range(_CAUSES):
        if error is None:
            break
        if isinstance(error, ModuleNotFoundError) and error.name:
            return scrubbed(error.name.partition(".")[0])[:100]
        error = error.__cause__ or error.__context__
    return ""


def one_line(error: BaseException) -> str:
    """Say what an exception says, in one scrubbed line.

    A TorchScript error carries the trace of the model's code first and its cause last; all
    others say the cause first.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    chosen = lines[0]
    if "TorchScript" in chosen or chosen.startswith("Traceback"):
        chosen = lines[-1]
    chosen = _PREAMBLE.sub(_node, chosen[:_LOOKED_AT], count=1)
    return without_full_stop(scrubbed(f"{type(error).__name__}: {chosen}"))


def _node(found: re.Match[str]) -> str:
    node = f"{found['node']}: "
    return "" if found["node"] is None or found.string.startswith(node, found.end()) else node
