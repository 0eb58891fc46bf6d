from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from server.model_server import batch_proof, batches, batching, scheduling
from server.model_server.batching import Batcher
from server.model_server.failures import ModelFailure
from server.model_server.runtimes.base import Loaded, Runtime, Signature, TensorSpec
from server.model_server.scheduling import Plan, plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAIRS = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
POISON = 666.0


class RowByRow(Runtime):
    """Answers three times its input, each row by itself; a poisoned row fails the whole call."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def load(self, path: str, *, device: str, threads: int) -> Loaded:
        raise NotImplementedError

    def predict(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        del outputs
        self.entered.set()
        self.gate.wait(10)
        rows = inputs["x"]
        self.calls.append(len(rows))
        if (rows == POISON).any():
            raise ValueError("a poisoned row")
        return {"y": self.answer(rows)}

    def answer(self, rows: Any) -> Any:
        return rows * 3


class CentersRows(RowByRow):
    """Lets rows influence each other, as a normalisation over the batch does."""

    def answer(self, rows: Any) -> Any:
        return rows - rows.mean(axis=0)


class MovesRows(RowByRow):
    """Answers its rows in another order."""

    def answer(self, rows: Any) -> Any:
        return np.sort(rows, axis=0)


class Sums(RowByRow):
    """Answers one row whatever came."""

    def answer(self, rows: Any) -> Any:
        return rows.sum(axis=0, keepdims=True)


class Forgets(RowByRow):
    """Answers differently each time."""

    def answer(self, rows: Any) -> Any:
        return rows + len(self.calls)


def row(*values: float) -> dict[str, Any]:
    return {"x": np.array([values or (1.0, 2.0)], dtype=np.float32)}


async def batcher(runtime: Runtime, plan: Plan, **options: Any) -> Batcher:
    loaded = Loaded(signature=PAIRS, framework="none", framework_version="1", device="cpu")
    made = Batcher(seconds=options.pop("seconds", 5.0), **options)
    await made.load(lambda: (runtime, loaded), lambda _runtime: plan)
    return made


TOGETHER = Plan(max_rows=8)


async def test_what_nobody_waits_for_is_not_predicted_after_a_long_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "LEFT_SECONDS", 0.05)
    runtime = RowByRow()
    made = await batcher(runtime, TOGETHER)
    runtime.gate.clear()
    failures: list[Exception | None] = []

    def submit(value: float) -> None:
        job = made.submit(row(value, value), None, lambda _answer, error: failures.append(error))
        job.is_left = True

    submit(0)
    await asyncio.to_thread(runtime.entered.wait, 5)
    submit(1)
    submit(2)
    await asyncio.sleep(0.1)
    runtime.gate.set()
    await made.predict(row(3, 3))

    codes = sorted(getattr(error, "code", "") for error in failures)
    assert codes == ["", "replica_overloaded", "replica_overloaded"]
    assert runtime.calls == [1, 1]
    made.close()


async def test_what_waits_is_answered_in_one_call_and_what_comes_alone_at_once() -> None:
    runtime = RowByRow()
    made = await batcher(runtime, TOGETHER)
    assert (await made.predict(row(1, 2)))["y"].tolist() == [[3, 6]]
    runtime.gate.clear()
    first = asyncio.create_task(made.predict(row(0, 0)))
    await asyncio.sleep(0)
    runtime.entered.clear()
    await asyncio.to_thread(runtime.entered.wait, 5)
    rest = [asyncio.create_task(made.predict(row(i, i))) for i in range(1, 12)]
    await asyncio.sleep(0.01)
    runtime.gate.set()
    await first
    answers = await asyncio.gather(*rest)
    assert [answer["y"].tolist() for answer in answers] == [[[3 * i, 3 * i]] for i in range(1, 12)]
    assert runtime.calls == [1, 1, 8, 3]
    made.close()


async def test_one_turn_of_the_event_loop_is_one_call_where_predictions_are_quick() -> None:
    runtime = RowByRow()
    made = await batcher(runtime, Plan(max_rows=8, inline_elements=8))
    asked = [made.predict(row(i, i)) for i in range(5)]
    large = {"x": np.ones((5, 2), dtype=np.float32)}
    *answers, of_large = await asyncio.gather(*asked, made.predict(large))
    assert [answer["y"][0, 0] for answer in answers] == [0, 3, 6, 9, 12]
    assert of_large["y"].shape == (5, 2)
    assert sorted(runtime.calls) == [5, 5]
    made.close()


async def test_nothing_is_taken_before_the_model_is_there() -> None:
    with pytest.raises(ModelFailure, match="replica_loading"):
        Batcher(seconds=1.0).submit(row(), None, lambda *_: None)


async def test_unequal_shapes_types_and_outputs_are_never_put_together() -> None:
    runtime = RowByRow()
    made = await batcher(runtime, Plan(max_rows=8, inline_elements=100))
    wide = {"x": np.ones((1, 3), dtype=np.float32)}
    double = {"x": np.ones((1, 2), dtype=np.float64)}
    none = {"x": np.ones((0, 2), dtype=np.float32)}
    await asyncio.gather(
        *(made.predict(inputs) for inputs in (row(), wide, row(), double, none, row())),
        made.predict(row(), ["y"]),
    )
    assert sorted(runtime.calls) == [0, 1, 1, 1, 3]
    made.close()


@pytest.mark.parametrize("inline", [0, 100])
async def test_a_bad_request_never_fails_its_neighbours(inline: int) -> None:
    runtime = RowByRow()
    made = await batcher(runtime, Plan(max_rows=8, inline_elements=inline))
    runtime.gate.clear() if not inline else None
    asked = [
        asyncio.create_task(made.predict(row(value, 1))) for value in (1, 2, POISON, 4, 5, 6, 7)
    ]
    await asyncio.sleep(0.02)
    runtime.gate.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    failed = answers.pop(2)
    assert isinstance(failed, ModelFailure)
    assert (failed.code, failed.evidence) == ("model_raised", "ValueError: a poisoned row")
    assert [answer["y"][0, 0] for answer in answers] == [3, 6, 12, 15, 18, 21]  # type: ignore[index]
    made.close()


async def test_several_threads_run_several_predictions_at_once() -> None:
    runtime = RowByRow()
    made = await batcher(runtime, Plan(workers=3))
    runtime.gate.clear()
    asked = [asyncio.create_task(made.predict(row())) for _ in range(3)]
    while sum(job.started > 0 for job in made._jobs) < 3:
        await asyncio.sleep(0.005)
    runtime.gate.set()
    await asyncio.gather(*asked)
    made.close()


async def test_a_full_queue_and_a_long_wait_are_overload() -> None:
    runtime = RowByRow()
    made = await batcher(runtime, Plan(), limit=2, seconds=0.3, grace=60)
    runtime.gate.clear()
    asked = [asyncio.create_task(made.predict(row())) for _ in range(3)]
    await asyncio.sleep(0.02)
    with pytest.raises(ModelFailure) as refused:
        await made.predict(row())
    assert refused.value.code == "replica_overloaded"
    failures = await asyncio.gather(*asked, return_exceptions=True)
    codes = [failure.code for failure in failures]  # type: ignore[union-attr]
    assert codes == ["prediction_timed_out", "replica_overloaded", "replica_overloaded"]
    assert made.is_stuck
    runtime.gate.set()
    while made.is_stuck:
        await asyncio.sleep(0.01)
    assert (await made.predict(row()))["y"].shape == (1, 2)
    made.close()


async def test_a_prediction_that_hangs_in_the_event_loop_is_noticed_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "_WATCH_SECONDS", 0.02)
    runtime = RowByRow()
    noticed: list[str] = []

    def wedged() -> None:
        noticed.append(threading.current_thread().name)
        runtime.gate.set()

    made = await batcher(runtime, Plan(inline_elements=100), seconds=0.1, on_wedged=wedged)
    runtime.gate.clear()
    await made.predict(row())
    assert noticed == ["watch"]
    made.close()


async def test_statistics_count_requests_executions_and_rows() -> None:
    runtime = RowByRow()
    made = await batcher(runtime, Plan(max_rows=8, inline_elements=100))
    done: list[Any] = []
    for value in (1, 2, 3):
        made.submit(row(value, 1), None, lambda *result: done.append(result))
    await made.predict(row())
    stats = made.statistics.described("m", "1")["model_stats"][0]
    assert len(done) == 3
    assert (stats["inference_count"], stats["execution_count"]) == (4, 1)
    assert stats["inference_stats"]["success"]["count"] == 3
    made.close()


# ── the proof


def proven(runtime: Runtime, signature: Signature = PAIRS, **inputs: Any) -> dict[str, Any]:
    given = inputs or row(0.5, 0.25)
    return batch_proof.prove_batching(runtime, signature, given)


def test_rows_that_keep_to_themselves_are_proven_and_their_gain_measured() -> None:
    found = proven(RowByRow())
    assert found["equal"]
    assert found["gain"] > 0


@pytest.mark.parametrize("runtime", [CentersRows(), MovesRows(), Sums(), Forgets()])
def test_rows_that_influence_each_other_are_found_out(runtime: Runtime) -> None:
    assert proven(runtime) == {"equal": False}


def test_what_has_no_free_first_dimension_or_cannot_be_varied_is_not_proven() -> None:
    fixed = Signature((TensorSpec("x", "FP32", (1, 2)),), PAIRS.outputs)
    whole = Signature(PAIRS.inputs, (TensorSpec("y", "FP32", (1,)),))
    text = Signature((TensorSpec("x", "BYTES", (-1,)),), PAIRS.outputs)
    assert proven(RowByRow(), fixed) == {"equal": False}
    assert proven(RowByRow(), whole) == {"equal": False}
    assert proven(RowByRow(), text, x=np.array([b"a"], dtype=object)) == {"equal": False}
    assert proven(RowByRow(), PAIRS, x=np.ones((0, 2), dtype=np.float32)) == {"equal": False}


def test_integers_are_varied_among_the_values_that_were_seen() -> None:
    integers = Signature((TensorSpec("x", "INT64", (-1, 2)),), (TensorSpec("y", "INT64", (-1, 2)),))
    assert proven(RowByRow(), integers, x=np.array([[3, 9]]))["equal"]
    assert proven(CentersRows(), integers, x=np.array([[0, 0]])) == {"equal": False}


class QuantizesTogether(RowByRow):
    """Looks tokens up and rounds them by a scale that all rows share, as dynamic quantisation does."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = np.array(values)

    def answer(self, rows: Any) -> Any:
        found = self.values[rows]
        scale = (max(found.max(), 0) - min(found.min(), 0)) / 255
        return np.round(found / scale) * scale


