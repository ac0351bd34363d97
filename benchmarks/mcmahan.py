"""Rounds to a target accuracy, as in McMahan et al. 2017, Tables 1 and 2: FedAvg's trend on MNIST.

    python benchmarks/mcmahan.py --quick             # 2NN, C = 0.1: two minutes on two cores
    python benchmarks/mcmahan.py                     # the whole table, under 15 minutes on two cores
    python benchmarks/mcmahan.py --write             # into docs/benchmarks/mcmahan.md

K = 100 clients share the first 8,000 of MNIST's 10,000 *test* images (the paper: 60,000 training images), 80
each: IID, or in the paper's pathological split, sorted by label, 200 shards, two for each client. Accuracy is
on the other 2,000, after every round. C is the share of clients in a round (0: one client), E the local
epochs, B the batch size; E = 1, B = ∞ is FedSGD. Figures do not compare with the paper's, orderings do.

2NN is the paper's, 784-200-200-10. CNN has its form (two 5×5 convolutions with 2×2 max-pool, one hidden
layer) with a quarter of its channels and an eighth of its hidden units. One learning rate per model and B,
chosen once for all cells that share it, where the paper tunes every cell.

Trainer and aggregation are the project's own, called in this process: no Flower, no messages. The exit
status is 1 if an ordering of the paper's does not hold.
"""

import argparse
import gzip
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from flax import nnx

from clients.layers import Conv, max_pool_2x2
from clients.losses import accuracy, softmax_cross_entropy
from clients.models import nnx_model
from clients.networks import MLP
from clients.supervised import Supervised
from fl_plugins.aggregation.mean import mean
from fl_plugins.seeds import derive_rng, derive_seed
from fl_plugins.training import ClientData, Dataset, NamedArrays, Task, TrainsCohorts

ROOT = Path(__file__).resolve().parents[1]
NUM_CLIENTS = 100
NUM_TRAIN = 8_000
SHARDS_EACH = 2
WHOLE = NUM_TRAIN // NUM_CLIENTS
"""B = ∞: all of a client's examples."""

LEARNING_RATES = {("2NN", 10): 0.1, ("2NN", WHOLE): 0.4, ("CNN", 10): 0.1, ("CNN", WHOLE): 0.2}
TARGET = {"2NN": 0.90, "CNN": 0.93}
MAX_ROUNDS = 400


class CNN(nnx.Module):
    """The paper's CNN, narrower."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(1, 8, (5, 5), rngs=rngs)
        self.conv2 = Conv(8, 16, (5, 5), rngs=rngs)
        self.dense = nnx.Linear(7 * 7 * 16, 64, rngs=rngs)
        self.output = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = max_pool_2x2(nnx.relu(self.conv1(x)))
        x = max_pool_2x2(nnx.relu(self.conv2(x)))
        return self.output(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


MODELS = {
    "2NN": nnx_model(lambda rngs: MLP(784, 10, hidden=(200, 200), rngs=rngs)),
    "CNN": nnx_model(lambda rngs: CNN(rngs=rngs)),
}


@dataclass(frozen=True)
class Cell:
    """One training: model, distribution, C, E and B."""

    model: str
    split: str
    fraction: float
    epochs: int
    batch: int

    @property
    def cohort_size(self) -> int:
        return max(round(self.fraction * NUM_CLIENTS), 1)

    def describe(self) -> str:
        batch = "∞" if self.batch == WHOLE else str(self.batch)
        return f"{self.model} {self.split} C={self.fraction:g} E={self.epochs} B={batch}"


SPLITS = ("IID", "non-IID")
COMPUTATION = [(1, WHOLE), (5, WHOLE), (1, 10), (5, 10)]
"""(E, B) of Table 2, from FedSGD on."""


def all_cells(*, quick: bool) -> list[Cell]:
    """Return the cells of both tables, each once."""
    cells = []
    for model in ("2NN",) if quick else ("2NN", "CNN"):
        for split in SPLITS:
            cells += [Cell(model, split, 0.1, epochs, batch) for epochs, batch in COMPUTATION]
    if not quick:
        cells += [
            Cell("2NN", split, fraction, 1, batch)
            for batch in (WHOLE, 10)
            for split in SPLITS
            for fraction in (0.0, 0.5, 1.0)
        ]
    return cells


# -- Data -----------------------------------------------------------------------------------------------


def load_mnist10k() -> Dataset:
    """Return the 10,000 images as ``(n, 28, 28, 1)`` in [0, 1] and their labels."""
    folder = Path(os.environ.get("FL_PLUGINS_DATA", ROOT.parent / "shared" / "data")) / "mnist10k"
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no MNIST here; say with FL_PLUGINS_DATA where the folder mnist10k is.")
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return Dataset((pixels.reshape(-1, 28, 28, 1) / 255).astype(np.float32), labels.astype(np.int32))


def deal(train: Dataset, split: str) -> list[Dataset]:
    """Return the clients' examples."""
    rng = derive_rng(0, "mcmahan", split)
    if split == "IID":
        parts = rng.permutation(len(train)).reshape(NUM_CLIENTS, -1)
    else:
        shards = np.argsort(train.y, kind="stable").reshape(NUM_CLIENTS * SHARDS_EACH, -1)
        parts = shards[rng.permutation(len(shards))].reshape(NUM_CLIENTS, -1)
    return [train.take(part) for part in parts]


