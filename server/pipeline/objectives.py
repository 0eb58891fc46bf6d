"""Objectives: what a deployment promises, by the settings or by its run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from metrics.objectives import Objective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.records import ObjectiveOverride
    from server.settings import Settings
    from server.store.state import Store


class Objectives:
    """The promises of every run in every environment."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._defaults = {
            environment: settings.objective_in(environment) for environment in settings.environments
        }

    def of(self, run_id: str, environment: str) -> Objective:
        """Return what a run promises in an environment."""
        # A deployment of an environment that the settings no longer name still stands.
        usual = self._defaults.get(environment, Objective())
        promised = self.promised(run_id).get(environment)
        if promised is None:
            return usual
        own = {name: value for name, value in asdict(promised).items() if value is not None}
        return Objective(**{**asdict(usual), **own})

    def all_of(self, run_id: str) -> dict[str, Objective]:
        """Return what a run promises, by environment."""
        return {environment: self.of(run_id, environment) for environment in self._defaults}

    def promised(self, run_id: str) -> Mapping[str, ObjectiveOverride]:
        """Return what a run promises beside what the settings say, by environment."""
        return self._store.objectives.get(run_id, {})

    async def promise(self, run_id: str, promised: Mapping[str, ObjectiveOverride]) -> None:
        """Replace what a run promises; an empty mapping goes back to the settings.

        Raises:
            NotFoundError: the run was deleted meanwhile.
        """
        await self._store.save_objectives(run_id, promised)
