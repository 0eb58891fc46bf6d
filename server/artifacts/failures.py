"""The one failure of an inspection: a stable code and the parameters of its sentence.

Runs in the inspecting child too: standard library only.
"""

from __future__ import annotations

from typing import Any


class InspectionError(Exception):
    """The artifact cannot be taken, for a cause that has a name.

    ``evidence`` is the one line that shows the cause, or empty.
    """

    def __init__(self, code: str, /, *, evidence: str = "", **params: Any) -> None:
        super().__init__(code)
        self.code = code
        self.params: dict[str, Any] = params
        self.evidence = evidence
