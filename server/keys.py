"""Every thing that handlers take from the application."""

from __future__ import annotations

from aiohttp import web

from metrics.service import ServiceInstruments
from server.messages import Messages
from server.pipeline.deploy import Deploy
from server.pipeline.devices import Devices
from server.pipeline.monitor import Monitor
from server.pipeline.prepare import Prepare
from server.pipeline.runs import Runs
from server.pipeline.upload import Upload
from server.reconcile.reconciler import Reconciler
from server.reconcile.scraper import Scraper
from server.sandbox.launch import Sandbox
from server.settings import Settings
from server.store.state import Store

SETTINGS = web.AppKey("settings", Settings)
MESSAGES = web.AppKey("messages", Messages)
STORE = web.AppKey("store", Store)
SANDBOX = web.AppKey("sandbox", Sandbox)
DEVICES = web.AppKey("devices", Devices)
UPLOAD = web.AppKey("upload", Upload)
PREPARE = web.AppKey("prepare", Prepare)
DEPLOY = web.AppKey("deploy", Deploy)
MONITOR = web.AppKey("monitor", Monitor)
RUNS = web.AppKey("runs", Runs)
RECONCILER = web.AppKey("reconciler", Reconciler)
SCRAPER = web.AppKey("scraper", Scraper)
INSTRUMENTS = web.AppKey("instruments", ServiceInstruments)
