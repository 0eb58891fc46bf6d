"""What one file of the corpus is: a way to do harm, and where it has to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INSPECTION, LOADER, DEADLINE = "inspection", "loader", "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One way to do harm.

    ``make`` writes the file; what would run in it makes a file of the name that it is given. ``code``
    is the failure that it ends with, in the step ``stopped_by``. ``unpickler`` is the failure that
    the loader alone ends it with, for what is a pickle. ``runs`` tells that the file really does its
    harm where it is loaded as such files usually are, which a test holds it to.
    """

    group: str
    name: str
    make: Callable[[str], bytes]
    code: str
    stopped_by: str = INSPECTION
    unpickler: str = ""
    runs: bool = False
