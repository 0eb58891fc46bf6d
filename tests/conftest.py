"""What every test gets: property tests without deadlines, for machines are noisy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
