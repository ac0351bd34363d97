"""What privacy costs: drawing noise, accounting, and accuracy at a given ε.

    python benchmarks/privacy.py --quick             # a few minutes; all sections, one seed or two
    python benchmarks/privacy.py --write             # three seeds or more, into docs/benchmarks/privacy.md
    python benchmarks/privacy.py --only noise,silos  # a part; --write replaces these sections alone

DP-SGD's throughput beside Opacus, jax-privacy and optax: ``privacy_dpsgd.py``; noise added by the clients:
``privacy_distributed.py``; adaptive clipping against every fixed clip norm: ``adaptive_clipping.py``.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FL_PLUGINS_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))

import numpy as np
import privacy_utility

from fl_plugins.privacy import (
    Accountant,
    Budget,
    FixedSize,
    Gaussian,
    Method,
    NeighborRelation,
    NoiseSource,
    Poisson,
    Release,
    divergences,
    samplers,
)
from fl_plugins.privacy.calibration import plan

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks" / "privacy.md"
HEAD = """# Privacy: noise, accounting, accuracy

Elsewhere: [DP-SGD throughput](privacy-dpsgd.md), [noise from the clients](../distributed-privacy.md). Each
section names its command. The machine has other users: compare CPU times and ratios.

"""
DELTA = 1e-5
NUMBERS = 10_000_000
ROUNDS = 1000


def noise(quick: bool) -> list[str]:
    """Let all draw ten million numbers, in turns; the least wall and CPU time of the repeats, and ratios."""
    source, generator = NoiseSource(), np.random.default_rng()
    contestants: dict[str, Callable[[], object]] = {
        "np.random.normal": lambda: np.random.normal(size=NUMBERS),  # noqa: NPY002  what the goal names
        "NumPy PCG64, float32": lambda: generator.standard_normal(NUMBERS, np.float32),
        "ours: normal": lambda: source.normal(NUMBERS),
        "ours: normal, float32": lambda: source.normal(NUMBERS, dtype=np.float32),
        "ours: Laplace": lambda: samplers.laplace(NUMBERS, scale=1.0, source=source),
        "ours: discrete Gaussian, σ = 100": lambda: samplers.discrete_gaussian(
            NUMBERS, std=100.0, source=source
        ),
        "ours: Skellam, σ = 100": lambda: samplers.skellam(NUMBERS, std=100.0, source=source),
    }
    wall, cpu = dict.fromkeys(contestants, np.inf), dict.fromkeys(contestants, np.inf)
    for _ in range(3 if quick else 7):
        for name, draw in contestants.items():
            start, busy = time.perf_counter(), time.process_time()
            draw()
            wall[name] = min(wall[name], time.perf_counter() - start)
            cpu[name] = min(cpu[name], time.process_time() - busy)
    base = "np.random.normal"
    lines = [
        f"## Noise: {NUMBERS:.0e} numbers, {len(os.sched_getaffinity(0))} cores",
        "",
        f"| sampler | wall ms | × {base} | CPU ms | × {base} |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {1e3 * wall[name]:.0f} | {wall[name] / wall[base]:.2f} | {1e3 * cpu[name]:.0f} "
        f"| {cpu[name] / cpu[base]:.2f} |"
        for name in contestants
    ]
    ratio = max(wall["ours: normal"] / wall[base], cpu["ours: normal"] / cpu[base])
    return [*lines, "", f"Goal, normals within 1.5× of `{base}`: {_verdict(ratio <= 1.5)}."]


def accounting(_: bool) -> list[str]:
    """Time the accountant's parts, in CPU time."""
    add = NeighborRelation.of(unit="client", adjacency="add_remove")
    replace = NeighborRelation.of(unit="client", adjacency="replace")
    whole = Poisson(rate=0.01, population=10_000, max_cohort=10_000)
    cut, fixed = Poisson(rate=0.01, population=10_000), FixedSize(size=100, population=10_000)
    cases = [
        ("Poisson, no cut; a budget RDP fits", whole, 1.0, 3.0, add),
        ("Poisson, no cut; a budget that only PLD fits", whole, 1.0, 1.9, add),
        ("Poisson, cut at + 5 sd", cut, 1.0, 3.0, add),
        ("Poisson, cut at + 5 sd; just enough", cut, 0.83, 3.0, add),
        ("fixed size, replace; exceeded on the way", fixed, 1.5, 3.0, replace),
    ]
    plan(
        Budget(epsilon=1.0, delta=DELTA), rounds=2, sampling=cut, relation=add
    )  # imports, which take seconds
    lines = [
        "## Accounting, CPU time",
        "",
        f"A gate and a charge a round, for at most {ROUNDS} rounds (q = 0.01, δ = 1e-5), caches cold:",
        "",
        "| sampling | z | budget ε | rounds | ms in all | ms a report by RDP | by PLD | ε by PLD |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    slowest = 0.0
    for name, sampling, z, epsilon, relation in cases:
        for cache in (
            divergences.rdp,
            divergences.pld,
            divergences._sampled_pld,
            divergences.truncation_probability,
        ):
            cache.cache_clear()
        one = Release(mechanism=Gaussian(noise_multiplier=z), sampling=sampling, relation=relation)
        accountant, budget = Accountant(relation), Budget(epsilon=epsilon, delta=DELTA)
        start = time.process_time()
        rounds = 0
        while rounds < ROUNDS and not accountant.would_exceed(one, budget):
            accountant.compose(one)
            rounds += 1
        total = time.process_time() - start
        slowest = max(slowest, total)
        rdp = _cpu(lambda a=accountant: a.report(DELTA, pld=False))
        divergences.pld.cache_clear()
        pld = _cpu(lambda a=accountant: a.report(DELTA))
        spent = accountant.report(DELTA).by_method[Method.PLD]
        lines.append(
            f"| {name} | {z} | {epsilon} | {rounds} | {1e3 * total:.0f} | {1e3 * rdp:.2f} | {1e3 * pld:.0f} "
            f"| {spent:.3f} |"
        )
    lines += [
        "",
        f"Goal, {ROUNDS} rounds within 1 s: slowest {slowest:.2f} s, {_verdict(slowest <= 1.0)}.",
        "",
    ]
    lines += [
        "| calibration: the noise of ε = 3 | z by RDP | s | z by PLD | s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, sampling, rounds, relation in (
        ("Poisson q = 0.01, 1000 rounds", whole, 1000, add),
        ("Poisson q = 0.1, 100 rounds", Poisson(rate=0.1, population=1000, max_cohort=1000), 100, add),
        ("fixed size 100 of 10,000, replace, 1000 rounds", fixed, 1000, replace),
    ):
        row = f"| {name} "
        for method in (Method.RDP, None):
            start = time.process_time()
            made = plan(
                Budget(epsilon=3.0, delta=DELTA),
                rounds=rounds,
                sampling=sampling,
                relation=relation,
                method=method,
            )
            row += f"| {made.noise_multiplier:.3f} | {time.process_time() - start:.1f} "
        lines.append(row + "|")
    return lines


def _cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _verdict(met: bool) -> str:
    """Return a goal's outcome."""
    return "met" if met else "**missed**"


SECTIONS: dict[str, Callable[[bool], list[str]]] = {
    "noise": noise,
    "accounting": accounting,
    "records": privacy_utility.records,
    "users": privacy_utility.users,
    "silos": privacy_utility.silos,
}


def main() -> int:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, of silos two, and fewer repeats")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    options = parser.parse_args()
    for name in options.only.split(","):
        found = "\n".join(SECTIONS[name](options.quick))
        print(found, flush=True)
        if options.write:
            write(name, found, quick=options.quick)
    return 0


def write(name: str, text: str, *, quick: bool) -> None:
    """Put one section into the page, in the place of what it said before; others stay."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = re.split(r"<!-- (\w+) -->\n", page)
    kept = dict(zip(parts[1::2], parts[2::2], strict=True))
    command = f"python benchmarks/privacy.py --only {name}{' --quick' if quick else ''}"
    kept[name] = f"{text}\n\n`{command}`\n\n"
    whole = HEAD + "".join(f"<!-- {each} -->\n{kept[each]}" for each in SECTIONS if each in kept)
    PAGE.write_text(whole.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
