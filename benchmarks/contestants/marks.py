"""What a contestant tells the benchmark: one JSON line per round that ended, and one when all is done."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Marks:
    """Unix times at which rounds ended; SGD steps of all rounds; the last model's loss on the test data."""

    rounds: list[float]
    steps: int
    loss: float


class MarkWriter:
    """Appends to the file that the benchmark named."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def round_ended(self) -> None:
        """Say that a round has ended now."""
        self._append({"time": time.time()})

    def done(self, *, steps: int, loss: float) -> None:
        """Say what was done in all."""
        self._append({"steps": int(steps), "loss": float(loss)})

    def _append(self, entry: dict[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def contestant_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every contestant is told: model, rounds, and where its marks go."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--marks", required=True)
    return parser


def read_marks(path: Path) -> Marks:
    """Return what was written.

    Raises
    ------
    ValueError
        If the contestant did not come to its end.
    """
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not entries or "loss" not in entries[-1]:
        raise ValueError(f"{path}: {len(entries)} marks, but no last line; the contestant did not finish")
    return Marks([e["time"] for e in entries[:-1]], entries[-1]["steps"], entries[-1]["loss"])
