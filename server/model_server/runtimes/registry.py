"""Which runtime loads which kind of model: the rows of ``server.kinds``."""

from __future__ import annotations

import importlib

from server.kinds import KINDS
from server.model_server.failures import ModelFailure
from server.model_server.runtimes.base import Runtime


def create(kind: str) -> Runtime:
    """Make the runtime of one kind, nothing loaded yet; its module is imported only now.

    Raises:
        ModelFailure: ``kind_unsupported`` if no runtime loads such a model.
    """
    if kind not in KINDS:
        raise ModelFailure("kind_unsupported", kind=str(kind)[:32], kinds=", ".join(KINDS))
    module, name = KINDS[kind].runtime
    made: Runtime = getattr(importlib.import_module(f"{__package__}.{module}"), name)()
    return made
