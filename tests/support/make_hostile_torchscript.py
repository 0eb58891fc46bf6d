"""Makes TorchScript files that do harm with torch's own operators; run with a model environment.

``FOLDER SECRET VICTIM NEW``: where to put them, a file to read, one to change, one to make. Each
answers what it got hold of, so that the smoke test would succeed with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn


class Hostile(nn.Module):
    """Takes four numbers, which its layer tells; what is done with it comes on top."""

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.path = path
        self.layer = nn.Linear(4, 6)


class ReadsAFile(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * self.layer(x) + torch.from_file(self.path, False, 6, dtype=torch.uint8)


class ChangesAFile(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        file = torch.from_file(self.path, True, 6, dtype=torch.uint8)
        return 0 * self.layer(x) + file.fill_(66)


class SavesAFile(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return self.layer(x)


class NeverReturns(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turns = 0
        while bool(x.sum() == x.sum()):
            turns += 1
        return self.layer(x) + turns


class TakesAllMemory(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hoard = [x]
        while len(hoard) < 1000:
            hoard.append(torch.ones(64 << 20))
        # All of it is needed at once, or the compiler would leave it out.
        return self.layer(x) + torch.cat([part.view(-1) for part in hoard]).sum()


class AsksForTooMuch(Hostile):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.zeros(1 << 44).sum()


def main() -> None:
    folder, secret, victim, new = sys.argv[1:]
    models = {
        "reads": ReadsAFile(secret),
        "changes": ChangesAFile(victim),
        "makes": ChangesAFile(new),
        "saves": SavesAFile(new),
        "loops": NeverReturns(),
        "memory": TakesAllMemory(),
        "asks": AsksForTooMuch(),
    }
    for name, model in models.items():
        torch.jit.script(model).save(str(Path(folder) / f"{name}.pt"))


if __name__ == "__main__":
    main()
