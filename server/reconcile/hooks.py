"""What the reconciler asks of the rest of the service, and tells it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.faults import Reached, nothing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractContextManager

    from server.engines.base import Replica, ReplicaSpec
    from server.records import Deployment, DeploymentKey
    from server.states import Action


def _nothing(_made: Deployment, _action: Action) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the rest of the service does around a deployment's steps.

    ``around`` encloses each step while it is done.
    """

    make_spec: Callable[[Deployment, int, str, int], Awaitable[ReplicaSpec]]
    joined: Callable[[Replica], Awaitable[None]]
    left: Callable[[Replica], Awaitable[None]]
    unused: Callable[[str], Coroutine[None, None, None]]
    restarted: Callable[[DeploymentKey], None]
    ended: Callable[[DeploymentKey, str], None]
    around: Callable[[Deployment, Action], AbstractContextManager[None]] = _nothing
    reached: Reached = nothing
