"""Asks for known vulnerabilities of everything installed; says so where nobody can be asked.

``python -m tests.support.audit`` looks at the virtual environment it runs in, which holds the
service's requirements and the developers', and at the model environments that were built here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SERVICES = ("pypi", "osv")
BUILT = (
    "data/environments/*/lib/python*/site-packages",
    ".cache/environments/*/lib/python*/site-packages",
)
SECONDS = 300


def ask(service: str, places: list[Path]) -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit says of the packages in some places, and its complaint if it has none."""
    where = [f"--path={place}" for place in places] or ["--local"]
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off"]
    try:
        done = subprocess.run(
            [*command, f"--vulnerability-service={service}", *where],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {SECONDS} s"
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return found, ""


def weak(found: list[dict[str, Any]]) -> list[str]:
    """Return a line for every vulnerability that is known."""
    return [
        f"{one['name']} {one['version']}: {vulnerability['id']}, "
        f"mended in {', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for one in found
        for vulnerability in one.get("vulns", ())
    ]


def audit(name: str, places: list[Path]) -> int | None:
    """Audit one set of packages; return how many vulnerabilities it has, None if nobody tells."""
    reasons = []
    for service in SERVICES:
        found, complaint = ask(service, places)
        known = [one for one in found if "skip_reason" not in one]
        if not known:
            reason = complaint or next((one["skip_reason"] for one in found), "nothing to look at")
            reasons.append(f"{service}: {reason}")
            continue
        for one in found:
            if "skip_reason" in one:
                say(f"  not looked at: {one['name']}: {one['skip_reason']}")
        lines = weak(known)
        say(f"{name}: {len(known)} packages, known vulnerabilities: {len(lines)} ({service})")
        for line in lines:
            say(f"  {line}")
        return len(lines)
    say(f"{name}: NOT RUN, no list of vulnerabilities can be reached")
    for reason in reasons:
        say(f"  {reason}")
    return None


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> int:
    """Audit everything; 1 if something is weak, and under CI=true also if nobody could be asked."""
    sets = {"service and tools": list[Path]()}
    for pattern in BUILT:
        for place in sorted(ROOT.glob(pattern)):
            sets[f"model environment {place.parents[2].name[:12]}"] = [place]
    results = [audit(name, places) for name, places in sets.items()]
    if None in results and os.environ.get("CI") == "true":
        return 1
    return int(any(results))


if __name__ == "__main__":
    sys.exit(main())
