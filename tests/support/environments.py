"""Model environments that all end-to-end tests share: built once by the product, kept between runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from server.environments.build import Environments
from server.environments.plan import EnvironmentPlan, plan
from server.settings import Settings
from tests.support.wheels import wheel_links

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "environments"


class ModelEnvironments:
    """One folder of environments, lent to the data folder of every service under test."""

    def __init__(self, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._pythons: dict[str, Path] = {}

    def lend(self, data_dir: Path) -> Path:
        """Let a data folder use the environments; returns that folder."""
        data_dir.mkdir(parents=True, exist_ok=True)
        (data_dir / "environments").symlink_to(self.folder)
        return data_dir

    def built(self) -> set[str]:
        """Return the names of the environments that are whole."""
        return {marker.parent.name for marker in self.folder.glob("*/COMPLETE")}

    def python(self, kind: str) -> Path:
        """Return the interpreter of the environment that models of this kind get by default."""
        return self.python_of(plan(kind, kind, None, "cpu"))

    def python_of(self, made: EnvironmentPlan) -> Path:
        """Return the interpreter of the environment of a plan."""
        key = " ".join(made.requirements)
        if key not in self._pythons:
            self._pythons[key] = asyncio.run(self._build(made))
        return self._pythons[key]

    async def _build(self, made: EnvironmentPlan) -> Path:
        links = tuple(part for part in wheel_links().split(",") if part)
        environments = Environments(Settings(wheel_links=links), self.folder)
        lock = await environments.lock(made)
        environment = await environments.build(lock, lambda _code, _params: None)
        await environments.close()
        return environment.python

    def run(self, kind: str, program: str, *arguments: str | Path, folder: Path) -> str:
        """Run a Python program in an environment, apart from the product; return what it printed."""
        done = subprocess.run(
            [self.python(kind), "-I", "-W", "ignore", "-c", program, *arguments],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout
