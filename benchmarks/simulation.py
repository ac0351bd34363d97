"""Seconds per round of the same federation in several simulators, side by side in one run.

    python benchmarks/simulation.py --install-peers           # once: virtual environments with pinned peers
    python benchmarks/simulation.py --quick                   # the MLP, one repeat, a few minutes
    python benchmarks/simulation.py --write                   # everything, into docs/benchmarks/simulation.md
    python benchmarks/simulation.py --runners flwr-torch,ours-cohort --models lenet

FedAvg, 100 clients of 100 examples, 20 of them per round, one local epoch, batches of 10, plain SGD
(``benchmarks/contestants/workload.py``). Every contestant runs in a process tree of its own, one at a time;
they take turns within each repeat, so that the machine's other load hits all of them. Per model and
contestant, over the rounds after two of warm-up, medians over all repeats:

=============  ===============================================================================================
s / round      wall clock from the end of one round to the end of the next
CPU-s / round  CPU-seconds of the whole process tree
total s        from the start of the first process to the end of the last, all rounds, with compilation
peak MiB       resident memory summed over the tree's processes (shared pages count in each)
loss           the last model's, on data that no client has
=============  ===============================================================================================

A contestant that made another number of SGD steps than the others, or did not learn, is marked and the exit
status is 1. Linux only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from contestants import workload
from contestants.marks import Marks, read_marks
from contestants.measure import Usage, run_measured

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
PEERS = ROOT / ".venv-peers"
HERE = Path(sys.executable)
WARM_UP = 2
ROUNDS = 12
TIMEOUT_S = 900
FEDERATION = "fraction_train={fraction}, fraction_evaluate=0.0"

PINNED = {
    "flwr": ["flwr[simulation]==1.41.0", "torch==2.13.0"],
    "pfl": ["pfl==0.6.0", "torch==2.13.0"],
    # The newest on PyPI; it needs `jax.tree_map` given back to it (contestants/fedjax_runner.py).
    "fedjax": ["fedjax==0.0.17", "jax==0.10.2", "jaxlib==0.10.2", "dm-haiku==0.0.17"],
}
"""Each peer's virtual environment and what is in it."""


@dataclass(frozen=True)
class Run:
    """One run that is asked for: where it leaves its marks and logs is its folder."""

    model: str
    rounds: int
    folder: Path

    @property
    def marks(self) -> Path:
        return self.folder / "marks.jsonl"


@dataclass(frozen=True)
class Runner:
    """One contestant: the command that runs it, and how its marks are read."""

    title: str
    command: Callable[[Run], list[str]]
    read: Callable[[Run], Marks] = field(default=lambda run: read_marks(run.marks))
    peer: str | None = None


def module(name: str, *options: str, python: Path = HERE) -> Callable[[Run], list[str]]:
    """Return the command of a contestant that is a module."""

    def command(run: Run) -> list[str]:
        said = ["--model", run.model, "--rounds", str(run.rounds), "--marks", str(run.marks)]
        return [str(python), "-m", f"contestants.{name}", *said, *options]

    return command


def ours(*, num_supernodes: int, config: str = "") -> Callable[[Run], list[str]]:
    """Return the command line with which a user of this project runs the same."""

    def command(run: Run) -> list[str]:
        share = workload.SAMPLED / workload.NUM_CLIENTS
        rate, batch = workload.LEARNING_RATE[run.model], workload.BATCH
        quiet = f"client-evaluation=false evaluate-every={10**6} checkpoint-every={10**6}"
        return [
            str(HERE.parent / "fl-plugins"),
            "simulate",
            *("--strategy", f"fedavg({FEDERATION.format(fraction=share)})"),
            *(
                "--client",
                f"supervised(optimizer='sgd', learning_rate={rate}, local_epochs=1, batch_size={batch})",
            ),
            *("--task", f"simulation(model='{run.model}')"),
            *("--num-rounds", str(run.rounds), "--num-supernodes", str(num_supernodes)),
            *("--run-config", f"plugins='contestants.ours' {quiet} {config}".strip()),
            *("--runs-dir", str(run.folder), "--name", "run"),
        ]

    return command


