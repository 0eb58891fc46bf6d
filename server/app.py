"""The composition: the only place that builds the parts and joins them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from gpu.inventory import Inventory
from metrics.client import PrometheusClient
from metrics.embedded import EmbeddedMonitor
from metrics.persistence import dump
from metrics.service import ServiceInstruments
from server import keys
from server.api import monitor, prepare
from server.api.edge import setup_edge
from server.api.gateway import GATEWAY, Gateway
from server.api.openapi import Reference
from server.api.replies import Remembered
from server.engines.local import LocalEngine
from server.environments.build import Environments
from server.environments.trees import build_tree
from server.messages import Messages
from server.pipeline.deploy import Deploy
from server.pipeline.devices import Devices
from server.pipeline.monitor import Monitor
from server.pipeline.prepare import Prepare
from server.pipeline.runs import Runs
from server.pipeline.specs import SpecMaker
from server.pipeline.steps import Workshop
from server.pipeline.upload import Upload
from server.reconcile.keeper import Hooks
from server.reconcile.reconciler import Reconciler
from server.reconcile.scraper import Scraper
from server.routes import routes
from server.sandbox.launch import Sandbox
from server.sandbox.orphans import end_orphans
from server.states import Step
from server.store.blobs import Blobs, sweep_folders
from server.store.database import Database
from server.store.history import keep_history, load_history
from server.store.sessions import Sessions
from server.store.state import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.settings import Settings

logger = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 30.0
_DATABASE = web.AppKey("database", Database)
_BLOBS = web.AppKey("blobs", Blobs)
_INVENTORY = web.AppKey("inventory", Inventory)
_ENVIRONMENTS = web.AppKey("environments", Environments)
_MODEL_TREE = web.AppKey("model_tree", Path)
_INSPECT_TREE = web.AppKey("inspect_tree", Path)
_EMBEDDED = web.AppKey("embedded", EmbeddedMonitor)
_SESSIONS = web.AppKey("sessions", Sessions)


def create_app(settings: Settings) -> web.Application:
    """Return the service on a data folder that the caller owns."""
    app = web.Application(client_max_size=settings.max_upload_bytes)
    definitions = list(routes(Reference(settings)))
    database = Database(settings.database)
    store = Store(database)
    sessions = Sessions(database)
    instruments = ServiceInstruments(
        CollectorRegistry(),
        routes=[definition.path for definition in definitions],
        environments=settings.environments,
        steps=[step.value for step in Step],
    )
    app[keys.SETTINGS] = settings
    app[keys.MESSAGES] = Messages()
    app[keys.INSTRUMENTS] = instruments
    app[keys.STORE] = store
    app[_DATABASE] = database
    app[_SESSIONS] = sessions
    app[_BLOBS] = Blobs(settings.data_dir / "blobs")
    app[_INVENTORY] = Inventory()
    app[keys.DEVICES] = Devices(settings, store, app[_INVENTORY])
    app[keys.UPLOAD] = Upload(store, app[_BLOBS])
    app[prepare.REMEMBERED] = Remembered()
    app[monitor.REMEMBERED] = Remembered()
    app.add_routes(definitions)
    setup_edge(app, settings, app[keys.MESSAGES], sessions, instruments.request)
    app.cleanup_ctx.extend(
        [_store, _devices, _monitoring, _environments, _serving, _preparing, _housekeeping]
    )
    return app


async def _store(app: web.Application) -> AsyncIterator[None]:
    await app[_DATABASE].open()
    await app[keys.STORE].open()
    await app[_BLOBS].open()
    await app[_BLOBS].sweep_orphans(app[keys.STORE].digests())
    root, runs = app[keys.SETTINGS].data_dir, app[keys.STORE].runs
    await asyncio.to_thread(sweep_folders, root / "models", runs)
    await asyncio.to_thread(sweep_folders, root / "specs", ())
    yield
    await app[_DATABASE].close()


async def _devices(app: web.Application) -> AsyncIterator[None]:
    await app[_INVENTORY].open()
    yield
    await app[_INVENTORY].close()


async def _monitoring(app: web.Application) -> AsyncIterator[None]:
    settings = app[keys.SETTINGS]
    embedded = app[_EMBEDDED] = EmbeddedMonitor()
    await asyncio.to_thread(load_history, embedded, _history(settings))
    app[keys.SCRAPER] = Scraper(
        app[keys.STORE],
        embedded,
        seconds=settings.scrape_seconds,
        scraped=lambda ok, seconds: app[keys.INSTRUMENTS].scrape(seconds, ok=ok),
    )
    async with aiohttp.ClientSession() as session:
        url = settings.prometheus_url
        prometheus = PrometheusClient(session, url) if url else None
        app[keys.MONITOR] = Monitor(app[keys.STORE], embedded, prometheus)
        app[keys.SCRAPER].open()
        yield
        await app[keys.SCRAPER].close()
    await asyncio.to_thread(keep_history, dump(embedded), _history(settings))


def _history(settings: Settings) -> Path:
    return settings.data_dir / "history.json"


async def _environments(app: web.Application) -> AsyncIterator[None]:
    root = app[keys.SETTINGS].data_dir
    app[_ENVIRONMENTS] = Environments(app[keys.SETTINGS], root / "environments")
    app[_MODEL_TREE] = await asyncio.to_thread(build_tree, root / "trees", "model_server")
    app[_INSPECT_TREE] = await asyncio.to_thread(build_tree, root / "trees", "inspect")
    await app[_ENVIRONMENTS].open()
    yield
    await app[_ENVIRONMENTS].close()


async def _serving(app: web.Application) -> AsyncIterator[None]:
    settings, store, scraper = app[keys.SETTINGS], app[keys.STORE], app[keys.SCRAPER]
    sandbox = app[keys.SANDBOX] = await Sandbox.probe()
    engine = LocalEngine(settings, sandbox, app[keys.MESSAGES], scraper.refused)
    await asyncio.to_thread(end_orphans, settings.data_dir)
    await engine.open()
    maker = SpecMaker(settings, store, app[_ENVIRONMENTS], app[_MODEL_TREE])
    instruments = app[keys.INSTRUMENTS]

    hooks = Hooks(
        make_spec=maker.make,
        joined=scraper.joined,
        left=scraper.left,
        unused=app[keys.DEVICES].release_if_unused,
        restarted=lambda key: instruments.restart(key.environment),
        ended=lambda key, result: instruments.deploy(key.environment, result),
    )
    reconciler = app[keys.RECONCILER] = Reconciler(store, engine, hooks)
    app[keys.DEPLOY] = Deploy(settings, store, app[keys.DEVICES], reconciler)
    app[GATEWAY] = Gateway(settings.predict_seconds)
    yield
    await reconciler.close()
    await engine.close()
    await app[GATEWAY].close()


async def _preparing(app: web.Application) -> AsyncIterator[None]:
    settings, store = app[keys.SETTINGS], app[keys.STORE]
    root = settings.data_dir
    instruments = app[keys.INSTRUMENTS]
    workshop = Workshop(
        settings=settings,
        blobs=app[_BLOBS],
        devices=app[keys.DEVICES],
        environments=app[_ENVIRONMENTS],
        sandbox=app[keys.SANDBOX],
        models=root / "models",
        specs=root / "specs",
        model_tree=app[_MODEL_TREE],
        inspect_tree=app[_INSPECT_TREE],
        observe=instruments.step,
    )
    app[keys.PREPARE] = Prepare(
        store, app[keys.DEVICES], workshop, concurrency=settings.prepare_concurrency
    )
    app[keys.RUNS] = Runs(
        store,
        app[_BLOBS],
        root / "models",
        app[keys.PREPARE],
        app[keys.RECONCILER],
        app[keys.MONITOR],
    )
    await app[keys.PREPARE].open()
    app[keys.RECONCILER].open()
    yield
    await app[keys.PREPARE].close()


async def _housekeeping(app: web.Application) -> AsyncIterator[None]:
    async def keep_house() -> None:
        while True:
            try:
                await app[keys.DEVICES].expire_leases()
                await app[_SESSIONS].forget_expired(time.time())
                await asyncio.to_thread(
                    keep_history, dump(app[_EMBEDDED]), _history(app[keys.SETTINGS])
                )
            except Exception:
                logger.exception("housekeeping failed; it is tried again")
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    task = asyncio.create_task(keep_house())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
