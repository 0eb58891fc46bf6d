from __future__ import annotations

import re

from metrics.targets import Target, discovery, metrics_path


def target(**changed: str) -> Target:
    labels = {
        "run_id": "r1",
        "model": "Модель №1",
        "environment": "prod",
        "replica": "0",
        "version": "2",
    }
    return Target(**{**labels, **changed})


def test_discovery_lists_each_replica_at_the_apis_own_address() -> None:
    assert discovery([target()], "127.0.0.1:8000") == [
        {
            "targets": ["127.0.0.1:8000"],
            "labels": {
                "run_id": "r1",
                "model": "Модель №1",
                "environment": "prod",
                "replica": "0",
                "version": "2",
                "__metrics_path__": "/sd/replicas/r1~prod~2~0/metrics",
            },
        }
    ]


def test_discovery_of_nothing_is_an_empty_list() -> None:
    assert discovery([], "127.0.0.1:8000") == []


def test_discovery_lists_in_a_stable_order() -> None:
    targets = [target(replica=str(number)) for number in (2, 0, 1)]

    assert discovery(targets, "a:1") == discovery(reversed(targets), "a:1")


def test_a_targets_id_is_one_segment_of_a_path_and_unique() -> None:
    odd = [
        target(run_id="a~b", environment="c"),
        target(run_id="a", environment="b~c"),
        target(run_id="a/../b"),
        target(run_id="a?b#c d"),
        target(replica="gateway"),
    ]

    assert len({one.id for one in odd}) == len(odd)
    for one in odd:
        assert re.fullmatch(r"[A-Za-z0-9._~%-]+", one.id)
        assert metrics_path(one).count("/") == 4


def test_the_gateway_is_told_by_its_replica() -> None:
    assert target(replica="gateway").is_gateway
    assert not target().is_gateway