@pytest.mark.parametrize("values", [(0.31, 2.2), (2.2, 0.31)])
def test_a_scale_that_all_rows_share_is_found_out_by_rows_of_one_value(
    values: tuple[float, ...],
) -> None:
    tokens = Signature((TensorSpec("x", "INT64", (-1, 16)),), (TensorSpec("y", "FP64", (-1, 16)),))
    given = np.zeros((1, 16), dtype=np.int64)
    assert proven(QuantizesTogether(*values), tokens, x=given) == {"equal": False}


# ── the plan

QUICK = {"latency_ms": {"p95": 0.1}, "measured_elements": 10}
SLOW = {"latency_ms": {"p95": 12.0}, "measured_elements": 10}


def test_a_plan_follows_from_what_was_measured() -> None:
    some = {"threads": 4, "is_concurrent": True, "is_bounded": True}
    assert plan_of({}, **some) == Plan(framework_threads=1)
    quick = plan_of(QUICK, **some)
    assert (quick.inline_elements, quick.workers, quick.max_rows) == (200, 4, 1)
    assert plan_of(SLOW, **some) == Plan(workers=4, framework_threads=1)
    endless = {"latency_ms": {"p95": 500.0}}
    assert plan_of(endless, **some) == Plan(workers=1, framework_threads=4)