# -- Training -------------------------------------------------------------------------------------------


def rounds_to_target(cell: Cell, clients: list[Dataset], test: Dataset, *, seed: int) -> tuple[int, float]:
    """Return the first round that reaches the target, or 0, and the best accuracy seen."""
    task = Task(
        name=f"mcmahan_{cell.model}",
        model=MODELS[cell.model],
        loss=softmax_cross_entropy,
        metrics={"accuracy": accuracy},
        load_partition=lambda number, _: ClientData(clients[number], test),
    )
    trainer = Supervised(
        task,
        optimizer="sgd",
        learning_rate=LEARNING_RATES[cell.model, cell.batch],
        local_epochs=cell.epochs,
        batch_size=cell.batch,
    )
    arrays, rng, best = trainer.init(seed=seed), derive_rng(seed, "cohorts", cell.describe()), 0.0
    for number in range(1, MAX_ROUNDS + 1):
        cohort = rng.choice(NUM_CLIENTS, cell.cohort_size, replace=False)
        arrays = one_round(trainer, arrays, [clients[i] for i in cohort], seed=derive_seed(seed, number))
        best = max(best, trainer.evaluate(arrays, test)["accuracy"])
        if best >= TARGET[cell.model]:
            return number, best
    return 0, best


def one_round(trainer: Supervised, arrays: NamedArrays, data: list[Dataset], *, seed: int) -> NamedArrays:
    """Return the mean of the clients' parameters; all clients have equally many examples."""
    seeds = [derive_seed(seed, i) for i in range(len(data))]
    if isinstance(trainer, TrainsCohorts):
        stacked = trainer.train_cohort(arrays, data, seeds=seeds).arrays
    else:
        results = [trainer.train(arrays, part, seed=s).arrays for part, s in zip(data, seeds, strict=True)]
        stacked = {name: np.stack([result[name] for result in results]) for name in arrays}
    return {name: mean(rows.reshape(len(rows), -1)).reshape(rows.shape[1:]) for name, rows in stacked.items()}


# -- The paper's orderings ------------------------------------------------------------------------------


