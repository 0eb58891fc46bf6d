"""Serving: this service and its peers with the same models under the same load.

Peers are installed into environments of their own under ``.cache``; results are kept there as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, run, say, scratch, service, table, verdict
from benchmarks.serving import page
from benchmarks.serving.environments import PINS, environment
from benchmarks.serving.known_peers import PEERS
from benchmarks.serving.loads import Model
from benchmarks.serving.measuring import Measuring
from benchmarks.serving.reporting import HEAD, STARTS_HEAD, Results
from benchmarks.serving.servers import Ours, Peer

RESULTS = ROOT / ".cache" / "serving.json"
MODELS = ("small", "larger")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    parser.add_argument("--only", default="", help="peers to measure, with commas between")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--one-worker", action="store_true", help="leave out two workers each")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--again", action="store_true", help="show the last results, measure none")
    return parser.parse_args()


def make_models(folder: Path, names: list[str]) -> dict[str, Model]:
    """Train the small model and take the larger one out of its package."""
    made = environment("tools")
    if made.failure:
        raise SystemExit(f"the models cannot be made: {made.failure}")
    program = Path(__file__).with_name("make_models.py")
    done = subprocess.run(
        [made.python, program, folder], capture_output=True, text=True, check=True
    )
    described = json.loads(done.stdout.splitlines()[-1])
    return {name: Model.of(name, folder, described[name]) for name in names}


async def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Install, measure and return everything as it is saved."""
    only = set(filter(None, asked.only.split(",")))
    peers = [peer for peer in PEERS if not only or peer.name in only]
    for peer in peers:
        await asyncio.to_thread(environment, peer.name)
    loads = [os.getloadavg()[0]]
    with scratch() as folder:
        models = make_models(folder, asked.models.split(","))
        measuring = Measuring(environment("tools").python, folder, asked.seconds)
        async with service(folder) as (started, caller):
            ours = await Ours.ship(started, caller, models)
            servers: list[Ours | Peer] = [ours, *peers]
            several = [server for server in servers if server.takes_workers]
            for number in range(1, asked.rounds + 1):
                for model in models.values():
                    await measuring.round(number, model, servers)
                    if not asked.one_worker:
                        await measuring.round(number, model, several, workers=2)
                    loads.append(os.getloadavg()[0])
        sizes = {name: model.mib for name, model in models.items()}
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "rounds": asked.rounds,
        "seconds": asked.seconds,
        "machine": {**machine(), "load_average": f"{min(loads):.1f} to {max(loads):.1f}"},
        "versions": {
            "tools": versions("tools"),
            **{peer.name: versions(peer.name) for peer in peers},
        },
        "titles": {server.name: server.title for server in servers},
        "models": sizes,
        "rows": measuring.rows,
        "failures": measuring.failures,
    }


def versions(name: str) -> dict[str, str]:
    """Return the versions of what was pinned for a peer."""
    pinned = [pin.split("==")[0] for pin in PINS[name]]
    return {pin: version.split("==")[1] for pin, version in zip(pinned, PINS[name], strict=True)}


def machine() -> dict[str, Any]:
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return {
        "processor": cpu[1].strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "wrk": " ".join((wrk.stdout + wrk.stderr).split()[:2]),
    }


def show(saved: dict[str, Any]) -> Results:
    """Print the tables and the ratios."""
    results = Results(saved)
    for model in results.models:
        for workers in (1, 2):
            if results.servers(model, workers):
                say(f"\n{model} model, {workers} worker(s) each\n")
                table(STARTS_HEAD, results.starts(model, workers))
                say()
                table(HEAD, results.table(model, workers))
    say()
    for failed in results.failures:
        say(
            f"{results.titles[failed['server']]}, {failed['model']} model, "
            f"{failed['workers']} worker(s), does not serve: {failed['why']}"
        )
    for name, ratio, target, met in results.verdicts():
        verdict(name, ratio, target, met=met)
    return results


async def main() -> None:
    asked = arguments()
    if asked.again:
        saved = json.loads(RESULTS.read_text())
    else:
        saved = await measure(asked)
        RESULTS.write_text(json.dumps(saved, indent=1))
    results = show(saved)
    if asked.docs:
        page.write(results, saved)


if __name__ == "__main__":
    run(main)
