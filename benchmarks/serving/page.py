"""Writes ``docs/benchmarks.md`` and the picture in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT
from benchmarks.serving.reporting import HEAD, OURS, STARTS_HEAD, figure, median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.serving.reporting import Results

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "benchmarks.svg"
_WIDTH, _LEFT, _BAR, _STEP = 760, 210, 18, 26
_TITLES = {
    "small": "Small model (scaler and logistic regression, 30 numbers)",
    "larger": "Larger model (magika, 2,048 numbers)",
}
_INTRODUCTION = """\
# Benchmarks

Persephone beside other ways to serve a model, all on one machine, in turns, under the same load.
`make bench-serving` measures everything again and writes this page; it takes about half an hour,
most of it under load. The programs of the peers, with their settings, are in
[benchmarks/serving/peers](../benchmarks/serving/peers); [benchmarks/README.md](../benchmarks/README.md)
has the other benchmarks.

![Requests per second at 16 connections](benchmarks.svg)
"""
_METHOD = """\
## How it was measured

- One worker of each peer against one replica of Persephone, which runs with all its defaults:
  uploaded, prepared, deployed, in its sandbox, with metrics, limits and validation.
- Each server is started afresh in every round, loaded by `wrk` (one thread, on the same cores) with
  one request again and again, and ended. Figures are medians over the rounds, ratios are medians of
  the ratios within rounds: other work on a machine slows both sides alike.
- The numbers of each server's first answer are compared with those of onnxruntime before it is loaded;
  under load only the statuses are looked at. All run onnxruntime on the CPU with one thread within
  a call.
- Persephone knows the head of a request that came before by its bytes, and does not read it again: that
  `wrk` repeats one request suits it, as it does for clients that keep their connections.
- *Cold start* is from the start of the process to the first right answer; of Persephone from
  `POST /deploy/start` to the same. *RSS* and *PSS* are those of the whole process tree, after the
  loads. *CPU* is user and system time of the tree; of Persephone the service's own is in it.
- */ onnxruntime* is requests per second by calls per second of `InferenceSession.run` in a loop in
  one thread, measured just before.
- *binary* is the binary extension of Open Inference Protocol, for the servers that take it: MLServer
  answers it with 500 over HTTP, LitServe, BentoML, MLflow and Ray Serve have a JSON of their own.
- The handlers of aiohttp and FastAPI check nothing, count nothing and limit nothing.
"""
_MEMORY = """\
**Memory.** A replica of a model of a few bytes held 77 MiB after its start: 28 of its own (Python's objects
and modules, onnxruntime's session) and 49 of libraries (onnxruntime's 24, the interpreter, numpy with
OpenBLAS, OpenSSL), which lie in memory once for all processes that use them; its PSS was 42 MiB. So what
another replica costs is nearer to PSS. Two processes of the sandbox, 4 MiB, are in both.
"""


_TIME = """\
**Time.** Of the 22 µs that a prediction of the small model takes at 16 connections, 6 are the kernel's, for
reading and writing sockets, and some 5 are a call of onnxruntime, less where several are put together. What
is left is Python, so the ratio to another Python server depends on the processor: one on which a handler of
aiohttp reached half as many requests a second gave 3.4 at 16 connections and 3.9 at 64, and 14.6 and 10.8
beside Triton.
"""


def write(results: Results, saved: dict[str, Any]) -> None:
    """Write the page and its picture."""
    PICTURE.write_text(_picture(results), encoding="utf-8")
    parts = [_INTRODUCTION, _METHOD, _machine(saved), _verdicts(results), _TIME, _MEMORY]
    for model in results.models:
        parts.append(f"## {_TITLES[model]}\n")
        parts.append(table(STARTS_HEAD, results.starts(model)))
        parts.append(table(HEAD, results.table(model)))
    parts.append("## Two workers each\n")
    for model in results.models:
        rows = results.table(model, 2)
        if rows:
            parts.append(f"{_TITLES[model]}:\n")
            parts.append(table(HEAD, rows))
    parts.append(_failures(results))
    PAGE.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _machine(saved: dict[str, Any]) -> str:
    machine = saved["machine"]
    versions = "; ".join(
        f"{saved['titles'].get(name, name)}: "
        + ", ".join(f"{package} {version}" for package, version in packages.items())
        for name, packages in saved["versions"].items()
    )
    return (
        f"- {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, no GPU; "
        f"Linux {machine['kernel']}; Python {machine['python']}; {machine['wrk']}; "
        f"rounds: {saved['rounds']}, seconds of a load: {saved['seconds']}; {saved['date']}; load average of the "
        f"machine meanwhile {machine['load_average']}.\n- {versions}.\n"
    )


def _verdicts(results: Results) -> str:
    rows = [
        (name, f"{ratio:.2f}", target, "met" if met else "**missed**")
        for name, ratio, target, met in results.verdicts()
    ]
    return "## Ratios\n\n" + table(("ratio", "figure", "target", ""), rows)


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    lines = [
        f"- {results.titles[failed['server']]}, {failed['model']} model, "
        f"{failed['workers']} worker(s): {failed['why']}"
        for failed in results.failures
    ]
    return "## What did not serve\n\n" + "\n".join(lines) + "\n"


def _picture(results: Results) -> str:
    shapes: list[str] = []
    top = 30
    for model in results.models:
        shapes.append(_text(10, top, f"{_TITLES[model]}: requests/s, 16 connections, JSON", "bold"))
        top += 14
        servers = results.servers(model, 1)
        rates = [median(results.of(name, model, "JSON", 16), "rps") for name in servers]
        for name, rate in zip(servers, rates, strict=True):
            width = max(1.0, rate / max(rates) * (_WIDTH - _LEFT - 90))
            colour = "#0f766e" if name == OURS else "#94a3b8"
            shapes.append(_text(_LEFT - 8, top + 14, results.titles[name], anchor="end"))
            shapes.append(
                f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
            )
            shapes.append(_text(_LEFT + width + 6, top + 14, figure(rate)))
            top += _STEP
        top += 34
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        f'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "start") -> str:
    said = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="#0f172a" font-weight="{weight}" '
        f'text-anchor="{anchor}">{said}</text>'
    )
