"""Finds the interpreter and the packages that a model can be run with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from server.environments.failures import MISFITS, misfit
from server.environments.lock import lock_of, python_named_in
from server.environments.pythons import own_python, python_for
from server.errors import StepFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.environments.build import Environments, Progress
    from server.environments.lock import Lock
    from server.environments.plan import EnvironmentPlan
    from server.environments.pythons import Python

    PlanFor = Callable[[str], EnvironmentPlan]


async def fit(
    environments: Environments,
    plan_for: PlanFor,
    progress: Progress | None = None,
    *,
    prefer: str | None = None,
    requires: str = "",
) -> Lock:
    """Return the exact packages of a model, for the first interpreter that there are some for.

    ``plan_for`` makes the plan for a version of Python. The service's own interpreter is asked
    first, or the one of the version ``prefer`` if there is one; those that do not lie in the
    range ``requires`` are not asked.

    Raises:
        StepFailedError: as ``Environments.lock``; ``sklearn_version_unavailable``,
            ``python_version_unavailable``.
    """
    pythons = _within(requires, await environments.pythons())
    first = python_for(prefer, pythons) if prefer else None
    if first is not None:
        pythons.sort(key=lambda python: python != first)
    plans = [(plan_for(python.version), python) for python in pythons]
    for plan, python in plans:
        # One that did not fit before is not asked again, with or without a network.
        known = await environments.known(plan, python)
        if known is not None:
            return known
    failures: list[StepFailedError] = []
    for plan, python in plans:
        try:
            return await environments.lock(plan, progress, python=python)
        except StepFailedError as error:
            if error.code not in MISFITS:
                raise
            failures.append(error)
    raise misfit(failures, plans[0][0], [python.minor for python in pythons])


def _within(requires: str, pythons: Sequence[Python]) -> list[Python]:
    wanted = SpecifierSet(requires)
    found = [each for each in pythons if wanted.contains(each.version, prereleases=True)]
    if not found:
        there = [each.version for each in pythons]
        raise StepFailedError("python_version_unavailable", wanted=requires, pythons=there)
    return found


async def restore(environments: Environments, text: str, device: str, made_for: str = "") -> Lock:
    """Return the lock whose text a passport holds.

    One that names no Python is for the service's own; ``made_for`` is the version that this was
    then. The service may run on another by now: its packages are taken for the old one if the
    machine still has that.

    Raises:
        StepFailedError: ``python_unavailable`` if an interpreter that it names is no longer there;
            ``environment_failed`` if it is no lock.
    """
    version, own = python_named_in(text), own_python()
    has_changed = bool(made_for) and made_for.split(".")[:2] != own.minor.split(".")
    if version is None and not has_changed:
        return lock_of(text, device, own)
    python = python_for(version or made_for, await environments.pythons())
    if python is None and version is not None:
        raise StepFailedError("python_unavailable", version=version)
    return lock_of(text, device, python or own, names_python=version is not None)
