"""Names what went wrong in the package installer, from what it printed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from server.errors import StepFailedError
from server.scrubbing import scrubbed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.environments.plan import EnvironmentPlan

MISFITS = frozenset({"package_unavailable", "dependency_conflict", "packages_offline"})
"""Failures after which another interpreter may still have what is asked for."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s)`'\"]+")
_NOT_FETCHED = re.compile(r"Failed to fetch:? `?\S*?/([A-Za-z0-9][\w.-]*?)/?`?$", re.MULTILINE)
_NOT_CACHED = re.compile(
    r"Because (\S+?)(?:==\S+|\[\S+)? "
    r"(?:was not found in the cache|needs to be downloaded from a registry)"
)
_NOT_THERE = re.compile(
    r"Because (\S+) was not found in"
    r"|there (?:is|are) no versions? of ([^\s,]+)"
    r"|Because (\S+) has no usable wheels"
    r"|Because (\S+) has no wheels"
    r"|only ([^\s,]+) (?:is|are) available"
)
_NETWORK_MARKS = (
    "Failed to fetch",
    "error sending request",
    "dns error",
    "tcp connect error",
    "network was disabled",
    "operation timed out",
    "Failed to download",
)
_FULL_MARKS = ("os error 28", "os error 122", "No space left", "Disk quota exceeded")
_EVIDENCE_CHARS = 300
_LOG_LINES = 200


def is_offline(output: str) -> bool:
    """Tell whether the installer failed because it could not reach an index."""
    return any(mark in output for mark in _NETWORK_MARKS)


def says_full(output: str) -> bool:
    """Tell whether a program printed that the disk (or the quota on it) is used up."""
    return any(mark in output for mark in _FULL_MARKS)


def named_failure(output: str, packages: tuple[str, ...]) -> StepFailedError:
    """Return the failure that the installer's output shows.

    ``packages`` is what was asked for, for the case that the output does not say which of them
    is missing.
    """
    failure = _named(output, packages)
    failure.log = tuple(_ADDRESS.sub("…", output).splitlines()[-_LOG_LINES:])
    return failure


def _named(output: str, packages: tuple[str, ...]) -> StepFailedError:
    evidence = main_line(output)
    if says_full(output):
        return StepFailedError("disk_full", evidence=evidence)
    if is_offline(output):
        missing = missing_packages(output) or packages
        return StepFailedError("packages_offline", evidence=evidence, packages=list(missing))
    absent = _NOT_THERE.search(output)
    if absent is not None and " depends on " not in output:
        package = next(group for group in absent.groups() if group)
        return StepFailedError("package_unavailable", evidence=evidence, package=package)
    if "No solution found" in output:
        return StepFailedError("dependency_conflict", evidence=evidence)
    return StepFailedError("environment_failed", evidence=evidence)


def misfit(
    failures: Sequence[StepFailedError], plan: EnvironmentPlan, pythons: Sequence[str]
) -> StepFailedError:
    """Return what to say of a plan that no interpreter has packages for.

    ``failures`` are those of the interpreters ``pythons`` (as in ``3.11``), in the same order.
    """
    offline = [failure for failure in failures if failure.code == "packages_offline"]
    first = (offline or list(failures))[0]
    is_sklearn = str(first.params.get("package", "")).startswith("scikit-learn")
    if offline or not plan.matched or not (is_sklearn or not plan.has_requests):
        return first
    failure = StepFailedError(
        "sklearn_version_unavailable",
        evidence=first.evidence,
        version=plan.matched,
        pythons=list(pythons),
    )
    failure.log = first.log
    return failure


def missing_packages(output: str) -> tuple[str, ...]:
    """Return the packages that could not be fetched, as far as the output names them."""
    return tuple(dict.fromkeys([*_NOT_CACHED.findall(output), *_NOT_FETCHED.findall(output)]))


def main_line(output: str) -> str:
    """Return the installer's main sentence on one line, without addresses and paths."""
    cause = re.search(r"cause: (Because .*?)(?:\n\s*\n|\Z)", output, re.DOTALL)
    if cause is None:
        cause = re.search(r"(?:^|\n)error: (.*?)(?:\n\s*\n|\Z)", output, re.DOTALL)
    text = cause[1] if cause is not None else output[-_EVIDENCE_CHARS:]
    return scrubbed(_ADDRESS.sub("…", text))
