"""Failures that a model process names: a stable code and the parameters of its sentence."""

from __future__ import annotations

from typing import Any, Optional

from server.model_server.evidence import missing_module, one_line, package_of


class ModelFailure(Exception):  # noqa: N818 - the design's word: a failure has a code
    """The model cannot be loaded, proven or run, for a cause that has a name.

    ``evidence`` is the one line that shows the cause, or empty.
    """

    def __init__(self, code: str, *, evidence: str = "", **params: Any) -> None:
        super().__init__(code)
        self.code = code
        self.params = params
        self.evidence = evidence


def named_absence(error: BaseException) -> Optional[ModelFailure]:
    """Return ``module_missing`` if an exception comes from a module that is not installed."""
    module = missing_module(error)
    if not module:
        return None
    package = package_of(module)
    return ModelFailure("module_missing", evidence=one_line(error), module=module, package=package)


class BadInputError(Exception):
    """A request's tensors do not fit the model or the protocol; the caller's fault (400)."""

    def __init__(self, code: str, **params: Any) -> None:
        super().__init__(code)
        self.code = code
        self.params = params
