"""Runs scikit-learn estimators that skops has written: no pickle, and the same list of classes."""

from __future__ import annotations

from typing import Any, ClassVar, Optional, Tuple

from server.model_server.allowed_globals import AllowedGlobals
from server.model_server.evidence import one_line
from server.model_server.failures import ModelFailure, named_absence
from server.model_server.runtimes.sklearn import SklearnRuntime


class SkopsRuntime(SklearnRuntime):
    """One fitted estimator, read by skops."""

    kind: ClassVar[str] = "skops"

    def _read(self, path: str) -> Tuple[Any, Optional[str]]:
        """Load the file; of what skops does not trust by itself, our own list decides."""
        from skops import io

        allowed = AllowedGlobals()
        try:
            unknown = io.get_untrusted_types(file=path)
            for name in unknown:
                module, _, attribute = name.rpartition(".")
                allowed.find(module, attribute)
            return io.load(path, trusted=unknown), None
        except (ModelFailure, MemoryError):
            raise
        except Exception as error:
            raise named_absence(error) or ModelFailure(
                "skops_not_loadable", evidence=one_line(error)
            ) from error
