"""Does a long run grow? Memory of the whole process tree and round time, at rounds 10, 100, 250 and 500.

    python benchmarks/longrun.py                      # 500 rounds, 100 virtual clients, 20 of them per round
    python benchmarks/longrun.py --large --rounds 50  # 10,000 virtual clients, 1,000 per round, under 4 GiB

Runs ``fl-plugins simulate --virtual-clients`` on two SuperNodes with the MLP of ``contestants/workload.py``.
The exit status is 1 if, between the second tenth of the rounds and the last, memory grew by more than 5 % or
median round time by more than 25 %, or if memory passed ``--max-gib``. Linux only.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from contestants.measure import Usage, run_measured

BENCHMARKS = Path(__file__).resolve().parent
POINTS = (10, 100, 250, 500)
MEMORY_GROWTH, TIME_GROWTH = 1.05, 1.25
"""Memory is steady once all programs are compiled; round time follows the machine's other load."""


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    """Return the command line of the run."""
    fraction = options.sampled / options.clients
    quiet = f"client-evaluation=false evaluate-every={10**6} checkpoint-every={10**6}"
    return [
        str(Path(sys.executable).parent / "fl-plugins"),
        "simulate",
        *("--strategy", f"fedavg(fraction_train={fraction}, fraction_evaluate=0.0)"),
        *("--client", "supervised(optimizer='sgd', learning_rate=0.1, local_epochs=1, batch_size=10)"),
        *("--task", f"simulation(model='mlp', examples={options.examples})"),
        *("--num-rounds", str(options.rounds), "--num-supernodes", str(options.supernodes)),
        *("--virtual-clients", str(options.clients)),
        *("--run-config", f"plugins='contestants.ours' {quiet}"),
        *("--runs-dir", str(folder), "--name", "run"),
    ]


def report(ends: list[float], usage: Usage) -> list[str]:
    """Print what was measured; return what is wrong with it."""
    seconds = np.diff(ends)
    memory = np.array([usage.resident_at(end) for end in ends]) / 2**20
    print("| round | resident MiB | s / round (median of the 9 before and it) |\n|---|---|---|")
    for point in sorted({*(p for p in POINTS if p <= len(ends)), len(ends)}):
        around = statistics.median(seconds[max(point - 11, 0) : point - 1])
        print(f"| {point} | {memory[point - 1]:.0f} | {around:.3f} |")
    tenth = max(len(ends) // 10, 2)
    rounds = np.arange(len(ends))
    slope = np.polyfit(rounds[tenth:], memory[tenth:], 1)[0]
    pace = np.polyfit(rounds[tenth + 1 :], seconds[tenth:], 1)[0]
    print(f"\nslopes after round {tenth}: {slope * 100:.2f} MiB and {pace * 100:+.4f} s per 100 rounds")
    print(f"peak {usage.peak / 2**20:.0f} MiB, {usage.ended - usage.started:.0f} s in all")
    problems = []
    grown = np.median(memory[-tenth:]) / np.median(memory[tenth : 2 * tenth])
    slower = np.median(seconds[-tenth:]) / np.median(seconds[tenth : 2 * tenth])
    if grown > MEMORY_GROWTH:
        problems.append(f"memory grew by {grown - 1:.0%} (allowed: {MEMORY_GROWTH - 1:.0%})")
    if slower > TIME_GROWTH:
        problems.append(f"rounds became slower by {slower - 1:.0%} (allowed: {TIME_GROWTH - 1:.0%})")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--clients", type=int, default=100, help="virtual clients")
    parser.add_argument("--sampled", type=int, default=20, help="of them per round")
    parser.add_argument("--examples", type=int, default=20, help="of each client")
    parser.add_argument("--supernodes", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="10,000 clients, 1,000 per round")
    parser.add_argument("--max-gib", type=float, default=4.0, help="largest memory of the tree (default 4)")
    parser.add_argument("--timeout-s", type=float, default=7200)
    options = parser.parse_args(arguments)
    if options.large:
        options.clients, options.sampled = 10_000, 1_000
    if options.rounds < 20:
        parser.error(f"--rounds {options.rounds}: at least 20, for a trend")
    with tempfile.TemporaryDirectory(prefix="longrun-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        paths = f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}"
        env = {**os.environ, "PYTHONPATH": paths, "FL_PLUGINS_CACHE_DIR": str(folder / "cache")}
        env.setdefault("JAX_PLATFORMS", "cpu")
        log = folder / "output.log"
        usage = run_measured(
            command(options, folder), env=env, cwd=folder, log=log, timeout_s=options.timeout_s
        )
        if usage.status:
            print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
            print(f"the run failed with status {usage.status}", file=sys.stderr)
            return 1
        lines = (folder / "run" / "events.jsonl").read_text().splitlines()
        ends = [e["time"] for e in map(json.loads, lines) if e["event"] == "round_finished"]
        problems = report(ends, usage)
    if usage.peak > options.max_gib * 2**30:
        problems.append(f"peak {usage.peak / 2**30:.2f} GiB (allowed: {options.max_gib:g})")
    print("\n".join(problems) if problems else "no growth")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
