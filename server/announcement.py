"""What the operator reads first: where the service is and what it works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server import __version__, keys
from server.sandbox.levels import Level

if TYPE_CHECKING:
    from aiohttp import web

    from gpu.devices import Snapshot
    from server.messages import Messages
    from server.sandbox.launch import Sandbox


async def announcement(app: web.Application, host: str, port: int) -> str:
    """Return the lines that are printed once the service listens."""
    settings = app[keys.SETTINGS]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "localhost"
    name = f"[{host}]" if ":" in host else host
    url = settings.public_url or f"http://{name}:{port}"
    snapshot = await app[keys.DEVICES].snapshot()
    lines = [
        f"Persephone {__version__} is ready on {url}",
        f"  API reference  {url}/docs",
        f"  GPUs           {_gpus(app[keys.MESSAGES], snapshot)}",
        *_laptop_hint(snapshot, offered=settings.offer_cpu),
        *_sandbox(app[keys.SANDBOX]),
        f"  monitoring     {settings.prometheus_url or 'embedded'}",
        f"  data           {settings.data_dir}",
    ]
    return "\n".join(lines) + "\n"


def _sandbox(sandbox: Sandbox) -> list[str]:
    level = sandbox.level
    lines = [f"  sandbox        level {level.value}: {', '.join(sandbox.layers)}"]
    lines += [f"                 {problem}" for problem in sandbox.problems]
    if level < Level.KERNEL:
        said = "run all the same" if sandbox.is_lenient else "refused"
        lines.append(f"                 models that can hold code (all but ONNX) are {said}")
    return lines


def _gpus(messages: Messages, snapshot: Snapshot) -> str:
    if not snapshot.devices:
        return messages.render(snapshot.problem, language="en") if snapshot.problem else "none"
    return ", ".join(
        f"{device.name} ({device.memory_total_bytes / 1024**3:.0f} GiB)"
        for device in snapshot.devices
    )


def _laptop_hint(snapshot: Snapshot, *, offered: bool) -> list[str]:
    if snapshot.devices or offered:
        return []
    return [
        "                 the page needs a device to choose: PERSEPHONE_OFFER_CPU=true make run"
    ]
