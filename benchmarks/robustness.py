"""Attack × defence × heterogeneity: the accuracy that is left, and each defence's worst case.

    python benchmarks/robustness.py --quick                    # digits, one seed, about a minute on two cores
    python benchmarks/robustness.py --out results.jsonl        # everything; stop and start it as you like
    python benchmarks/robustness.py --out results.jsonl --report --write docs/benchmarks/robustness.md

Setting: n clients, of which the first f are hostile and collude. They know every honest update of the round
and the server's rule (the strong model); attacks marked ``*`` search their parameter anew in every round, for
the greatest distance between the rule's result and the honest mean. Their own data are lost to training,
except where the attack trains on them. The model is an MLP with one hidden layer; all clients of a round
train in one jitted program. The rules are the project's, built from specs.

One line of JSON per finished cell; cells that the file holds are not computed again. A rule that refuses
(its precondition does not hold) is recorded as refused.
"""

import argparse
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from robustness_attacks import ATTACKS, MIMIC_WARM_UP, Round, Updates
from robustness_federation import (
    TARGET,
    federation,
    initial,
    local_updates,
    mnist_folder,
    poisoned,
    predict,
    triggered,
)
from robustness_tables import report

from fl_plugins import attacks as hostile
from fl_plugins.aggregation import Aggregator, non_finite_rows
from fl_plugins.aggregation.core import call_rule
from fl_plugins.errors import PreconditionError
from fl_plugins.registry import Kind
from fl_plugins.seeds import derive_rng, derive_seed
from fl_plugins.spec import build

SCHEDULES = {"digits": (300, 5), "mnist10k": (150, 5)}
"""Rounds and local steps. Digits needs more rounds, having a sixth of the examples: with 150, a mean without
any attack is a point lower, and a rule under attack, which moves more slowly, several."""

DEFENCES = {
    "mean": "mean()",
    "Krum": "krum(num_byzantine={f})",
    "Multi-Krum": "multi_krum(num_byzantine={f}, num_selected={n_minus_f_minus_2})",
    "trimmed mean": "trimmed_mean(num_byzantine={f})",
    "median": "median()",
    "MeaMed": "meamed(num_byzantine={f})",
    "Bulyan": "bulyan(num_byzantine={f})",
    "geometric median": "geometric_median()",
    "bucketing + geometric median": "chain(bucketing(size=2), geometric_median())",
    "CAF": "caf(num_byzantine={f})",
    "NNM + trimmed mean": (
        "chain(nearest_neighbor_mixing(num_byzantine={f}), trimmed_mean(num_byzantine={f}))"
    ),
    "ARC + NNM + trimmed mean": (
        "chain(arc(num_byzantine={f}), nearest_neighbor_mixing(num_byzantine={f}), "
        "trimmed_mean(num_byzantine={f}))"
    ),
    "ARC + NNM + geometric median": (
        "chain(arc(num_byzantine={f}), nearest_neighbor_mixing(num_byzantine={f}), geometric_median())"
    ),
    "ARC + NNM + CAF": (
        "chain(arc(num_byzantine={f}), nearest_neighbor_mixing(num_byzantine={f}), caf(num_byzantine={f}))"
    ),
    "ARC + CAF": "chain(arc(num_byzantine={f}), caf(num_byzantine={f}))",
}
"""Name in the table to spec. A new rule joins by a line here."""

MARKER = "<!-- benchmarks/robustness.py --report --write replaces everything below -->"

RECOMMENDED = "ARC + CAF"
"""What ``strategies.Robust(num_byzantine=f)`` is; a test holds the two together."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run. All fields are in its line of the results, so a changed setting is a new cell."""

    dataset: str
    heterogeneity: str
    num_clients: int
    num_byzantine: int
    defence: str
    attack: str
    seed: int
    rounds: int
    local_steps: int
    learning_rate: float


