"""A machine with GPUs that are not there: a compiled stand-in for NVIDIA's library and its world."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.needs import need

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU, or one MIG instance (``uuid`` "-" is a hole in the numbering). Memory in MiB."""

    uuid: str
    name: str = "NVIDIA A100-SXM4-80GB"
    total: int = 81_920
    used: int = 450
    utilization: int = 0
    """Below zero: the driver does not tell."""
    error: int = 0
    """NVML's return code of every call on this card."""
    pids: tuple[int, ...] = ()
    memory_utilization: int = 0
    milliwatts: int = 52_000
    """Of these two as well: below zero, the driver does not tell."""
    celsius: int = 34
    instances: tuple[Card, ...] = ()
    mig: bool = False

    def lines(self, kind: str = "gpu") -> list[str]:
        pids = ",".join(str(pid) for pid in self.pids)
        is_mig = int(self.mig or bool(self.instances))
        fields = (self.total, self.used, self.utilization, self.error, is_mig, pids)
        fields += (self.memory_utilization, self.milliwatts, self.celsius)
        own = "|".join([kind, self.uuid, self.name, *(str(value) for value in fields)])
        return [own, *(line for card in self.instances for line in card.lines("mig"))]


@dataclass
class World:
    """What the fake library sees; every method rewrites the file that it reads at every call."""

    folder: Path
    cards: list[Card] = field(default_factory=list)
    init_code: int = 0
    driver: str = "550.54.15"
    failing: dict[str, int] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    xids: list[tuple[str, int]] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, *cards: Card) -> World:
        """Compile the library into ``folder``; skips the test where there is no compiler."""
        compiler = need("gcc", "gcc libc6-dev")
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / LIBRARY
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-D_GNU_SOURCE"]
        command += [f"-Wl,-soname,{LIBRARY}", "-o", str(target), str(SOURCE)]
        subprocess.run(command, check=True)
        world = cls(folder=folder, cards=list(cards))
        world.write()
        return world

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which a process finds this world instead of a driver."""
        return {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML_WORLD": str(self._file)}

    def show(self, *cards: Card) -> None:
        """Let these be all the cards."""
        self.cards = list(cards)
        self.write()

    def change(self, uuid: str, **changes: object) -> None:
        """Change the card with this UUID."""
        self.cards = [
            replace(card, **changes) if card.uuid == uuid else card  # type: ignore[arg-type]
            for card in self.cards
        ]
        self.write()

    def run_on(self, uuid: str, *pids: int, used: int | None = None) -> None:
        """Put these compute processes, and no others, on a card."""
        changes: dict[str, object] = {"pids": pids}
        if used is not None:
            changes["used"] = used
        self.change(uuid, **changes)

    def break_init(self, code: int) -> None:
        """Let the library refuse to start with this return code; 0 heals it."""
        self.init_code = code
        self.write()

    def fail(self, function: str, code: int) -> None:
        """Let one function answer this return code; 0 heals it."""
        self.failing[function] = code
        self.write()

    def hang(self, *functions: str) -> None:
        """Let exactly these functions never return; none heals new processes."""
        self.hanging = set(functions)
        self.write()

    def lose(self, uuid: str) -> None:
        """Let a card fall off the bus."""
        self.change(uuid, error=15)

    def report_xid(self, uuid: str, number: int) -> None:
        """Let the driver tell of an error, once, to whoever listens to the card."""
        self.xids.append((uuid, number))
        self.write()

    def calls(self, function: str) -> int:
        """Count the calls of a function up to now."""
        if not self._calls.exists():
            return 0
        return self._calls.read_text().split().count(function)

    def write(self) -> None:
        """Write the file in one step, as a process may be reading it."""
        lines = [f"calls|{self._calls}", f"init|{self.init_code}", f"driver|{self.driver}"]
        lines += [f"fail|{function}|{code}" for function, code in self.failing.items()]
        lines += [f"hang|{function}" for function in sorted(self.hanging)]
        lines += [f"xid|{uuid}|{number}" for uuid, number in self.xids]
        lines += [line for card in self.cards for line in card.lines()]
        draft = self._file.with_suffix(".draft")
        draft.write_text("\n".join(lines) + "\n")
        draft.replace(self._file)

    @property
    def _file(self) -> Path:
        return self.folder / "world.txt"

    @property
    def _calls(self) -> Path:
        return self.folder / "calls.txt"
