"""Replicas as monitors see them: their labels, Prometheus' discovery, their cleaned text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from metrics import names
from metrics.exposition import parse, plain, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Target:
    """One replica, or the service itself where it refuses in a deployment's name.

    The same labels mean the same time series: a replica that comes back after a crash keeps
    its ``replica`` and ``version``, and its counters are seen to restart.
    """

    environment: str
    model: str
    replica: str
    run_id: str
    version: str

    @property
    def id(self) -> str:
        """Name of the target in a path: unique, stable, made of unreserved characters."""
        parts = (self.run_id, self.environment, self.version, self.replica)
        return "~".join(quote(part, safe="").replace("~", "%7E") for part in parts)

    @property
    def is_gateway(self) -> bool:
        """Whether these are the refusals that the service answers while no replica serves."""
        return self.replica == names.GATEWAY_REPLICA

    @property
    def labels(self) -> dict[str, str]:
        """The labels that discovery adds to every series of this target."""
        return {name: getattr(self, name) for name in names.IDENTITY_LABELS}


class Reach(NamedTuple):
    """The replicas that are expected to answer: how many can be read, and which cannot."""

    read: int = 0
    unread: tuple[Target, ...] = ()


def metrics_path(target: Target) -> str:
    """Path of the target's metrics on the API's own address."""
    return f"/sd/replicas/{target.id}/metrics"


def discovery(targets: Iterable[Target], address: str) -> list[dict[str, Any]]:
    """Prometheus' http_sd answer: every target at the API's own ``address`` (host:port)."""
    return [
        {
            "targets": [address],
            "labels": {**target.labels, "__metrics_path__": metrics_path(target)},
        }
        for target in sorted(targets)
    ]


def sanitise(text: str, *, info: Mapping[str, str] | None = None) -> str:
    """Rewrite a replica's untrusted exposition: known series with sound values, nothing else.

    ``info`` are the labels of ``inference_model_info`` as the service knows them; they replace
    what the replica says, which could otherwise make a new series with every scrape.

    Raises:
        ExpositionError: the text is over 256 KiB, lacks a series, or a count is none; the
            scrape has failed then, for the embedded monitor as for Prometheus.
    """
    vector, gauges, said = parse(text)
    if info is not None:
        said = {key: plain(info.get(key, "")) for key in names.INFO_LABELS} if info else {}
    return render(vector, gauges, said)
