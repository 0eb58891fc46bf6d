"""The data folder: one service owns it at a time."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from server.setting_values import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


class DataFolder:
    """The folder of everything the service keeps, locked while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def open(self) -> None:
        """Make the folder and take its lock; a killed owner's lock is gone with it.

        Raises:
            SettingsError: it cannot be made, or another service owns it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(
                f"the data folder {self.path} cannot be used: {error.strerror}"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise SettingsError(
                f"another service is running on the data folder {self.path}; "
                "stop it, or set PERSEPHONE_DATA_DIR to another folder"
            ) from None

    def close(self) -> None:
        """Give the folder back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
