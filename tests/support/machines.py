"""Machines with less to confine with: variables and starters under which the service finds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OLD_KERNEL = "tests.support.old_kernel"
"""Module that starts the service under a kernel that knows no Landlock."""
RECKLESS_SERVICE = "tests.support.reckless_service"
"""Module that starts the service with every check of pickles and TorchScript off."""


def without_bubblewrap(folder: Path) -> dict[str, str]:
    """Return variables under which the only bubblewrap that is found is one that can do nothing."""
    hiding = folder / "no-bubblewrap"
    hiding.mkdir()
    (hiding / "bwrap").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (hiding / "bwrap").chmod(0o755)
    return {"PATH": f"{hiding}:{os.environ['PATH']}"}
