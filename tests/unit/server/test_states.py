from itertools import product

import pytest

from server.states import Action, Candidate, Phase, Seen, Wanted, goal, next_action, public_phase

VERSIONS = (None, 1, 2)
CANDIDATES = [(None, None), *product((1, 2), Candidate)]
EVERY_SEEN = [
    Seen(
        serving=serving,
        is_short=is_short and serving is not None,
        candidate=candidate,
        candidate_state=state,
        served=served,
        failed=failed,
        backing_off=backing_off,
    )
    for serving, is_short, (candidate, state), served, failed, backing_off in product(
        VERSIONS, (False, True), CANDIDATES, VERSIONS, VERSIONS, (False, True)
    )
]


@pytest.mark.parametrize("wanted", Wanted)
def test_every_pair_of_wanted_and_seen_has_an_action_and_a_public_phase(wanted: Wanted) -> None:
    for seen in EVERY_SEEN:
        assert next_action(wanted, 2, seen) in Action
        assert public_phase(wanted, 2, seen) in Phase


@pytest.mark.parametrize("wanted", Wanted)
def test_doing_each_action_ends_in_nothing_left_to_do(wanted: Wanted) -> None:
    for start in EVERY_SEEN:
        seen = start
        for _ in range(10):
            action = next_action(wanted, 2, seen)
            if action is Action.NOTHING:
                break
            seen = _after(action, seen)
        assert next_action(wanted, 2, seen) is Action.NOTHING, start


def _after(action: Action, seen: Seen) -> Seen:
    """What is seen after an action that went well, but for the candidate that had failed."""
    values = {name: getattr(seen, name) for name in seen.__slots__}
    match action:
        case Action.START:
            fresh = goal(2, seen)
            values |= {"candidate": fresh, "candidate_state": Candidate.READY}
        case Action.WAIT:
            values |= {"candidate_state": Candidate.READY}
        case Action.ADMIT:
            values |= {"serving": seen.candidate, "served": seen.candidate, "is_short": False}
            values |= {"candidate": None, "candidate_state": None}
        case Action.ABANDON | Action.JUDGE:
            values |= {"candidate": None, "candidate_state": None}
        case Action.STOP:
            values |= {"serving": None, "served": None, "failed": None, "is_short": False}
        case Action.BACK_OFF:
            values |= {"backing_off": False}
        case Action.NOTHING:
            pass
    return Seen(**values)


def test_a_new_version_is_started_beside_the_old_one() -> None:
    assert next_action(Wanted.UP, 2, Seen(serving=1, served=1)) is Action.START


def test_a_version_that_failed_leaves_the_old_one_serving() -> None:
    seen = Seen(serving=1, served=1, failed=2)
    assert next_action(Wanted.UP, 2, seen) is Action.NOTHING
    assert public_phase(Wanted.UP, 2, seen) is Phase.FAILED


def test_the_old_version_is_started_again_after_a_restart_if_the_new_one_had_failed() -> None:
    assert goal(2, Seen(served=1, failed=2)) == 1
    assert next_action(Wanted.UP, 2, Seen(served=1, failed=2)) is Action.START


def test_a_replica_that_is_missing_is_started_beside_the_others() -> None:
    seen = Seen(serving=1, served=1, is_short=True)
    assert next_action(Wanted.UP, 1, seen) is Action.START
    assert public_phase(Wanted.UP, 1, seen) is Phase.SUCCEEDED


def test_a_new_version_comes_before_the_missing_replicas_of_the_old_one() -> None:
    seen = Seen(serving=1, served=1, is_short=True, candidate=1, candidate_state=Candidate.STARTING)
    assert next_action(Wanted.UP, 2, seen) is Action.ABANDON


def test_a_crash_loop_is_not_tried_again() -> None:
    assert next_action(Wanted.UP, 1, Seen(served=1, failed=1)) is Action.NOTHING


def test_stop_during_a_start_ends_the_candidate_first() -> None:
    seen = Seen(serving=1, candidate=2, candidate_state=Candidate.STARTING, served=1)
    assert next_action(Wanted.STOPPED, 2, seen) is Action.ABANDON
