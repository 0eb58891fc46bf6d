"""Named places at which a test may let the service fail; in the service itself nothing happens.

``reached`` is passed by hand to the parts that have such places, from ``create_app`` on. The
service passes :func:`nothing`; a test's starter passes what kills the process or raises there.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Point(StrEnum):
    """One place; what stands before it was done, what stands after it was not."""

    BOOT_MIGRATED = "boot.migrated"
    BOOT_SWEPT = "boot.swept"
    BOOT_TREES = "boot.trees"
    BOOT_ORPHANS_ENDED = "boot.orphans-ended"
    BOOT_RESUMING = "boot.resuming"
    BOOT_RESUMED = "boot.resumed"

    DATABASE_BEGUN = "database.begun"
    DATABASE_WRITTEN = "database.written"
    DATABASE_COMMITTED = "database.committed"

    UPLOAD_OPENED = "upload.opened"
    UPLOAD_RECEIVED = "upload.received"
    UPLOAD_SYNCED = "upload.synced"
    UPLOAD_RENAMED = "upload.renamed"
    UPLOAD_KEPT = "upload.kept"
    UPLOAD_COMMITTED = "upload.committed"

    PREPARE_LEASED = "prepare.leased"
    PREPARE_INTEGRITY = "prepare.integrity"
    PREPARE_INTEGRITY_DONE = "prepare.integrity.done"
    PREPARE_INSPECTION = "prepare.inspection"
    PREPARE_INSPECTING = "prepare.inspection.spawned"
    PREPARE_SETTLED = "prepare.inspection.settled"
    PREPARE_INSPECTION_DONE = "prepare.inspection.done"
    PREPARE_DEVICE = "prepare.device"
    PREPARE_DEVICE_DONE = "prepare.device.done"
    PREPARE_ENVIRONMENT = "prepare.environment"
    PREPARE_LOCKED = "prepare.environment.locked"
    PREPARE_INSTALLED = "prepare.environment.installed"
    PREPARE_MARKED = "prepare.environment.marked"
    PREPARE_ENVIRONMENT_DONE = "prepare.environment.done"
    PREPARE_LOAD = "prepare.load"
    PREPARE_SPEC = "prepare.load.described"
    PREPARE_PROVING = "prepare.load.spawned"
    PREPARE_LOAD_DONE = "prepare.load.done"
    PREPARE_SMOKE = "prepare.smoke-test"
    PREPARE_SMOKE_DONE = "prepare.smoke-test.done"
    PREPARE_PASSPORT = "prepare.passport"
    PREPARE_PASSPORT_DONE = "prepare.passport.done"
    PREPARE_FAILING = "prepare.failing"
    PREPARE_FAILED = "prepare.failed"

    DEPLOY_WANTED = "deploy.wanted"
    DEPLOY_LISTENING = "deploy.listening"
    DEPLOY_PORT_KEPT = "deploy.port-kept"
    DEPLOY_DESCRIBED = "deploy.described"
    DEPLOY_SPAWNED = "deploy.spawned"
    DEPLOY_READY = "deploy.ready"
    DEPLOY_ACCEPTING = "deploy.accepting"
    DEPLOY_SEEN = "deploy.seen"
    DEPLOY_FAILING = "deploy.failing"
    DEPLOY_FAILED = "deploy.failed"
    HANDOVER_RETREATED = "hand-over.retreated"
    HANDOVER_DRAINED = "hand-over.drained"
    HANDOVER_ENDED = "hand-over.ended"
    HANDOVER_RELEASED = "hand-over.released"

    STOP_WANTED = "stop.wanted"
    STOP_CLOSED = "stop.closed"
    STOP_ENDED = "stop.ended"
    STOP_SEEN = "stop.seen"
    STOP_RELEASED = "stop.released"

    DELETE_CANCELLED = "delete.cancelled"
    DELETE_FORGOTTEN = "delete.forgotten"
    DELETE_DOWN = "delete.down"
    DELETE_FILES_GONE = "delete.files-gone"
    DELETE_BLOB_GONE = "delete.blob-gone"

    HOUSE_LEASES = "housekeeping.leases"
    HOUSE_SESSIONS = "housekeeping.sessions"
    HOUSE_HISTORY = "housekeeping.history"

    SHUTDOWN_BEGUN = "shutdown.begun"
    SHUTDOWN_PREPARED = "shutdown.preparations-ended"
    SHUTDOWN_SERVED = "shutdown.replicas-ended"
    SHUTDOWN_DONE = "shutdown.history-kept"


Reached = Callable[[Point], None]
"""Called at a point, in the loop's thread or another; it may raise OSError or never return."""


def nothing(_point: Point) -> None:
    """Go on."""
