import pytest

from server.reconcile.backoff import CRASHES, WINDOW_SECONDS, Crashes


def test_pauses_double_up_to_the_limit() -> None:
    crashes = Crashes()
    assert crashes.retry_at == float("-inf")
    pauses = []
    for at in range(4):
        crashes.add(1, at)
        pauses.append(crashes.retry_at - at)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_five_crashes_within_the_window_are_a_loop() -> None:
    crashes = Crashes()
    for at in range(CRASHES):
        assert not crashes.loops
        crashes.add(1, at)
    assert crashes.loops


def test_several_replicas_may_crash_so_much_more_often() -> None:
    crashes = Crashes()
    for at in range(2 * CRASHES - 1):
        crashes.add(1, at, replicas=2)
    assert not crashes.loops
    crashes.add(1, 2 * CRASHES, replicas=2)
    assert crashes.loops


@pytest.mark.parametrize("replicas", [1, 2, 7, 16])
def test_replicas_that_always_crash_together_are_given_up_in_the_end(replicas: int) -> None:
    crashes, at = Crashes(), 0.0
    for _ in range(CRASHES):
        assert not crashes.loops
        crashes.add(1, at, replicas=replicas, count=replicas)
        at = crashes.retry_at + 1
    assert crashes.loops


def test_old_crashes_are_forgotten() -> None:
    crashes = Crashes()
    for at in range(CRASHES - 1):
        crashes.add(1, at)
    crashes.add(1, WINDOW_SECONDS + CRASHES)
    assert not crashes.loops
    assert crashes.retry_at == WINDOW_SECONDS + CRASHES + 0.5


def test_crashes_of_another_version_do_not_count() -> None:
    crashes = Crashes()
    for at in range(CRASHES - 1):
        crashes.add(1, at)
    crashes.add(2, CRASHES)
    assert not crashes.loops
