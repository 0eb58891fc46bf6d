"""Where this machine's pip finds further wheels, for the model environments of the tests."""

from __future__ import annotations

import subprocess
import sys


def wheel_links() -> str:
    """Return the value for PERSEPHONE_WHEEL_LINKS: folders separated by commas, or ''."""
    for key in (":env:.find-links", "global.find-links"):
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", key],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0 and asked.stdout.strip():
            return ",".join(asked.stdout.split())
    return ""
