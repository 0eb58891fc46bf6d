"""Makes the TorchScript models that the runtime tests load; started with a model environment's Python.

Beside each model stands ``NAME.json``: inputs, and what the framework itself answers to them.
Needs nothing of the product.
"""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn


def note(folder: Path, name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    content = {"inputs": inputs, "outputs": outputs}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def keep(folder: Path, name: str, module: Any, *given: Any, trace: bool = False) -> None:
    module = module.eval()
    made = torch.jit.trace(module, given) if trace else torch.jit.script(module)
    made.save(str(folder / f"{name}.bin"))
    with torch.no_grad():
        answer = module(*given)
    if isinstance(answer, torch.Tensor):
        names = [argument.name for argument in made.forward.schema.arguments[1:]]
        arrays = {name: tensor.tolist() for name, tensor in zip(names, given)}  # noqa: B905
        note(folder, name, arrays, {"output_0": answer.tolist()})


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 2)
        self.right = nn.Linear(5, 2)

    def forward(self, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.left(b)) - self.right(a)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[torch.Tensor]]:
        y = self.layer(x)
        return y, {"sum": y.sum(1), "first": y[:, 0]}, [y + 1, y + 2]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(ids).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.transpose(1, 2) * 2)[:, :3]


class NeverFinite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) / torch.zeros(2)


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if y.size(0) >= 0:
            raise ValueError("always, see /etc/hostname")
        return y


class NoForward(nn.Module):
    @torch.jit.export
    def score(self, x: torch.Tensor) -> torch.Tensor:
        return x


class TakesText(nn.Module):
    def forward(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x if name else -x


class Part(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)


def convolution(size: int) -> Any:
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * (size // 2) ** 2, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), head)


def make_working(folder: Path) -> None:
    keep(
        folder,
        "linear",
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
        torch.rand(3, 4),
    )
    keep(folder, "traced", nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.rand(2, 4), trace=True)
    keep(folder, "two_inputs", TwoInputs(), torch.rand(2, 3), torch.rand(2, 5))
    keep(folder, "nested", Nested(), torch.rand(2, 4))
    keep(folder, "fixed_images", convolution(28), torch.rand(2, 1, 28, 28))
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    keep(folder, "any_images", pooled, torch.rand(1, 3, 9, 8))
    keep(folder, "words", Words(), torch.tensor([[1, 2, 3]]))
    keep(folder, "recurrent", Recurrent(), torch.rand(1, 2, 3))
    keep(folder, "half", nn.Linear(4, 2).to(torch.bfloat16), torch.rand(1, 4).to(torch.bfloat16))
    keep(folder, "unknown", Unknown(), torch.rand(2, 5, 3))
    keep(folder, "never_finite", NeverFinite(), torch.rand(1, 4))
    torch.jit.script(Raises()).save(str(folder / "raises.bin"))


def make_other_files(folder: Path) -> None:
    plain = nn.Linear(4, 2)
    torch.save(plain.state_dict(), folder / "state_dict.bin")
    old = folder / "state_dict_old.bin"
    torch.save(plain.state_dict(), old, _use_new_zipfile_serialization=False)
    torch.save(plain, folder / "module.bin")
    torch.save({"epoch": 3, "model": plain.state_dict(), "lr": 0.1}, folder / "checkpoint.bin")


def change(folder: Path, name: str, old: bytes, new: bytes) -> None:
    """Write a working model again with something else in its code or in its version."""
    with zipfile.ZipFile(folder / "whole.bin") as whole:
        files = {member: whole.read(member) for member in whole.namelist()}
    with zipfile.ZipFile(folder / f"{name}.bin", "w") as changed:
        for member, content in files.items():
            changed.writestr(member, content.replace(old, new))


def make_changed(folder: Path) -> None:
    torch.jit.script(NoForward()).save(str(folder / "no_forward.bin"))
    torch.jit.script(TakesText()).save(str(folder / "takes_text.bin"))
    torch.jit.script(Whole()).save(str(folder / "whole.bin"))
    change(folder, "no_operator", b"torch.relu(", b"ops.own.relu(")
    change(folder, "no_class", b"class Part(", b"class Other(")
    change(folder, "too_new", b"3\n", b"99\n")
    (folder / "garbage.bin").write_bytes(b"nothing of torch")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    make_working(folder)
    make_other_files(folder)
    make_changed(folder)


if __name__ == "__main__":
    main()
