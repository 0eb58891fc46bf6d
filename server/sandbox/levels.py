"""How strictly model processes are confined, and what may run without it."""

from __future__ import annotations

from enum import IntEnum

from server.kinds import KINDS
from server.sandbox.inside import plan


class Level(IntEnum):
    """A level is claimed only if every one of its layers was seen to work on this machine."""

    LIMITS = plan.LIMITS
    """Limits on resources, a clean environment, no capabilities."""
    KERNEL = plan.KERNEL
    """Landlock and seccomp too; an unprivileged user where the service is root."""
    NAMESPACES = plan.NAMESPACES
    """Namespaces of its own as well, made by bubblewrap."""


LAYERS: dict[Level, tuple[str, ...]] = {
    Level.LIMITS: ("limits",),
    Level.KERNEL: ("landlock", "seccomp", "limits"),
    Level.NAMESPACES: ("bubblewrap", "landlock", "seccomp", "limits"),
}


def needs_confinement(kind: str) -> bool:
    """Whether models of a kind can run code of their own.

    Only data that a runtime interprets cannot. Every other kind can hold code, be it a pickle's or a
    script's, or is read by a library that trusts its files, as those of boosters do.
    """
    return kind not in KINDS or not KINDS[kind].is_data