def read_events(run: Run) -> Marks:
    """Return the marks of a run of this project, from its event log."""
    lines = (run.folder / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    accepted = sum(e["accepted"] for e in events if e["event"] == "aggregated")
    losses = [e["metrics"]["loss"] for e in events if e["event"] == "evaluated" and e["where"] == "server"]
    if not any(e["event"] == "run_finished" for e in events):
        raise ValueError(f"{run.folder}: the run did not finish")
    return Marks(
        rounds=[e["time"] for e in events if e["event"] == "round_finished"],
        steps=accepted * workload.STEPS,
        loss=float(losses[-1]),
    )


def peer(name: str) -> Path:
    return PEERS / name / "bin" / "python"


RUNNERS = {
    "flwr-torch": Runner(
        "flwr + PyTorch client",
        module("flower_runner", "--framework", "torch", python=peer("flwr")),
        peer="flwr",
    ),
    "flwr-jax": Runner("flwr + naive JAX client", module("flower_runner", "--framework", "jax")),
    "ours-nodes": Runner(
        "ours, one client per SuperNode", ours(num_supernodes=workload.NUM_CLIENTS), read_events
    ),
    "ours-cohort": Runner(
        "ours, cohort: 100 clients on 1 SuperNode",
        ours(num_supernodes=1, config=f"virtual-clients={workload.NUM_CLIENTS}"),
        read_events,
    ),
    "pfl": Runner("pfl-research, 1 process", module("pfl_runner", python=peer("pfl")), peer="pfl"),
    "pfl-2": Runner(
        "pfl-research, 2 processes", module("pfl_runner", "--processes", "2", python=peer("pfl")), peer="pfl"
    ),
    "fedjax": Runner("FedJAX", module("fedjax_runner", python=peer("fedjax")), peer="fedjax"),
    "floor": Runner("bare XLA, 1 device", module("floor")),
    "floor-2": Runner("bare XLA, 2 host devices", module("floor", "--devices", "2")),
}
"""The contestants; the first one is what the others are compared with."""


# -- Running --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One run, measured: per round after warm-up, and in all."""

    seconds: list[float]
    cpu: float
    total: float
    peak: int
    steps: int
    loss: float


def run_once(name: str, model: str, rounds: int, logs: Path | None) -> Sample | str:
    """Run a contestant once; return what was measured, or why nothing was."""
    runner = RUNNERS[name]
    if runner.peer and not peer(runner.peer).exists():
        return "not installed: run with --install-peers"
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) if logs is None else logs / f"{model}-{name}-{os.urandom(3).hex()}"
        target.mkdir(exist_ok=True, parents=True)
        run = Run(model, rounds, target)
        log = target / "output.log"
        usage = run_measured(
            runner.command(run), env=environment(target), cwd=target, log=log, timeout_s=TIMEOUT_S
        )
        try:
            return sample(runner.read(run), usage, rounds)
        except (OSError, ValueError, LookupError) as error:
            end = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-15:]
            print("\n".join(end), file=sys.stderr, flush=True)  # its folder goes with it
            return f"failed (status {usage.status}): {error}"


def environment(folder: Path) -> dict[str, str]:
    """Return what every contestant gets: the same packages, no accelerator, a cold compilation cache."""
    paths = f"{BENCHMARKS}{os.pathsep}{ROOT}"
    cache = {"FL_PLUGINS_CACHE_DIR": str(folder / "cache")}
    return {
        **os.environ,
        **cache,
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    }


def sample(marks: Marks, usage: Usage, rounds: int) -> Sample:
    """Return the figures of one run."""
    if len(marks.rounds) != rounds:
        raise ValueError(f"{len(marks.rounds)} of {rounds} rounds ended")
    ends = marks.rounds[WARM_UP - 1 :]
    return Sample(
        seconds=[after - before for before, after in pairwise(ends)],
        cpu=usage.cpu_between(ends[0], ends[-1]) / (len(ends) - 1),
        total=usage.ended - usage.started,
        peak=usage.peak,
        steps=marks.steps,
        loss=marks.loss,
    )


# -- Reporting ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One contestant on one model: medians, or why there are none."""

    name: str
    model: str
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
    chance, loss = workload.chance_loss(row.model), row.median("loss")
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
        if who in by_name and other in by_name and rows[0].model in least:
            of = (lambda row: row.seconds) if what == "s / round" else (lambda row: row.median("total"))
            ratio, bound = of(by_name[other]) / of(by_name[who]), least[rows[0].model]
            verdict = "met" if ratio >= bound else "**missed**"
            lines.append(f"| {who} ≥ {bound:.2g}× {other} ({what}) | {ratio:.2f}× | {verdict} |")

    every = dict.fromkeys(workload.MODELS, 1.0)
    compare("ours-cohort", "flwr-torch", {"mlp": 6.0, "lenet": 2.5}, "s / round")
    compare("ours-cohort", "pfl-2", {"mlp": 1.0, "lenet": 1.2}, "s / round")
    compare("ours-cohort", "fedjax", {"mlp": 1.0, "lenet": 1.2}, "s / round")
    compare("ours-cohort", "flwr-torch", dict.fromkeys(workload.MODELS, 2.0), "total s")
    compare("ours-nodes", "flwr-torch", every, "s / round")
    return ["| target | measured | |", "|---|---|---|", *lines] if lines else []


