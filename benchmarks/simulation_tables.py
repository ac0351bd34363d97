"""What ``benchmarks/simulation.py`` makes of its measurements: tables, targets met or missed, the page."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from contestants import workload
from contestants.runners import PINNED, RUNNERS

WARM_UP = 2
"""Rounds that do not count."""


@dataclass(frozen=True)
class Sample:
    """One run, measured: per round after warm-up, and in all."""

    seconds: list[float]
    cpu: float
    total: float
    peak: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Case:
    """What is trained, and by how many clients in each round."""

    model: str
    sampled: int

    def __str__(self) -> str:
        return f"{self.model}, {self.sampled} clients per round"


@dataclass(frozen=True)
class Measured:
    """One run of one contestant: what was measured, or why nothing was."""

    case: Case
    name: str
    sample: Sample | None
    problem: str

    @classmethod
    def from_json(cls, line: str) -> "Measured":
        """Return what ``json.dumps(asdict(…))`` wrote."""
        read = json.loads(line)
        sample = read["sample"] and Sample(**read["sample"])
        return cls(Case(**read["case"]), read["name"], sample, read["problem"])


@dataclass(frozen=True)
class Row:
    """One contestant on one model: medians, or why there are none."""

    name: str
    case: Case
    samples: Sequence[Sample]
    problem: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(s for sample in self.samples for s in sample.seconds)

    @property
    def best(self) -> float:
        return min(s for sample in self.samples for s in sample.seconds)

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in self.samples))


def rows_of(runs: Iterable[Measured]) -> dict[Case, list[Row]]:
    """Return each case's contestants, in the order of ``RUNNERS``."""
    runs = list(runs)
    results: dict[Case, list[Row]] = {}
    for case in dict.fromkeys(run.case for run in runs):
        rows = []
        for name in RUNNERS:
            if own := [run for run in runs if (run.case, run.name) == (case, name)]:
                samples = [run.sample for run in own if run.sample is not None]
                rows.append(Row(name, case, samples, own[-1].problem))
        results[case] = rows
    return results


HEADER = (
    "| contestant | s / round | × | best s | CPU-s / round | × | total s | × | peak MiB | steps | loss |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(rows: Sequence[Row]) -> list[str]:
    """Return one model's table; × is the first row's figure over this one's."""
    first = next((row for row in rows if row.samples), None)
    lines = [HEADER]
    for row in rows:
        title = RUNNERS[row.name].title
        if not row.samples or first is None:
            lines.append(f"| {title} | {row.problem} |" + " |" * 9)
            continue
        cells = [
            title,
            f"{row.seconds:.3f}",
            f"{first.seconds / row.seconds:.1f}",
            f"{row.best:.3f}",
            f"{row.median('cpu'):.2f}",
            f"{first.median('cpu') / row.median('cpu'):.1f}",
            f"{row.median('total'):.0f}",
            f"{first.median('total') / row.median('total'):.1f}",
            f"{row.median('peak') / 2**20:.0f}",
            f"{row.samples[-1].steps}",
            f"{row.median('loss'):.4f}{check_work(row, rows)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def check_work(row: Row, rows: Sequence[Row]) -> str:
    """Return what is wrong with a contestant's work: other steps than the rest, or a model that differs."""
    measured = [other for other in rows if other.samples]
    steps = statistics.mode(s.steps for other in measured for s in other.samples)
    usual = statistics.median(other.median("loss") for other in measured)
    chance, loss = workload.chance_loss(row.case.model), row.median("loss")
    if any(s.steps != steps for s in row.samples):
        return " **other work**"
    if not loss < 0.9 * chance:
        return " **does not learn**"
    return " **another model**" if abs(loss - usual) > 0.1 * chance else ""


def targets(rows: Sequence[Row]) -> list[str]:
    """Return the project's targets for the cohort with what was measured."""
    by_name = {row.name: row for row in rows if row.samples}
    lines = []

    def compare(who: str, other: str, least: dict[str, float], what: str) -> None:
        if who in by_name and other in by_name and rows[0].case.model in least:
            of = (lambda row: row.seconds) if what == "s / round" else (lambda row: row.median("total"))
            ratio, bound = of(by_name[other]) / of(by_name[who]), least[rows[0].case.model]
            verdict = "met" if ratio >= bound else "**missed**"
            lines.append(f"| {who} ≥ {bound:.2g}× {other} ({what}) | {ratio:.2f}× | {verdict} |")

    every = dict.fromkeys(workload.MODELS, 1.0)
    if rows[0].case.sampled == workload.NUM_CLIENTS:
        compare("ours-cohort", "floor-2", dict.fromkeys(workload.MODELS, 1 / 1.3), "s / round")
    else:
        compare("ours-cohort", "flwr-torch", {"mlp": 6.0, "lenet": 2.5}, "s / round")
        compare("ours-cohort", "pfl-2", {"mlp": 1.0, "lenet": 1.2}, "s / round")
        compare("ours-cohort", "fedjax", {"mlp": 1.0, "lenet": 1.2}, "s / round")
        compare("ours-cohort", "flwr-torch", dict.fromkeys(workload.MODELS, 2.0), "total s")
        compare("ours-nodes", "flwr-torch", every, "s / round")
    return ["| target | measured | |", "|---|---|---|", *lines] if lines else []


NOTES = "## What it says"
"""From this line on the page is a person's, and stays when the tables are written anew."""


def document(results: dict[Case, list[Row]], *, before: str) -> str:
    """Return docs/benchmarks/simulation.md, with the notes of the page that was there ``before``."""
    lengths = {len(row.samples) for rows in results.values() for row in rows if row.samples}
    counts = " or ".join(map(str, sorted(lengths)))
    lines = [
        "# Simulation speed",
        "",
        f"Written by `python benchmarks/simulation.py --write` on {os.cpu_count()} cores "
        f"({platform.machine()}): medians of the rounds after {WARM_UP} of warm-up; runs of "
        f"each: {counts}. FedAvg, {workload.NUM_CLIENTS} clients × {workload.EXAMPLES} "
        "examples, one epoch, batches of 10. × is the first row's figure over this row's. Quote ratios: the "
        "seconds are this machine's.",
        "",
        "Pinned peers: " + "; ".join(", ".join(pins) for pins in PINNED.values()) + ".",
    ]
    for case, rows in results.items():
        lines += ["", f"## {case}", "", *table(rows)]
        if said := targets(rows):
            lines += ["", *said]
    notes = before[before.index(NOTES) :].rstrip().splitlines() if NOTES in before else []
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])
