"""Makes programs of torch.export, and notes their answers; started with a model environment's Python."""

from __future__ import annotations

import io
import json
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

warnings.simplefilter("ignore")

BATCH = Dim("batch", min=1, max=16)


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, rows: Any) -> Any:
        return torch.softmax(self.layer(rows), 1)


class Nested(torch.nn.Module):
    def forward(self, parts: Any, pair: Any, count: int, *, scale: float = 1.0) -> Any:
        made = (parts["a"] + parts["b"][0]) * count * scale
        return {"made": made, "more": (pair[0].sum(), None, count, 7)}


class Half(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.seen.add_(1)
        return x + self.seen


class Complex(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.to(torch.complex64)


def numbers(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def rewritten(source: Path, target: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(source) as made, zipfile.ZipFile(target, "w") as changed:
        for entry in made.infolist():
            changed.writestr(entry.filename, made.read(entry.filename).replace(old, new))


def old_format(program: Any, target: Path) -> None:
    """Write what torch.export.save wrote before torch 2.8."""
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    made = serialize(program)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", made.exported_program)
        archive.writestr("serialized_state_dict.pt", made.state_dict)
        archive.writestr("serialized_constants.pt", made.constants)
        archive.writestr("serialized_example_inputs.pt", made.example_inputs)


class Own:
    pass


def with_example(source: Path, target: Path, example: Any) -> None:
    """Give a program other pickled examples of its inputs."""
    pickled = io.BytesIO()
    torch.save(example, pickled)
    with zipfile.ZipFile(source) as made, zipfile.ZipFile(target, "w") as changed:
        for entry in made.infolist():
            is_example = "/sample_inputs/" in entry.filename
            data = pickled.getvalue() if is_example else made.read(entry.filename)
            changed.writestr(entry.filename, data)


def main() -> None:
    folder = Path(sys.argv[1])

    def save(
        name: str, net: Any, args: Any, kwargs: Any = None, shapes: Any = None, **noted: Any
    ) -> Any:
        program = torch.export.export(net.eval(), args, kwargs, dynamic_shapes=shapes)
        torch.export.save(program, folder / f"{name}.bin")
        if noted:
            (folder / f"{name}.json").write_text(json.dumps(noted), encoding="utf-8")
        return program

    linear = Linear()
    rows = torch.rand(5, 4)
    noted = {"inputs": {"rows": rows.tolist()}, "outputs": {"output_0": linear(rows).tolist()}}
    first = ({0: BATCH},)
    program = save("linear", linear, (torch.zeros(3, 4),), None, first, **noted)
    old_format(program, folder / "old.bin")
    (folder / "old.json").write_text(json.dumps(noted), encoding="utf-8")
    fixed = {
        "inputs": {"rows": rows[:3].tolist()},
        "outputs": {"output_0": linear(rows[:3]).tolist()},
    }
    save("fixed", linear, (torch.zeros(3, 4),), **fixed)

    parts = {"a": torch.ones(2), "b": [torch.ones(2)]}
    pair = (torch.ones(3), torch.ones(1))
    shapes = {
        "parts": {"a": None, "b": [None]},
        "pair": (None, None),
        "count": Dim.DYNAMIC,
        "scale": None,
    }
    asked = {"parts_a": [1.0, 2.0], "parts_b_0": [3.0, 4.0], "pair_0": [1.0, 2.0, 3.0]}
    asked |= {"pair_1": [0.0], "count": 4}
    answered = {"made": [8.0, 12.0], "more_0": 6.0, "more_2": 4, "more_3": 7}
    save(
        "nested",
        Nested(),
        (parts, pair, 5),
        {"scale": 0.5},
        shapes,
        inputs=asked,
        outputs=answered,
    )
    save("half", Half(), (torch.zeros(2, dtype=torch.bfloat16),))
    save("counting", Counting(), (torch.zeros(2),))
    save("complex", Complex(), (torch.zeros(2),))
    source = folder / "linear.bin"
    rewritten(source, folder / "newer.bin", b'"major": 8', b'"major": 900')
    rewritten(source, folder / "operator.bin", b"aten.softmax.int", b"mine.softmax.int")
    rewritten(
        source,
        folder / "on_gpu.bin",
        b'"type": "cpu", "index": null',
        b'"type": "cuda", "index": 0',
    )
    rewritten(source, folder / "damaged.bin", b"graph_module", b"graph_nodule")
    with_example(source, folder / "own_class.bin", ((Own(),), {}))


if __name__ == "__main__":
    main()
