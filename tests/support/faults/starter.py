"""``python -m tests.support.faults.starter``: the service, with a plan for its points."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from server.app import create_app
from server.cli import main
from tests.support.faults.plan import Plan

VARIABLE = "FAULT_PLAN"

if __name__ == "__main__":
    plan = Plan(Path(os.environ[VARIABLE]))
    sys.exit(main([], create=lambda settings: create_app(settings, reached=plan.reached)))