def test_what_is_not_known_to_be_safe_is_not_done() -> None:
    loops = plan_of(QUICK, threads=4, is_concurrent=True, is_bounded=False)
    assert loops.inline_elements == 0
    single = plan_of(SLOW, threads=4, is_concurrent=False, is_bounded=True)
    assert (single.workers, single.framework_threads) == (1, 4)
    for batching_found, rows in (
        ({"equal": True, "gain": 4.0}, scheduling.MAX_ROWS),
        ({"equal": True, "gain": 1.0}, 1),
        ({"equal": False, "gain": 9.0}, 1),
        ({}, 1),
    ):
        found = {**SLOW, "batching": batching_found}
        assert plan_of(found, threads=1, is_concurrent=True, is_bounded=True).max_rows == rows


@pytest.mark.parametrize(("p95", "rows"), [(0.1, 64), (12.0, 64), (100.0, 10), (800.0, 1)])
def test_what_runs_together_ends_long_before_its_deadline(p95: float, rows: int) -> None:
    found = {"latency_ms": {"p95": p95}, "batching": {"equal": True, "gain": 2.0}}
    assert plan_of(found, threads=2, is_concurrent=True, is_bounded=True).max_rows == rows


def test_an_answer_is_taken_apart_only_if_it_has_a_row_for_each() -> None:
    answer = {"y": np.arange(6).reshape(3, 2), "z": np.arange(3)}
    parts = batches.parted(answer, [1, 2])
    assert parts is not None
    assert [part["z"].tolist() for part in parts] == [[0], [1, 2]]
    assert batches.parted({**answer, "z": np.arange(2)}, [1, 2]) is None
    assert batches.parted({"y": np.float32(1)}, [1]) is None
    assert batches.rows_of({"a": np.ones((2, 1)), "b": np.ones(3)}) == 0
    assert batches.rows_of({"a": np.ones(())}) == 0
