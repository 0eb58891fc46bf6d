"""Runs one fuzz target under atheris; the targets of this folder are programs.

``python tests/fuzz/TARGET.py [libFuzzer's options] FOLDER...``; what is found is kept in the first
folder. ``--seeds FOLDER`` writes the harmful corpus there instead, to begin with.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MEMORY = 3 << 30


def fuzz(target: Callable[[bytes], None], seeds: Callable[[], Iterable[bytes]]) -> None:
    """Feed the target until the options say that it is enough; it raises at what may not be."""
    if sys.argv[1:2] == ["--seeds"]:
        folder = Path(sys.argv[2])
        for number, content in enumerate(seeds()):
            (folder / f"seed-{number:03}").write_bytes(content)
        return
    import atheris

    # What takes too much memory is an error that the product names; the machine has less.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    if "-merge=1" in sys.argv:
        sys.argv[0] = _program()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


def _program() -> str:
    """Return a program that is this one: to merge, libFuzzer starts itself again by its name."""
    program = Path(tempfile.mkdtemp(prefix="fuzz-")) / "target"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore "{sys.argv[0]}" "$@"\n')
    program.chmod(0o700)
    return str(program)


def instrument() -> None:
    """Follow which branches of the product are taken; to be called before it is imported."""
    if "--seeds" not in sys.argv:
        import atheris

        hook = atheris.instrument_imports(include=["server.artifacts", "server.model_server"])
        hook.__enter__()