def run(cell: Cell) -> dict[str, Any]:
    """Return the cell's line: its fields, test accuracy, backdoor success rate, seconds."""
    started = time.perf_counter()
    try:
        outcome = train(cell)
    except PreconditionError as error:
        outcome = {"refused": str(error)}
    return {**asdict(cell), **outcome, "seconds": round(time.perf_counter() - started, 2)}


def rule_of(defence: str, *, n: int, f: int) -> Aggregator:
    """Build a defence."""
    spec = DEFENCES[defence].format(f=f, n_minus_f_minus_2=max(n - f - 2, 1))
    rule: Aggregator = build(Kind.AGGREGATOR, spec)
    return rule


def train(cell: Cell) -> dict[str, Any]:
    """Train a federation under attack; a model that has diverged has accuracy 0."""
    n, f = cell.num_clients, cell.num_byzantine
    clean = federation(cell.dataset, cell.heterogeneity, n, cell.seed)
    data = poisoned(clean, cell.attack, f)
    rule = rule_of(cell.defence, n=n, f=f)
    rule.check(n)
    attack = ATTACKS[cell.attack]
    parameters = initial(data.x.shape[-1], derive_rng(cell.seed, "initial"))
    state: Any = None
    previous: np.ndarray | None = None
    history: list[Updates] = []
    diverged = False
    on_device = [jnp.asarray(array) for array in (data.x, data.y, data.sizes)]
    for number in range(cell.rounds):
        decay = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * number / cell.rounds))
        seed = derive_seed(cell.seed, "round", number) % 2**31
        everyone = np.asarray(
            local_updates(
                parameters, *on_device, seed, np.float32(cell.learning_rate * decay), steps=cell.local_steps
            )
        )
        if not np.isfinite(everyone).all():
            diverged = True
            break
        if attack is None or f == 0:
            rows = everyone
        else:
            honest = everyone[f:]
            now = Round(
                honest,
                everyone[:f],
                lambda rows, state=state: call_rule(rule, rows, state=state).value,
                previous,
                history,
                derive_rng(cell.seed, "attack", number),
            )
            rows = np.concatenate([honest, attack(now, f)])
            if len(history) < MIMIC_WARM_UP:
                history.append(honest)
        bad = non_finite_rows(rows)
        result = call_rule(rule, np.delete(rows, bad, axis=0) if bad else rows, state=state)
        state, previous = result.state, result.value
        parameters = (parameters + result.value).astype(np.float32)
    correct = predict(parameters, clean.test_x) == clean.test_y
    diverged = diverged or not np.isfinite(parameters).all()
    outcome = {"accuracy": 0.0 if diverged else float(np.mean(correct))}
    if cell.attack == "backdoor":
        answers = predict(parameters, triggered(clean, clean.test_x))
        outcome["success"] = hostile.success_rate(answers, clean.test_y, target=TARGET)
    return outcome


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield what the options ask for, seeds innermost."""
    n = options.num_clients
    for dataset, heterogeneity, fraction in itertools.product(
        options.datasets, options.heterogeneity, options.fractions
    ):
        f = round(fraction * n)
        for defence, attack, seed in itertools.product(
            options.defences,
            options.attacks if f else ["none"],
            range(options.first_seed, options.first_seed + options.seeds),
        ):
            yield Cell(
                dataset=dataset,
                heterogeneity=heterogeneity,
                num_clients=n,
                num_byzantine=f,
                defence=defence,
                attack=attack,
                seed=seed,
                rounds=options.rounds or SCHEDULES[dataset][0],
                local_steps=options.local_steps or SCHEDULES[dataset][1],
                learning_rate=options.learning_rate,
            )


def read(path: Path) -> dict[Cell, dict[str, Any]]:
    """Return the finished cells of a results file; a line cut off by a stop is not one."""
    done: dict[Cell, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[Cell(**{name: record[name] for name in Cell.__dataclass_fields__})] = record
    return done


def compute(wanted: list[Cell], path: Path, *, jobs: int) -> None:
    """Compute the cells that ``path`` does not hold, each in one thread; append each when it is done."""
    # The workers read these at import. The arrays are small: threads would only wait for each other.
    os.environ.update(JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    done = read(path)
    missing = [cell for cell in wanted if cell not in done]
    print(f"{len(wanted)} cells, {len(wanted) - len(missing)} of them done", file=sys.stderr)
    if not missing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A stopped run must not leave workers behind: what ends the parent ends the pool.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with path.open("a") as file, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        if path.stat().st_size and not path.read_text().endswith("\n"):
            file.write("\n")  # the last run was stopped in the middle of a line
        try:
            for number, future in enumerate(as_completed([pool.submit(run, cell) for cell in missing]), 1):
                record = future.result()
                file.write(json.dumps(record) + "\n")
                file.flush()
                print(f"[{number}/{len(missing)}] {_line(record)}", file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _line(record: dict[str, Any]) -> str:
    """Return a finished cell in one line."""
    result = "refused" if "refused" in record else f"{100 * record['accuracy']:.1f}"
    return (
        f"{record['dataset']}, {record['heterogeneity']}, f={record['num_byzantine']}, {record['defence']}, "
        f"{record['attack']}, seed {record['seed']}: {result} ({record['seconds']:.0f} s)"
    )


def parse() -> argparse.Namespace:
    """Return the options; ``--quick`` replaces the defaults of what is not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="digits, one seed, five defences and attacks")
    parser.add_argument("--out", type=Path, default=Path("robustness.jsonl"), help="results, one cell a line")
    parser.add_argument("--write", type=Path, help="write the tables there too, as Markdown")
    parser.add_argument("--report", action="store_true", help="only read the results, all of them")
    parser.add_argument("--datasets", nargs="+", choices=["digits", "mnist10k"])
    parser.add_argument("--heterogeneity", nargs="+", help="IID, 'Dirichlet 1.0', 'Dirichlet 0.1'")
    parser.add_argument("--fractions", nargs="+", type=float, help="hostile share of the clients")
    parser.add_argument("--defences", nargs="+", choices=list(DEFENCES))
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first-seed", type=int, default=0, help="others check a choice made on the first")
    parser.add_argument("--num-clients", type=int, default=20)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--local-steps", type=int)
    parser.add_argument("--learning-rate", type=float, default=0.3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    have_mnist = mnist_folder().is_dir()
    if not have_mnist:
        print(f"{mnist_folder()} is missing: digits stands in for MNIST-10k", file=sys.stderr)
    quick = {
        "datasets": ["digits"],
        "heterogeneity": ["IID", "Dirichlet 0.1"],
        "fractions": [0.2],
        "defences": ["mean", "Krum", "trimmed mean", "geometric median", RECOMMENDED],
        "attacks": ["none", "sign flip ×10", "Sybil", "ALIE*", "IPM*"],
        "seeds": 1,
        "rounds": 100,
    }
    full = {
        "datasets": ["mnist10k", "digits"] if have_mnist else ["digits"],
        "heterogeneity": ["IID", "Dirichlet 1.0", "Dirichlet 0.1"],
        "fractions": [0.0, 0.1, 0.2, 0.3],
        "defences": list(DEFENCES),
        "attacks": list(ATTACKS),
        "seeds": 3,
    }
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Compute what is missing and print the tables."""
    options = parse()
    wanted = list(cells(options))
    if not options.report:
        compute(wanted, options.out, jobs=options.jobs)
    done = read(options.out)
    shown = list(done.values()) if options.report else [done[cell] for cell in wanted if cell in done]
    text = report(shown, defences=list(DEFENCES), recommended=RECOMMENDED)
    print(text)
    if options.write:
        write(options.write, text)


def write(page: Path, tables: str) -> None:
    """Write the tables below the page's marker; what a person wrote above it stays."""
    above = page.read_text().partition(MARKER)[0] if page.exists() else ""
    if not above:
        above = f"# Robustness\n\n{__doc__.split(chr(10) * 2, 2)[2].strip()}\n\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{above}{MARKER}\n\n{tables}")


if __name__ == "__main__":
    main()
