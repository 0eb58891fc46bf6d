"""Every setting: name, default, meaning; read once at start and passed by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from metrics.objectives import Objective
from server import setting_values as read
from server.promises import (
    LATENCY_MS,
    PERCENT,
    by_environment,
    in_environment,
    pause,
    window,
    window_text,
)
from server.setting_values import PREFIX, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@lru_cache(maxsize=64)
def is_loopback_host(name: str) -> bool:
    """Whether a host's name or address means this machine only."""
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _setting(default: Any, parse: Callable[[str], Any], about: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator chose. Field ``name`` is read from ``PERSEPHONE_NAME``."""

    host: str = _setting("127.0.0.1", read.host, "Address the API listens on.")
    port: int = _setting(8000, read.port, "Port the API listens on; 0 takes a free one.")
    data_dir: Path = _setting(
        Path("data"), Path, "Folder of everything the service keeps; one service per folder."
    )
    database_url: str = _setting(
        "",
        read.database_url,
        "SQLAlchemy URL of the database; empty means SQLite in the data folder.",
    )
    cors_origins: tuple[str, ...] = _setting(
        ("http://localhost:3000", "http://127.0.0.1:3000"),
        read.origins,
        "Exact origins of the UI, separated by commas. `*` is refused.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        read.names,
        "Further values of the Host header (without port) that are ours; loopback names, "
        "PERSEPHONE_HOST and the host of PERSEPHONE_PUBLIC_URL always are.",
    )
    public_url: str = _setting(
        "", read.url, "Address under which users reach the API, if it differs from host and port."
    )
    cookie_samesite: str = _setting(
        "lax",
        read.choice("lax", "strict", "none"),
        "SameSite of the session cookie; `none` (a UI on another site) implies Secure.",
    )
    inference_auth: str = _setting(
        "auto",
        read.choice("auto", "token", "open"),
        "Who may predict: `auto` is open while every listener is loopback and PERSEPHONE_PUBLIC_URL "
        "names no other host, else as `token`; "
        "`token` lets the owner's session and tokens through the gateway, and tokens limited to a "
        "model to its own address; `open` lets everybody.",
    )
    engine: str = _setting("local", read.choice("local"), "Where replicas run.")
    environments: tuple[str, ...] = _setting(
        ("dev", "stage", "prod"), read.environments, "Names of the environments."
    )
    replicas: tuple[tuple[str, int], ...] = _setting(
        (),
        read.replicas,
        "Replicas of a deployment that asks for no number: one number, or one for each "
        "environment as in `dev=1,prod=4`; empty means one.",
    )
    endpoint_ports: tuple[int, int] = _setting(
        (20000, 29999), read.ports, "Ports for the deployments' own addresses."
    )
    max_upload_bytes: int = _setting(524_288_000, read.positive, "Largest artifact, in bytes.")
    offer_cpu: bool = _setting(
        False,
        read.flag,
        "Adds the entry `cpu` to the GPU list, so that the page works on a laptop.",
    )
    allow_cpu_fallback: bool = _setting(
        False,
        read.flag,
        "A model that was given a GPU and runs on the CPU is a warning, not a failure.",
    )
    prometheus_url: str = _setting(
        "", read.url, "Prometheus to ask for the figures; empty means the embedded monitor."
    )
    slo_availability: tuple[tuple[str, float], ...] = _setting(
        (("dev", 95.0), ("stage", 99.0), ("prod", 99.9)),
        by_environment(*PERCENT, "a percentage"),
        "Percentage of requests without an error that a deployment promises: one number, or one "
        "for each environment.",
    )
    slo_latency_ms: tuple[tuple[str, float], ...] = _setting(
        (("", 500.0),),
        by_environment(*LATENCY_MS, "milliseconds"),
        "Duration within which answers are quick enough, in milliseconds; as above.",
    )
    slo_latency_share: tuple[tuple[str, float], ...] = _setting(
        (("dev", 90.0), ("stage", 95.0), ("prod", 99.0)),
        by_environment(*PERCENT, "a percentage"),
        "Percentage of answers that a deployment promises to give within that; as above.",
    )
    slo_window: str = _setting(
        "30d", window_text, "Time over which that is promised, as in `30d`; 30 days at most."
    )
    probe_seconds: float = _setting(
        60.0, pause, "How often a deployment that nobody uses is probed; 0 is never."
    )
    wheel_index: str = _setting(
        "", read.url, "Package index of model environments; empty means uv's default."
    )
    wheel_index_cpu: str = _setting(
        "", read.url, "Package index asked first for CPU devices (CPU builds of torch)."
    )
    wheel_links: tuple[str, ...] = _setting(
        (), read.names, "Folders or pages with further wheels, separated by commas."
    )
    pythons: tuple[str, ...] = _setting(
        (),
        read.names,
        "Further Python interpreters for models that the service's own cannot run.",
    )
    log_format: str = _setting("console", read.choice("console", "json"), "Form of the log lines.")
    log_level: str = _setting(
        "info", read.choice("debug", "info", "warning", "error"), "Least level that is logged."
    )
    otlp_endpoint: str = _setting(
        "",
        read.otlp_endpoint,
        "OpenTelemetry collector to which traces are sent (OTLP over HTTP); empty means no traces.",
    )
    scrape_seconds: float = _setting(
        2.0, read.scrape_interval, "How often the embedded monitor scrapes; 4 seconds at most."
    )
    prepare_concurrency: int = _setting(2, read.positive, "Preparations that run at the same time.")
    load_seconds: float = _setting(120.0, read.seconds, "Deadline for loading a model.")
    smoke_seconds: float = _setting(30.0, read.seconds, "Deadline for the smoke test.")
    environment_seconds: float = _setting(
        900.0, read.seconds, "Deadline for building a model environment."
    )
    inspect_seconds: float = _setting(120.0, read.seconds, "Deadline for inspecting an artifact.")
    predict_seconds: float = _setting(10.0, read.seconds, "Deadline of one prediction.")
    drain_seconds: float = _setting(
        3.0, read.seconds, "How long a replaced replica keeps answering on open connections."
    )
    lease_seconds: float = _setting(
        1800.0, read.seconds, "How long a prepared run that is not deployed keeps its GPU."
    )
    model_memory_bytes: int = _setting(
        8 * 1024**3,
        read.positive,
        "Largest memory of a model process, in bytes: address space on the CPU, resident on a GPU.",
    )
    model_users: tuple[int, int] = _setting(
        (60706, 61183),
        read.users,
        "Numbers of the users that model processes become, one each, if the service is root.",
    )
    allow_unsandboxed: bool = _setting(
        False,
        read.flag,
        "Runs models that can hold code (all but ONNX) also where they cannot be shut in.",
    )
    max_connections: int = _setting(512, read.positive, "Connections to the API.")
    max_connections_per_address: int = _setting(64, read.positive, "The same from one address.")
    max_sessions_per_hour: int = _setting(120, read.positive, "New sessions from one address.")
    max_uploads: int = _setting(4, read.positive, "Uploads at once.")
    max_uploads_per_owner: int = _setting(2, read.positive, "The same of one session.")
    max_runs: int = _setting(10_000, read.positive, "Runs that are kept.")
    max_runs_per_owner: int = _setting(100, read.positive, "The same of one session.")
    max_runs_per_hour: int = _setting(60, read.positive, "Runs that one session makes in an hour.")
    max_stored_percent: int = _setting(
        80, read.percent, "Share of the disk for artifacts and models."
    )
    max_stored_bytes_per_owner: int = _setting(
        5 * 1024**3, read.positive, "The same of one session."
    )
    keep_free_bytes: int = _setting(
        1024**3, read.positive, "Room on the disk that nothing may use up; at most a tenth of it."
    )
    max_queued_preparations: int = _setting(
        20, read.positive, "Preparations that wait for a place."
    )
    max_queued_preparations_per_owner: int = _setting(10, read.positive, "The same of one session.")
    max_deployments_per_owner: int = _setting(20, read.positive, "Deployments of one session.")
    max_replicas: int = _setting(128, read.positive, "Replicas of all deployments together.")
    max_replicas_per_owner: int = _setting(32, read.positive, "The same of one session.")
    max_streams: int = _setting(256, read.positive, "Callers that follow events or logs.")
    max_streams_per_owner: int = _setting(16, read.positive, "The same of one session.")
    keep_abandoned_seconds: float = _setting(
        90 * 24 * 3600.0,
        pause,
        "How long a run is kept that is not deployed and whose owner has neither a session nor a "
        "token left; 0 keeps it for ever.",
    )
    keep_environments_seconds: float = _setting(
        7 * 24 * 3600.0, read.seconds, "How long a model environment is kept that no run uses."
    )
    package_cache_bytes: int = _setting(
        5 * 1024**3, read.positive, "Downloaded packages kept that no model environment uses."
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read ``PERSEPHONE_*``.

        Raises:
            SettingsError: a name is unknown or a value cannot be used; says which and why.
        """
        table = {PREFIX + spec.name.upper(): spec for spec in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            spec = table.get(name)
            if spec is None:
                raise SettingsError(f"{name} is not a setting; docs/settings.md lists them")
            try:
                values[spec.name] = spec.metadata["parse"](text)
            except ValueError as error:
                raise SettingsError(f"{name}={text!r} cannot be used: expected {error}") from None
        cls._check_names(values)
        # Child processes are given paths too, and none of them starts in our folder.
        values["data_dir"] = values.get("data_dir", Path("data")).absolute()
        return cls(**values)

    @classmethod
    def _check_names(cls, values: Mapping[str, Any]) -> None:
        known = {"", *values.get("environments", cls().environments)}
        for setting in ("replicas", "slo_availability", "slo_latency_ms", "slo_latency_share"):
            for name, _number in values.get(setting, ()):
                if name not in known:
                    raise SettingsError(
                        f"{PREFIX}{setting.upper()} names {name!r}, which is no environment"
                    )

    def kept_free(self, disk_bytes: int) -> int:
        """Return how many bytes of a disk of that size have to stay free; of a small one not all."""
        return min(self.keep_free_bytes, disk_bytes // 10)

    def replicas_in(self, environment: str) -> int:
        """Return how many replicas a deployment has that asks for no number."""
        return int(in_environment(self.replicas, environment, 1))

    def objective_in(self, environment: str) -> Objective:
        """Return what a deployment promises whose run says nothing."""
        return Objective(
            availability=in_environment(self.slo_availability, environment, 99.0),
            latency_seconds=in_environment(self.slo_latency_ms, environment, 500.0) / 1000,
            latency_share=in_environment(self.slo_latency_share, environment, 95.0),
            seconds=window(self.slo_window),
        )

    @property
    def is_loopback(self) -> bool:
        """Whether every listener is reachable from this machine only."""
        return is_loopback_host(self.host)

    @property
    def is_published(self) -> bool:
        """Whether users reach the API by a name of their own, so through a proxy of some kind."""
        return bool(self.public_url) and not is_loopback_host(
            urlsplit(self.public_url).hostname or ""
        )

    @property
    def endpoint_host(self) -> str:
        """Address on which the deployments' own ports listen."""
        return "127.0.0.1" if self.is_loopback else self.host

    @property
    def own_address(self) -> str:
        """Host and port under which programs of this machine reach the API."""
        anywhere = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared
        host = anywhere.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def replica_host(self) -> str:
        """Address under which the service itself reaches the deployments' own ports."""
        anywhere = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared
        return anywhere.get(self.endpoint_host, self.endpoint_host)

    @property
    def inference_is_open(self) -> bool:
        """Whether predictions need no identification."""
        is_near = self.is_loopback and not self.is_published
        return self.inference_auth == "open" or (self.inference_auth == "auto" and is_near)

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'persephone.db'}"
