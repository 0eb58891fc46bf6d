"""The composition: the only place that builds the parts and joins them."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

from gpu.inventory import Inventory
from gpu.telemetry import GpuTelemetry
from metrics.client import PrometheusClient
from metrics.embedded import GAP_SECONDS, EmbeddedMonitor
from metrics.service import ServiceInstruments
from server import keys
from server.api import monitor, prepare, support
from server.api.callers import ATTEMPTS, Attempts, reachable
from server.api.edge import REFUSAL_CODES, setup_edge
from server.api.gateway import GATEWAY, Gateway
from server.api.operator import operator_socket
from server.api.reference import Reference
from server.api.replies import Remembered
from server.api.streams import STREAMS, Streams
from server.api.traces import traced
from server.engines.local import LocalEngine
from server.environments.build import Environments, folder_name
from server.environments.trees import build_tree, sweep_trees
from server.errors import PersephoneError
from server.faults import Point, Reached, nothing
from server.messages import Messages
from server.pipeline.abandoned import Abandoned
from server.pipeline.deploy import Deploy
from server.pipeline.devices import Devices
from server.pipeline.housekeeping import Collector, Housekeeping
from server.pipeline.monitor import Monitor
from server.pipeline.objectives import Objectives
from server.pipeline.observing import StepObserver
from server.pipeline.prepare import Prepare
from server.pipeline.runs import Runs
from server.pipeline.sources import Sources
from server.pipeline.specs import SpecMaker
from server.pipeline.steps import Workshop
from server.pipeline.tokens import Tokens
from server.pipeline.turns import Turns
from server.pipeline.upload import Upload
from server.pipeline.usage import Usage
from server.reconcile.discovery_file import DiscoveryFile
from server.reconcile.hooks import Hooks
from server.reconcile.observing import Observing
from server.reconcile.prober import Prober
from server.reconcile.reconciler import Reconciler
from server.reconcile.scraper import Scraper
from server.routes import routes
from server.sandbox.orphans import end_orphans
from server.sandbox.probe import probe
from server.states import Action, Step
from server.store.abandoned import AbandonedOwners
from server.store.blobs import Blobs
from server.store.database import Database
from server.store.folders import sweep_folders
from server.store.history import HistoryFile
from server.store.reserve import Reserve, surely
from server.store.run_logs import RunLogs
from server.store.sessions import Sessions
from server.store.state import Store
from server.store.tokens import TokenStore
from server.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.settings import Settings

logger = logging.getLogger(__name__)

# What a failing or full disk held up, a GPU's end for one, is soon done after it is healthy.
_SWEEP_SECONDS = 5.0
_DATABASE = web.AppKey("database", Database)
_BLOBS = web.AppKey("blobs", Blobs)
_INVENTORY = web.AppKey("inventory", Inventory)
_ENVIRONMENTS = web.AppKey("environments", Environments)
_MODEL_TREE = web.AppKey("model_tree", Path)
_INSPECT_TREE = web.AppKey("inspect_tree", Path)
_SESSIONS = web.AppKey("sessions", Sessions)
_TOKENS = web.AppKey("token_store", TokenStore)
_RESERVE = web.AppKey("reserve", Reserve)
_ENGINE = web.AppKey("engine", LocalEngine)
_REACHED: web.AppKey[Reached] = web.AppKey("reached")
_TRACING: web.AppKey[Tracing | None] = web.AppKey("tracing")


def create_app(settings: Settings, *, reached: Reached = nothing) -> web.Application:
    """Return the service on a data folder that the caller owns."""
    app = web.Application(client_max_size=settings.max_upload_bytes)
    definitions = list(routes(Reference(settings)))
    database = Database(settings.database, reached=reached)
    reserve = Reserve(settings.data_dir / "reserve")
    store = Store(database, reserve)
    sessions = Sessions(database)
    registry = CollectorRegistry()
    instruments = ServiceInstruments(
        registry,
        routes=[definition.path for definition in definitions],
        environments=settings.environments,
        steps=[step.value for step in Step],
        refusals=REFUSAL_CODES,
        actions=[action.value for action in Action],
    )
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    app[keys.SETTINGS] = settings
    app[_TRACING] = tracing
    app[keys.MESSAGES] = Messages()
    app[keys.INSTRUMENTS] = instruments
    app[keys.GPU_TELEMETRY] = GpuTelemetry(registry)
    app[keys.STORE] = store
    app[keys.LOGS] = RunLogs(settings.data_dir / "logs", store.runs.__contains__)
    app[STREAMS] = Streams(settings)
    app[support.BUNDLES] = Turns(support.BUNDLES_AT_ONCE)
    app[_DATABASE] = database
    app[_SESSIONS] = sessions
    app[_REACHED] = reached
    app[_BLOBS] = Blobs(settings.data_dir / "blobs", reached=reached)
    app[_RESERVE] = reserve
    app[_INVENTORY] = Inventory()
    app[keys.DEVICES] = Devices(settings, store, app[_INVENTORY])
    app[keys.USAGE] = Usage(settings, store, settings.data_dir / "models")
    app[keys.UPLOAD] = Upload(store, app[_BLOBS], reached=reached)
    app[_TOKENS] = TokenStore(database)
    app[keys.TOKENS] = Tokens(store, app[_TOKENS], partial(_renew, app))
    app[ATTEMPTS] = Attempts()
    app[prepare.REMEMBERED] = Remembered()
    app[monitor.REMEMBERED] = Remembered()
    app.add_routes(definitions)
    app.on_shutdown.append(_end_streams)
    setup_edge(
        app, settings, app[keys.MESSAGES], sessions, instruments.request, instruments.refused
    )
    if tracing is not None:
        app.middlewares.insert(0, traced(tracing))
    app.cleanup_ctx.extend(
        (
            *(_traces, _store, _devices, _monitoring, _environments, _serving, _preparing),
            *(_housekeeping, _operating),
        )
    )
    return app


async def _renew(app: web.Application, owner: str, model: str) -> None:
    await app[keys.RECONCILER].renew(owner, model)


async def _end_streams(app: web.Application) -> None:
    app[STREAMS].close()


async def _traces(app: web.Application) -> AsyncIterator[None]:
    yield
    tracing = app[_TRACING]
    if tracing is not None:
        await tracing.close()


async def _store(app: web.Application) -> AsyncIterator[None]:
    # On a full disk too: whoever makes room on it needs the service.
    await surely(app[_RESERVE], app[_DATABASE].open)
    app[_REACHED](Point.BOOT_MIGRATED)
    await app[keys.STORE].open()
    await app[_TOKENS].open()
    await app[_BLOBS].open()
    await app[_BLOBS].sweep_orphans(app[keys.STORE].digests())
    root, runs = app[keys.SETTINGS].data_dir, app[keys.STORE].runs
    for name in ("models", "logs"):
        await asyncio.to_thread(sweep_folders, root / name, runs)
    await asyncio.to_thread(sweep_folders, root / "specs", ())
    await app[keys.USAGE].open()
    await app[_RESERVE].fill()
    app[keys.DEVICES].end_left_leases()
    app[_REACHED](Point.BOOT_SWEPT)
    yield
    try:
        await app[_TOKENS].keep_uses()
    except (PersephoneError, SQLAlchemyError) as error:
        logger.warning("when tokens were last used could not be kept: %s", error)
    await app[keys.LOGS].close()
    await app[_DATABASE].close()


async def _devices(app: web.Application) -> AsyncIterator[None]:
    await app[_INVENTORY].open()
    yield
    await app[_INVENTORY].close()


async def _monitoring(app: web.Application) -> AsyncIterator[None]:
    settings = app[keys.SETTINGS]
    embedded = EmbeddedMonitor(gap_seconds=max(GAP_SECONDS, 4 * settings.scrape_seconds))
    history = HistoryFile(embedded, settings.data_dir / "history.db")
    await asyncio.to_thread(history.open)
    listed = DiscoveryFile(settings.data_dir / "targets.json", settings.own_address)
    app[keys.SCRAPER] = Scraper(
        app[keys.STORE],
        embedded,
        seconds=settings.scrape_seconds,
        scraped=lambda ok, seconds: app[keys.INSTRUMENTS].scrape(seconds, ok=ok),
        changed=listed.changed,
    )
    async with aiohttp.ClientSession() as session:
        url = settings.prometheus_url
        sources = Sources(embedded, PrometheusClient(session, url) if url else None)
        app[keys.OBJECTIVES] = Objectives(settings, app[keys.STORE])
        app[keys.MONITOR] = Monitor(
            app[keys.STORE], sources, app[keys.OBJECTIVES], seconds=settings.scrape_seconds
        )
        app[keys.SCRAPER].open()
        listed.open(app[keys.SCRAPER].targets)
        closing = asyncio.Event()
        saving = asyncio.create_task(history.keep(closing, app[_REACHED]))
        yield
        await app[keys.SCRAPER].close()
        await listed.close()
        closing.set()
        await saving
    await asyncio.to_thread(history.close)
    app[_REACHED](Point.SHUTDOWN_DONE)


async def _environments(app: web.Application) -> AsyncIterator[None]:
    settings, reached = app[keys.SETTINGS], app[_REACHED]
    root = settings.data_dir
    app[_ENVIRONMENTS] = Environments(
        settings,
        root / "environments",
        reached=reached,
        may_use=lambda base: app[keys.SANDBOX].may_use(base),  # noqa: PLW0108 - there only later
    )
    app[_MODEL_TREE] = await asyncio.to_thread(build_tree, root / "trees", "model_server")
    app[_INSPECT_TREE] = await asyncio.to_thread(build_tree, root / "trees", "inspect")
    trees = (app[_MODEL_TREE], app[_INSPECT_TREE])
    await asyncio.to_thread(sweep_trees, root / "trees", trees)
    reached(Point.BOOT_TREES)
    await app[_ENVIRONMENTS].open()
    yield
    await app[_ENVIRONMENTS].close()


async def _serving(app: web.Application) -> AsyncIterator[None]:
    settings, store, scraper = app[keys.SETTINGS], app[keys.STORE], app[keys.SCRAPER]
    sandbox = app[keys.SANDBOX] = await probe(settings, app[_INSPECT_TREE])
    app[keys.INSTRUMENTS].sandbox(sandbox.level)
    # At the start, since it says which of those that are listed are of no use.
    await app[_ENVIRONMENTS].pythons()
    engine = LocalEngine(
        settings,
        sandbox,
        app[keys.MESSAGES],
        scraper.refused,
        make_room=app[_RESERVE].release,
        admitted=app[keys.TOKENS].admitted,
        used=app[keys.TOKENS].used,
        hear=lambda spec: app[keys.LOGS].writer(spec.run_id, spec.place),
    )
    await asyncio.to_thread(end_orphans, settings.data_dir)
    app[_REACHED](Point.BOOT_ORPHANS_ENDED)
    await engine.open()
    maker = SpecMaker(settings, store, app[_ENVIRONMENTS], app[keys.DEVICES], app[_MODEL_TREE])
    observing = app[keys.OBSERVING] = Observing(store, app[keys.INSTRUMENTS], app[_TRACING])
    hooks = Hooks(
        make_spec=maker.make,
        joined=scraper.joined,
        left=scraper.left,
        unused=app[keys.DEVICES].release_if_unused,
        restarted=observing.restarted,
        ended=observing.ended,
        around=observing.around,
        reached=app[_REACHED],
    )
    reconciler = app[keys.RECONCILER] = Reconciler(store, engine, hooks)
    app[keys.DEPLOY] = Deploy(
        settings,
        store,
        app[keys.DEVICES],
        reconciler,
        app[keys.USAGE],
        asked=observing.asked,
        reached=app[_REACHED],
    )
    app[_ENGINE] = engine
    app[GATEWAY] = Gateway(settings.predict_seconds, app[_TRACING])
    prober = Prober(store, reconciler, scraper, seconds=settings.probe_seconds)
    prober.open()
    yield
    await prober.close()
    await reconciler.close()
    await engine.close()
    app[_REACHED](Point.SHUTDOWN_SERVED)
    await app[GATEWAY].close()


async def _preparing(app: web.Application) -> AsyncIterator[None]:
    settings, store = app[keys.SETTINGS], app[keys.STORE]
    root = settings.data_dir
    workshop = Workshop(
        settings=settings,
        blobs=app[_BLOBS],
        devices=app[keys.DEVICES],
        environments=app[_ENVIRONMENTS],
        sandbox=app[keys.SANDBOX],
        usage=app[keys.USAGE],
        models=root / "models",
        specs=root / "specs",
        model_tree=app[_MODEL_TREE],
        inspect_tree=app[_INSPECT_TREE],
        logs=app[keys.LOGS],
        observe=StepObserver(app[keys.INSTRUMENTS], app[_TRACING]),
        reached=app[_REACHED],
    )
    app[keys.PREPARE] = Prepare(settings, store, app[keys.DEVICES], workshop, reached=app[_REACHED])
    app[keys.RUNS] = Runs(
        store,
        app[_BLOBS],
        root / "models",
        app[keys.LOGS],
        app[keys.PREPARE],
        app[keys.RECONCILER],
        app[keys.MONITOR],
        app[keys.USAGE],
        reached=app[_REACHED],
    )
    await app[keys.PREPARE].open()
    await app[keys.RECONCILER].tell_restart()
    app[keys.RECONCILER].open()
    app[_REACHED](Point.BOOT_RESUMED)
    yield
    app[_REACHED](Point.SHUTDOWN_BEGUN)
    await app[keys.PREPARE].close()
    app[_REACHED](Point.SHUTDOWN_PREPARED)


def environments_in_use(app: web.Application) -> set[str]:
    """Return the names of the model environments that runs and replicas use at this moment."""
    prepared = (made.environment for made in app[keys.STORE].preparations.values())
    return {folder_name(digest) for digest in prepared} | app[_ENGINE].environments()


async def _housekeeping(app: web.Application) -> AsyncIterator[None]:
    settings, instruments = app[keys.SETTINGS], app[keys.INSTRUMENTS]
    in_use = partial(environments_in_use, app)
    measured = partial(instruments.stored, "environments")
    collector = Collector(settings, app[keys.USAGE], app[_ENVIRONMENTS], in_use, measured)
    abandoned = Abandoned(
        app[keys.STORE],
        AbandonedOwners(app[_DATABASE]),
        partial(reachable, app[_SESSIONS], app[keys.TOKENS]),
        app[keys.RUNS].delete,
        keep_seconds=settings.keep_abandoned_seconds,
    )

    async def expire_leases() -> None:
        await app[keys.DEVICES].expire_leases()
        app[_REACHED](Point.HOUSE_LEASES)

    async def forget_sessions() -> None:
        await app[_SESSIONS].forget_expired(time.time())
        app[_REACHED](Point.HOUSE_SESSIONS)

    # Collecting may take minutes, and leases are not to wait for it.
    all_of_it = [
        Housekeeping(
            {"expiring leases": expire_leases}, min(_SWEEP_SECONDS, settings.lease_seconds)
        ),
        Housekeeping(
            {
                "forgetting sessions": forget_sessions,
                "keeping tokens": app[keys.TOKENS].keep_house,
                "filling the reserve": app[_RESERVE].fill,
            }
        ),
        Housekeeping({"collecting": collector.attend, "deleting runs": abandoned.attend}),
        Housekeeping({"sweeping after deletions": app[keys.RUNS].sweep}, _SWEEP_SECONDS),
    ]
    for each in all_of_it:
        each.open()
    yield
    for each in all_of_it:
        await each.close()


async def _operating(app: web.Application) -> AsyncIterator[None]:
    folder = app[keys.SETTINGS].data_dir
    async with operator_socket(folder, app[keys.TOKENS], app[keys.MESSAGES]):
        yield
