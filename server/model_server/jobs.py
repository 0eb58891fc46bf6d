"""Requests on their way to the model: which of them fit together, and running those."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from server.model_server.batches import Key, joined, parted
from server.model_server.evidence import is_out_of_memory, one_line
from server.model_server.failures import BadInputError, ModelFailure
from server.model_server.runtimes.base import Runtime

logger = logging.getLogger(__name__)

Answer = Dict[str, Any]
Result = Tuple[Any, Optional[Exception]]
"""An answer or a failure; the other one is None."""
Done = Callable[[Optional[Answer], Optional[Exception]], None]


class Job:
    """One request on its way: waiting, running (``started`` is set) or ended."""

    __slots__ = (
        "came",
        "counts",
        "done",
        "inputs",
        "is_left",
        "is_over",
        "key",
        "outputs",
        "rows",
        "started",
    )

    def __init__(
        self,
        inputs: Mapping[str, Any],
        outputs: Optional[Sequence[str]],
        done: Done,
        counts: bool,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.done = done
        self.counts = counts
        self.rows = 0
        self.key: Optional[Key] = None
        self.came = time.perf_counter()
        self.started = 0.0
        self.is_over = False
        # Whether its client says nothing any more, and most likely is gone.
        self.is_left = False


def grouped(jobs: Sequence[Job], max_rows: int) -> List[List[Job]]:
    """Put together what fits, in the order in which it came."""
    if len(jobs) == 1 or max_rows <= 1:
        return [[job] for job in jobs]
    groups: List[List[Job]] = []
    open_groups: Dict[Key, Tuple[List[Job], List[int]]] = {}
    for job in jobs:
        found = open_groups.get(job.key) if job.key is not None else None
        if found is not None and found[1][0] + job.rows <= max_rows:
            found[0].append(job)
            found[1][0] += job.rows
            continue
        group = [job]
        groups.append(group)
        if job.key is not None:
            open_groups[job.key] = (group, [job.rows])
    return groups


def run_together(runtime: Runtime, group: Sequence[Job]) -> Tuple[List[Result], float]:
    """Run the jobs of a group in one call; return their results and the seconds it took.

    Where that fails each is run alone, so that each one's failure is its own.
    """
    began = time.perf_counter()
    for job in group:
        job.started = began
    results = _in_one_call(runtime, group) if len(group) > 1 else None
    if results is None:
        results = [guarded(partial(runtime.predict, job.inputs, job.outputs)) for job in group]
    return results, time.perf_counter() - began


def _in_one_call(runtime: Runtime, group: Sequence[Job]) -> Optional[List[Result]]:
    try:
        answer = runtime.predict(joined([job.inputs for job in group]), group[0].outputs)
        parts = parted(answer, [job.rows for job in group])
    except BaseException:  # noqa: BLE001 - each is tried alone, and its own failure told
        return None
    return None if parts is None else [(part, None) for part in parts]


def guarded(call: Callable[[], Any]) -> Result:
    """Call into a model, whatever it raises."""
    try:
        return call(), None
    except (BadInputError, ModelFailure) as error:
        return None, error
    # A model that calls sys.exit must not end the thread either.
    except BaseException as error:
        if is_out_of_memory(error):
            return None, ModelFailure("model_out_of_memory")
        logger.warning("the model raised", exc_info=True)
        return None, ModelFailure("model_raised", evidence=one_line(error))
