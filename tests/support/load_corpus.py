"""Loads files of the corpus; started with a model environment's Python.

``product FOLDER`` loads each by the product's loader and prints its name and the failure's code.
``usual FOLDER`` loads each as such files usually are, in a process of its own, and prints nothing:
what runs leaves its mark. ``endless FILE`` loads one file by the product's loader.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import resource
import sys
import warnings
from pathlib import Path

_MEMORY = 4 << 30
_SECONDS = 8


def by_the_product(path: Path) -> str:
    from server.model_server.failures import ModelFailure
    from server.model_server.loading import load_model
    from server.model_server.spec import ModelSpec

    spec = ModelSpec(run_id="r", names=("r",), kind="sklearn", path=str(path), digest="0" * 64)
    try:
        load_model(spec)
    except ModelFailure as failure:
        return failure.code
    return "loaded"


def as_usual(paths: list[Path]) -> None:
    # Imported before the forks, for most files name them.
    import joblib
    import sklearn.linear_model
    import sklearn.svm  # noqa: F401

    for path in paths:
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
            with contextlib.suppress(BaseException):
                joblib.load(path)
            # What waits for the end gets its end; taking everything apart would take longest.
            atexit._run_exitfuncs()
            os._exit(0)
        os.waitpid(child, 0)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    command, given = sys.argv[1], Path(sys.argv[2])
    if command == "endless":
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        by_the_product(given)
        return
    paths = sorted(given.iterdir())
    if command == "usual":
        as_usual(paths)
        return
    for path in paths:
        sys.stdout.write(f"{path.name} {by_the_product(path)}\n")


if __name__ == "__main__":
    main()