def check(rounds: dict[Cell, int]) -> list[tuple[str, bool]]:
    """Return each ordering that can be checked, and whether it holds; a target not reached counts as last."""
    reached = {cell: number or MAX_ROUNDS + 1 for cell, number in rounds.items()}
    said = []

    def fewer(better: Cell, worse: Cell, why: str) -> None:
        if better in reached and worse in reached and min(reached[better], reached[worse]) <= MAX_ROUNDS:
            holds = reached[better] <= reached[worse]
            said.append((f"{why}: {better.describe()} ≤ {worse.describe()}", holds))

    for cell in reached:
        at = partial(Cell, cell.model, cell.split)
        if (cell.epochs, cell.batch) != (1, WHOLE) and cell.fraction == 0.1:
            fewer(cell, at(0.1, 1, WHOLE), "averaging beats FedSGD")
        if (cell.epochs, cell.batch) == (5, 10):
            fewer(cell, at(cell.fraction, 1, 10), "more epochs, fewer rounds")
            fewer(cell, at(cell.fraction, 5, WHOLE), "smaller batches, fewer rounds")
        if cell.split == "IID":
            fewer(
                cell,
                Cell(cell.model, "non-IID", cell.fraction, cell.epochs, cell.batch),
                "IID is easier",
            )
        if cell.fraction == 0.1 and cell.epochs == 1:
            fewer(cell, at(0.0, 1, cell.batch), "ten clients beat one")
    return said


def table(rounds: dict[Cell, int]) -> list[str]:
    """Return the table: a row per model, C, E and B, a column per split; in brackets, FedSGD's over this."""
    lines = ["| model | target | C | E | B | IID | non-IID |", "|---|---|---|---|---|---|---|"]
    rows = dict.fromkeys((c.model, c.fraction, c.epochs, c.batch) for c in rounds)
    for model, fraction, epochs, batch in sorted(rows, key=lambda r: (r[0], r[1], -r[3], r[2])):
        cells = []
        for split in SPLITS:
            number = rounds.get(Cell(model, split, fraction, epochs, batch))
            sgd = rounds.get(Cell(model, split, fraction, 1, WHOLE))
            gain = f" ({sgd / number:.1f}×)" if number and sgd else ""
            cells.append("–" if number is None else f"{number}{gain}" if number else f"> {MAX_ROUNDS}")
        batch_text = "∞" if batch == WHOLE else str(batch)
        lines.append(
            f"| {model} | {TARGET[model]:.0%} | {fraction:g} | {epochs} | {batch_text} | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2NN with C = 0.1 only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/mcmahan.md")
    options = parser.parse_args(arguments)
    data = load_mnist10k()
    indices = np.arange(len(data))
    train, test = data.take(indices[:NUM_TRAIN]), data.take(indices[NUM_TRAIN:])
    started = time.monotonic()
    rounds: dict[Cell, int] = {}
    for cell in all_cells(quick=options.quick):
        begun = time.monotonic()
        rounds[cell], best = rounds_to_target(cell, deal(train, cell.split), test, seed=options.seed)
        told = (
            f"{rounds[cell] or f'> {MAX_ROUNDS}'} rounds, best {best:.3f}, {time.monotonic() - begun:.0f} s"
        )
        print(f"{cell.describe()}: {told}", file=sys.stderr, flush=True)
    orderings = check(rounds)
    verdicts = [f"- {'holds' if holds else '**does not hold**'}: {text}" for text, holds in orderings]
    print("\n".join([*table(rounds), "", *verdicts, f"\n{time.monotonic() - started:.0f} s"]))
    if options.write:
        path = ROOT / "docs" / "benchmarks" / "mcmahan.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = [
            "# Rounds to a target accuracy (McMahan et al. 2017)",
            "",
            f"Written by `python benchmarks/mcmahan.py --write`, seed {options.seed}. MNIST's 10,000 test "
            "images, 8,000 of them to train on: orderings compare with the paper's Tables 1 and 2, figures "
            "do not. In brackets: FedSGD's rounds (E = 1, B = ∞) over this row's, at the same C.",
            "",
        ]
        path.write_text("\n".join([*head, *table(rounds), "", "The paper's orderings:", "", *verdicts, ""]))
        print(f"written to {path}")
    return int(not all(holds for _, holds in orderings))


if __name__ == "__main__":
    sys.exit(main())
