from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.errors import BusyError, StorageFullError
from server.messages import LANGUAGES, Messages
from server.pipeline import quotas
from server.pipeline.quotas import Disk, Stored
from server.records import Run
from server.settings import Settings

GIB = 1024**3
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTINGS = Settings(
    max_runs=10,
    max_runs_per_owner=3,
    max_runs_per_hour=2,
    max_stored_bytes_per_owner=1000,
    max_stored_percent=50,
    keep_free_bytes=100,
)
DISK = Disk(total_bytes=10_000, free_bytes=5_000)


def run(number: int, size: int = 10, digest: str = "") -> Run:
    return Run(
        run_id=f"{number:032x}",
        owner="me",
        model=f"{number:032x}",
        file_name="m.onnx",
        size_bytes=size,
        digest=digest or f"{number:064x}",
        created_at=NOON + timedelta(minutes=number),
    )


def refused(decide: Any, *args: Any) -> tuple[str, dict[str, Any]]:
    with pytest.raises(BusyError) as caught:
        decide(*args)
    error = caught.value
    for language in LANGUAGES:
        text = Messages().render(error.code, error.params, language)
        # It says how much is used and how much may be.
        assert str(error.params["used"]) in text
        assert str(error.params["limit"]) in text
        assert "{" not in text
    assert error.params["retry_after_seconds"] >= 1
    return error.code, error.params


def test_streams_are_bounded_for_each_owner_and_leave_half_of_the_connections() -> None:
    few = replace(SETTINGS, max_streams=10, max_streams_per_owner=2, max_connections=12)
    quotas.check_streams(few, 1, 5)
    assert refused(quotas.check_streams, few, 2, 2)[0] == quotas.STREAMS
    code, params = refused(quotas.check_streams, few, 0, 6)
    assert (code, params["limit"]) == (quotas.STREAMS_TOTAL, 6)


def test_a_run_more_is_let_in_up_to_the_limit() -> None:
    quotas.check_run(SETTINGS, Stored(own_runs=2, all_runs=9, own_ages=(10.0,)))


def test_too_many_runs_of_an_owner_name_the_one_to_delete() -> None:
    runs = (run(3), run(1), run(2))
    code, params = refused(quotas.check_run, SETTINGS, Stored(own_runs=3, runs=runs))
    assert (code, params["run"]) == ("quota_runs", run(1).run_id)

    deployed = Stored(own_runs=3, runs=runs, deployed={run(1).run_id})
    assert refused(quotas.check_run, SETTINGS, deployed)[1]["run"] == run(2).run_id


def test_too_many_runs_within_an_hour_say_when_the_next_one_may_come() -> None:
    stored = Stored(own_ages=(600.0, 60.0))
    code, params = refused(quotas.check_run, SETTINGS, stored)
    assert code == "quota_runs_per_hour"
    assert params["retry_after_seconds"] == 3000
    assert params["minutes"] == 50

    # A limit that was lowered since: more than one has to grow old.
    stored = Stored(own_ages=(3000.0, 600.0, 60.0))
    assert refused(quotas.check_run, SETTINGS, stored)[1]["retry_after_seconds"] == 3000


def test_too_many_runs_in_all_are_refused_to_everybody() -> None:
    assert refused(quotas.check_run, SETTINGS, Stored(all_runs=10))[0] == "quota_runs_total"


def test_bytes_are_let_in_up_to_the_owners_limit() -> None:
    quotas.check_bytes(SETTINGS, Stored(own_bytes=400, all_bytes=400), DISK, 600)
    stored = Stored(own_bytes=400, runs=(run(1, 300), run(2, 100)))
    code, params = refused(quotas.check_bytes, SETTINGS, stored, DISK, 601)
    assert (code, params["run"]) == ("quota_stored", run(1).run_id)


def test_the_run_to_delete_is_the_one_that_frees_the_most() -> None:
    twice = [run(1, 500, "a" * 64), run(2, 500, "a" * 64)]
    assert quotas.largest(Stored(runs=(*twice, run(3, 100), run(4, 50)))) == run(3).run_id
    assert quotas.largest(Stored(runs=tuple(twice))) in {one.run_id for one in twice}
    deployed = {run(3, 100).run_id}
    assert quotas.largest(Stored(runs=(run(3, 100), run(4, 50)), deployed=deployed)) == (
        run(4).run_id
    )
    assert quotas.largest(Stored()) == quotas.oldest(Stored()) == ""


def test_everybodys_share_of_the_disk_is_a_limit() -> None:
    quotas.check_bytes(SETTINGS, Stored(all_bytes=4_900), DISK, 100)
    code, _ = refused(quotas.check_bytes, SETTINGS, Stored(all_bytes=4_900), DISK, 101)
    assert code == "quota_stored_total"


def test_a_disk_without_room_is_full_whatever_the_quotas_say() -> None:
    quotas.check_bytes(SETTINGS, Stored(), replace(DISK, free_bytes=600), 500)
    with pytest.raises(StorageFullError, match="disk_full"):
        quotas.check_bytes(SETTINGS, Stored(), replace(DISK, free_bytes=600), 501)
    with pytest.raises(StorageFullError, match="disk_full"):
        # What other uploads were promised is not free.
        quotas.check_bytes(SETTINGS, Stored(), replace(DISK, promised_bytes=4_500), 500)


def test_of_a_small_disk_less_is_kept_free() -> None:
    settings = Settings()
    assert settings.kept_free(100 * GIB) == GIB
    assert settings.kept_free(GIB) == GIB // 10


def test_preparations_are_limited_for_an_owner_and_in_all() -> None:
    settings = Settings(
        prepare_concurrency=2, max_queued_preparations=3, max_queued_preparations_per_owner=2
    )
    quotas.check_preparation(settings, own=1, everybody=3)
    quotas.check_preparation(settings, own=0, everybody=4)
    assert refused(quotas.check_preparation, settings, 1, 4)[0] == "quota_preparations_total"
    assert refused(quotas.check_preparation, settings, 2, 2)[0] == "quota_preparations"
    assert refused(quotas.check_preparation, settings, 0, 5)[0] == "quota_preparations_total"


def test_deployments_and_replicas_are_limited_for_an_owner_and_in_all() -> None:
    settings = Settings(max_deployments_per_owner=2, max_replicas_per_owner=5, max_replicas=8)
    quotas.check_deployment(settings, [1], [1, 2], 4)
    check = quotas.check_deployment
    assert refused(check, settings, [1, 1], [1, 1], 1)[0] == "quota_deployments"
    assert refused(check, settings, [2], [2], 4)[0] == "quota_replicas"
    assert refused(check, settings, [2], [2, 4], 3)[0] == "quota_replicas_total"


def test_new_sessions_of_an_address_are_limited() -> None:
    quotas.check_session(2, [10.0])
    code, params = refused(quotas.check_session, 2, [10.0, 3000.0])
    assert (code, params["retry_after_seconds"]) == ("quota_sessions", 600)


def test_sizes_read_well() -> None:
    assert [quotas.mebibytes(size) for size in (0, 1024**2, 5 * GIB, 1_500_000)] == [
        "0",
        "1",
        "5120",
        "1.4",
    ]