def document(results: dict[str, list[Row]], options: argparse.Namespace) -> str:
    """Return docs/benchmarks/simulation.md."""
    lines = [
        "# Simulation speed",
        "",
        f"Written by `python benchmarks/simulation.py --write` on {os.cpu_count()} cores "
        f"({platform.machine()}), load average {os.getloadavg()[1]:.1f}; {options.rounds} rounds, medians of "
        f"the rounds after {WARM_UP} of warm-up over {options.repeats} interleaved repeats. FedAvg, "
        f"{workload.NUM_CLIENTS} clients × {workload.EXAMPLES} examples, {workload.SAMPLED} per round, one "
        "epoch, batches of 10. × is the first row's figure over this row's. Quote ratios: the seconds are "
        "this machine's.",
        "",
        "Pinned peers: " + "; ".join(", ".join(pins) for pins in PINNED.values()) + ".",
    ]
    for model, rows in results.items():
        lines += ["", f"## {model}", "", *table(rows)]
        if said := targets(rows):
            lines += ["", *said]
    return "\n".join([*lines, ""])


# -- The command ----------------------------------------------------------------------------------------


def install_peers() -> None:
    """Make the peers' virtual environments; one that exists is brought to the pinned versions."""
    for name, pins in PINNED.items():
        print(f"{name}: {', '.join(pins)}", flush=True)
        if not peer(name).exists():
            subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
        pip = [str(peer(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, *pins]).returncode:
            print(f"{name}: does not install here; its contestants are left out", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install-peers", action="store_true", help=f"make {PEERS.name}/ and end")
    parser.add_argument("--quick", action="store_true", help="the MLP, 7 rounds, one repeat")
    parser.add_argument(
        "--runners", default=",".join(RUNNERS), help="comma-separated, of: " + ", ".join(RUNNERS)
    )
    parser.add_argument("--models", help="comma-separated, of: " + ", ".join(workload.MODELS))
    parser.add_argument("--rounds", type=int, help=f"per run (default {ROUNDS})")
    parser.add_argument("--repeats", type=int, help="per contestant (default 3)")
    parser.add_argument("--logs", type=Path, help="keep every run's folder below this one")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/simulation.md")
    options = parser.parse_args(arguments)
    if options.install_peers:
        install_peers()
        return 0
    options.rounds = options.rounds or (7 if options.quick else ROUNDS)
    options.repeats = options.repeats or (1 if options.quick else 3)
    if options.rounds < WARM_UP + 1:
        parser.error(f"--rounds {options.rounds}: at least {WARM_UP + 1}, {WARM_UP} of them to warm up")
    models = (options.models or ("mlp" if options.quick else ",".join(workload.MODELS))).split(",")
    names = options.runners.split(",")
    for kind, given, known in (("runners", names, RUNNERS), ("models", models, workload.MODELS)):
        if wrong := set(given) - set(known):
            parser.error(f"--{kind} {','.join(sorted(wrong))}: the {kind} are {', '.join(known)}")
    results = {}
    for model in models:
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        problems: dict[str, str] = {}
        for repeat in range(options.repeats):
            for name in names:
                outcome = run_once(name, model, options.rounds, options.logs and options.logs.resolve())
                if isinstance(outcome, str):
                    problems[name] = outcome
                    print(f"{model} {name} [{repeat + 1}]: {outcome}", file=sys.stderr, flush=True)
                    continue
                samples[name].append(outcome)
                seconds = statistics.median(outcome.seconds)
                print(f"{model} {name} [{repeat + 1}]: {seconds:.3f} s / round", file=sys.stderr, flush=True)
        results[model] = [Row(name, model, samples[name], problems.get(name, "")) for name in names]
        print(f"\n{model}\n", *table(results[model]), "", *targets(results[model]), sep="\n", flush=True)
    if options.write:
        path = ROOT / "docs" / "benchmarks" / "simulation.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(results, options))
        print(f"written to {path}")
    rows = [(row, rows) for rows in results.values() for row in rows]
    return int(any(not row.samples or check_work(row, rows) for row, rows in rows))


if __name__ == "__main__":
    sys.exit(main())
