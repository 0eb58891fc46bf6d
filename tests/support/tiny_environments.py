"""Environments of tiny wheels: real locks and builds that take no network and no second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.environments.build import Environments
from server.environments.plan import EnvironmentPlan
from server.settings import Settings
from tests.support.tiny_wheels import empty_index

if TYPE_CHECKING:
    from pathlib import Path


def wants(*requirements: str, device: str = "cpu", is_pinned: bool = True) -> EnvironmentPlan:
    return EnvironmentPlan(
        kind="onnx", device=device, requirements=requirements, is_pinned=is_pinned
    )


def quiet(_code: str, _params: dict[str, Any]) -> None:
    pass


class World:
    """A folder of wheels, an index without packages, and environments that know no others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.root = folder / "environments"
        self.settings = Settings(
            wheel_links=(str(self.wheels),), wheel_index=empty_index(folder / "index")
        )
        self.opened: list[Environments] = []

    def environments(self, **changes: Any) -> Environments:
        settings = Settings(
            **{
                "wheel_links": self.settings.wheel_links,
                "wheel_index": self.settings.wheel_index,
                **changes,
            }
        )
        made = Environments(settings, self.root, cache=self.folder / "cache")
        self.opened.append(made)
        return made

    @property
    def built(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name[0] != ".")
