"""What a graph's operators tell: whether rows may mix, and whether the work is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.model_server.runtimes.onnx_graph import Facts, read_facts
from tests.support.onnx_files import INT64, bytes_field, linear, model, node, tensor, zipmap

if TYPE_CHECKING:
    from pathlib import Path


def facts_of(
    tmp_path: Path, *nodes: bytes, constants: dict[str, list[float]] | None = None
) -> Facts:
    path = tmp_path / "model.onnx"
    kept = [
        tensor(name, [len(values)], values, INT64) for name, values in (constants or {}).items()
    ]
    path.write_bytes(model(list(nodes), [], [], initializers=kept))
    return read_facts(str(path))


@pytest.mark.parametrize(
    "kind", ["Expand", "Tile", "OneHot", "Pad", "Range", "ConstantOfShape", "Resize", "Loop"]
)
def test_work_that_a_value_asks_for_has_no_bound(kind: str, tmp_path: Path) -> None:
    assert not facts_of(tmp_path, node(kind, ["n", "n", "n"], ["y"])).is_bounded


def test_sizes_from_the_file_or_from_shapes_are_bounds(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Concat", ["shape", "two"], ["sizes"]),
        node("Expand", ["x", "sizes"], ["y"]),
        node("Pad", ["y", "two"], ["z"]),
    ]
    assert facts_of(tmp_path, *nodes, constants={"two": [2]}).is_bounded
    assert not facts_of(tmp_path, *nodes).is_bounded


@pytest.mark.parametrize(
    "mixing",
    [
        node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"]),
        node("ReduceMax", ["x"], ["y"]),
        node("ReduceMax", ["x"], ["y"], axes=[0]),
        node("ReduceSum", ["x", "zero"], ["y"]),
        node("ReduceSum", ["x", "computed"], ["y"]),
        node("ArgMax", ["x"], ["y"]),
        node("Softmax", ["x"], ["y"], axis=0),
        node("CumSum", ["x", "zero"], ["y"]),
        node("MeanVarianceNormalization", ["x"], ["y"]),
        node("BatchNormalization", ["x"], ["y"], training_mode=1),
        node("RandomNormalLike", ["x"], ["y"]),
    ],
    ids=range(11),
)
def test_rows_that_may_mix(mixing: bytes, tmp_path: Path) -> None:
    assert facts_of(tmp_path, mixing, constants={"zero": [0]}).may_mix_rows


@pytest.mark.parametrize(
    "apart",
    [
        node("ReduceMax", ["x"], ["y"], axes=[1, -1]),
        node("ReduceSum", ["x", "one"], ["y"]),
        node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1),
        node("ArgMax", ["x"], ["y"], axis=1),
        node("Softmax", ["x"], ["y"]),
        node("BatchNormalization", ["x"], ["y"]),
    ],
    ids=range(6),
)
def test_rows_that_stay_apart(apart: bytes, tmp_path: Path) -> None:
    assert not facts_of(tmp_path, apart, constants={"one": [1]}).may_mix_rows


def test_a_subgraph_is_read_too(tmp_path: Path) -> None:
    inner = bytes_field(1, node("ReduceMax", ["x"], ["y"]))
    attribute = bytes_field(1, "body") + bytes_field(6, inner)
    outer = node("SequenceMap", ["x"], ["y"])
    # The attribute belongs to the node's message, which ``node`` has framed.
    assert facts_of(tmp_path, outer + bytes_field(5, attribute)).may_mix_rows


@pytest.mark.parametrize("content", [linear(), zipmap()])
def test_ordinary_models_are_bounded_and_keep_rows_apart(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert read_facts(str(path)) == Facts(may_mix_rows=False, is_bounded=True)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", bytes_field(7, bytes_field(1, "x"))[:-1], b"\x0b"]
)
def test_what_cannot_be_read_promises_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert read_facts(str(path)) == Facts(may_mix_rows=True, is_bounded=False)
