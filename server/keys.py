"""Every thing that handlers take from the application."""

from __future__ import annotations

from aiohttp import web

from gpu.telemetry import GpuTelemetry
from metrics.service import ServiceInstruments
from server.messages import Messages
from server.pipeline.deploy import Deploy
from server.pipeline.devices import Devices
from server.pipeline.monitor import Monitor
from server.pipeline.objectives import Objectives
from server.pipeline.prepare import Prepare
from server.pipeline.runs import Runs
from server.pipeline.tokens import Tokens
from server.pipeline.upload import Upload
from server.pipeline.usage import Usage
from server.reconcile.observing import Observing
from server.reconcile.reconciler import Reconciler
from server.reconcile.scraper import Scraper
from server.sandbox.launch import Sandbox
from server.settings import Settings
from server.store.run_logs import RunLogs
from server.store.state import Store

SETTINGS = web.AppKey("settings", Settings)
MESSAGES = web.AppKey("messages", Messages)
LOGS = web.AppKey("logs", RunLogs)
STORE = web.AppKey("store", Store)
SANDBOX = web.AppKey("sandbox", Sandbox)
DEVICES = web.AppKey("devices", Devices)
UPLOAD = web.AppKey("upload", Upload)
USAGE = web.AppKey("usage", Usage)
PREPARE = web.AppKey("prepare", Prepare)
DEPLOY = web.AppKey("deploy", Deploy)
MONITOR = web.AppKey("monitor", Monitor)
OBJECTIVES = web.AppKey("objectives", Objectives)
RUNS = web.AppKey("runs", Runs)
TOKENS = web.AppKey("tokens", Tokens)
OBSERVING = web.AppKey("observing", Observing)
RECONCILER = web.AppKey("reconciler", Reconciler)
SCRAPER = web.AppKey("scraper", Scraper)
GPU_TELEMETRY = web.AppKey("gpu_telemetry", GpuTelemetry)
INSTRUMENTS = web.AppKey("instruments", ServiceInstruments)
