"""Seconds per round of the same federation in several simulators, side by side in one run.

    python benchmarks/simulation.py --install-peers           # once: virtual environments with pinned peers
    python benchmarks/simulation.py --quick                   # the MLP, one repeat, a few minutes
    python benchmarks/simulation.py --write                   # everything, into docs/benchmarks/simulation.md
    python benchmarks/simulation.py --runners flwr-torch,ours-cohort --models lenet
    python benchmarks/simulation.py --sampled 100 --runners ours-cohort,floor-2    # what the engine costs
    python benchmarks/simulation.py --models lenet --out runs.jsonl                # in parts: every run is
    python benchmarks/simulation.py --out runs.jsonl --report --write              # kept, tables are of all

FedAvg, 100 clients of 100 examples, 20 of them per round (``--sampled``), one local epoch, batches of 10,
plain SGD (``benchmarks/contestants/workload.py``). Every contestant runs in a process tree of its own, one at
a time; they take turns within each repeat, so that the machine's other load hits all of them. Per case and
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
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from contestants import workload
from contestants.marks import Marks
from contestants.measure import Usage, run_measured
from contestants.runners import PEERS, RUNNERS, Run, install_peers, peer
from simulation_tables import (
    WARM_UP,
    Case,
    Measured,
    Sample,
    check_work,
    document,
    rows_of,
    table,
    targets,
)

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
ROUNDS = 12
TIMEOUT_S = 900


def run_once(name: str, case: Case, rounds: int, logs: Path | None) -> Sample | str:
    """Run a contestant once; return what was measured, or why nothing was."""
    runner = RUNNERS[name]
    if runner.peer and not peer(runner.peer).exists():
        return "not installed: run with --install-peers"
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) if logs is None else logs / f"{case.model}-{name}-{os.urandom(3).hex()}"
        target.mkdir(exist_ok=True, parents=True)
        run = Run(case.model, rounds, target, case.sampled)
        log = target / "output.log"
        usage = run_measured(
            runner.command(run), env=environment(target, case), cwd=target, log=log, timeout_s=TIMEOUT_S
        )
        try:
            return sample(runner.read(run), usage, rounds)
        except (OSError, ValueError, LookupError) as error:
            end = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-15:]
            print("\n".join(end), file=sys.stderr, flush=True)  # its folder goes with it
            return f"failed (status {usage.status}): {error}"


def environment(folder: Path, case: Case) -> dict[str, str]:
    """Return what every contestant gets: the same packages, no accelerator, a cold compilation cache."""
    paths = f"{BENCHMARKS}{os.pathsep}{ROOT}"
    cache = {"FL_PLUGINS_CACHE_DIR": str(folder / "cache")}
    return {
        **os.environ,
        **cache,
        "FL_PLUGINS_BENCHMARK_SAMPLED": str(case.sampled),
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
    parser.add_argument("--sampled", type=int, default=20, help="clients per round (default 20)")
    parser.add_argument("--rounds", type=int, help=f"per run (default {ROUNDS})")
    parser.add_argument("--repeats", type=int, help="per contestant (default 3)")
    parser.add_argument("--logs", type=Path, help="keep every run's folder below this one")
    parser.add_argument("--out", type=Path, help="add every run to this file; tables are then of all in it")
    parser.add_argument("--report", action="store_true", help="measure nothing: only what is in --out")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/simulation.md")
    options = parser.parse_args(arguments)
    if options.install_peers:
        install_peers()
        return 0
    options.rounds = options.rounds or (7 if options.quick else ROUNDS)
    options.repeats = options.repeats or (1 if options.quick else 3)
    if options.rounds < WARM_UP + 1:
        parser.error(f"--rounds {options.rounds}: at least {WARM_UP + 1}, {WARM_UP} of them to warm up")
    if not 1 <= options.sampled <= workload.NUM_CLIENTS:
        parser.error(f"--sampled {options.sampled}: between 1 and {workload.NUM_CLIENTS}")
    if options.report and options.out is None:
        parser.error("--report needs --out: the file with the runs")
    models = (options.models or ("mlp" if options.quick else ",".join(workload.MODELS))).split(",")
    names = options.runners.split(",")
    for kind, given, known in (("runners", names, RUNNERS), ("models", models, workload.MODELS)):
        if wrong := set(given) - set(known):
            parser.error(f"--{kind} {','.join(sorted(wrong))}: the {kind} are {', '.join(known)}")
    runs = (
        [] if options.report else measure([Case(model, options.sampled) for model in models], names, options)
    )
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(run)) + "\n" for run in runs)
        runs = [Measured.from_json(line) for line in options.out.read_text("utf-8").splitlines()]
    results = rows_of(runs)
    for case, rows in results.items():
        print(f"\n{case}\n", *table(rows), "", *targets(rows), sep="\n", flush=True)
    if options.write:
        path = ROOT / "docs" / "benchmarks" / "simulation.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(results, before=path.read_text() if path.exists() else ""))
        print(f"written to {path}")
    rows = [(row, rows) for rows in results.values() for row in rows]
    return int(any(not row.samples or check_work(row, rows) for row, rows in rows))


def measure(cases: Sequence[Case], names: Sequence[str], options: argparse.Namespace) -> list[Measured]:
    """Run every contestant on every case; they take turns within each repeat."""
    runs = []
    for case in cases:
        for repeat in range(options.repeats):
            for name in names:
                outcome = run_once(name, case, options.rounds, options.logs and options.logs.resolve())
                failed = isinstance(outcome, str)
                runs.append(
                    Measured(
                        case=case,
                        name=name,
                        sample=None if failed else outcome,
                        problem=outcome if failed else "",
                    )
                )
                said = outcome if failed else f"{statistics.median(outcome.seconds):.3f} s / round"
                print(f"{case} {name} [{repeat + 1}]: {said}", file=sys.stderr, flush=True)
    return runs


if __name__ == "__main__":
    sys.exit(main())
