from __future__ import annotations

from metrics.source import SourceChoice


def test_without_prometheus_the_embedded_monitor_answers() -> None:
    choice = SourceChoice(prometheus=False)

    assert choice.current == "embedded"
    assert choice.prometheus_is_up is None
    assert not choice.probe_due(1000.0)


def test_prometheus_is_asked_until_the_third_failure_in_a_row() -> None:
    choice = SourceChoice(prometheus=True)
    for _ in range(5):
        choice.failed(0.0)
        choice.failed(0.0)
        assert choice.current == "prometheus"
        choice.succeeded()
    for _ in range(3):
        choice.failed(0.0)

    assert choice.current == "embedded"
    assert choice.prometheus_is_up is False


def test_it_is_probed_every_five_seconds_and_asked_again_once_it_is_back() -> None:
    choice = SourceChoice(prometheus=True)
    for _ in range(3):
        choice.failed(100.0)

    assert not choice.probe_due(104.9)
    assert choice.probe_due(105.0)
    assert not choice.probe_due(105.1)
    choice.failed(105.2)
    assert not choice.probe_due(109.9)
    assert choice.probe_due(110.0)
    choice.returned()
    assert choice.current == "prometheus"
    assert choice.prometheus_is_up is True
    assert not choice.probe_due(200.0)


def test_after_it_came_back_it_takes_three_failures_again() -> None:
    choice = SourceChoice(prometheus=True)
    for _ in range(3):
        choice.failed(0.0)
    choice.returned()
    choice.succeeded()
    choice.failed(1.0)

    assert choice.current == "prometheus"
    assert choice.prometheus_is_up is False


def test_one_that_is_ready_and_fails_at_once_is_given_up_again() -> None:
    choice = SourceChoice(prometheus=True)
    for _ in range(3):
        choice.failed(0.0)
    for round_ in range(1, 4):
        assert choice.probe_due(5.0 * round_)
        choice.returned()
        assert choice.current == "prometheus"
        choice.failed(5.0 * round_)
        assert choice.current == "embedded"
        assert not choice.probe_due(5.0 * round_ + 4.9)
