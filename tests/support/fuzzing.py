"""How many examples the generated tests try, and from which seed."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable

FACTOR = float(os.environ.get("TEST_FUZZ", "1"))
SECONDS = 120 * max(1.0, FACTOR)
"""How long one test may take."""

SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
"""For generators that hypothesis does not seed; ``SEED`` repeats a run."""


def examples(number: int) -> Callable[[Any], Any]:
    """Say how many examples a test tries; ``TEST_FUZZ`` multiplies them."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=max(1, round(number * FACTOR)), suppress_health_check=slow)
