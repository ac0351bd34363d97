"""Attack × defence × heterogeneity: the accuracy that is left, and each defence's worst case.

    python benchmarks/robustness.py --quick                    # digits, one seed, a few minutes on two cores
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
import gzip
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clients.partition import dirichlet, hold_out, iid
from clients.tasks.digits import load_images
from fl_plugins import attacks as hostile
from fl_plugins.aggregation import Aggregator, non_finite_rows
from fl_plugins.aggregation.core import call_rule
from fl_plugins.errors import PreconditionError
from fl_plugins.registry import Kind
from fl_plugins.seeds import derive_rng, derive_seed
from fl_plugins.spec import build

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES = 10
HIDDEN = 32
BATCH = 32
TARGET = 0
TRIGGER = hostile.pixel_trigger(size=2, value=1.0)
MIMIC_WARM_UP = 5
Z_GRID = (-1.5, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
EPSILON_GRID = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 8.0)
SCHEDULES = {"digits": (800, 1), "mnist10k": (150, 5)}
"""Rounds and local steps. Those of digits were chosen among a few by the recommended rule's worst cases on
the same seeds, so its figures there are optimistic by that choice."""

DEFENCES = {
    "mean": "mean()",
    "Krum": "krum(num_byzantine={f})",
    "Multi-Krum": "multi_krum(num_byzantine={f}, num_selected={n_minus_f_minus_2})",
    "trimmed mean": "trimmed_mean(num_byzantine={f})",
    "median": "median()",
    "MeaMed": "meamed(num_byzantine={f})",
    "Bulyan": "bulyan(num_byzantine={f})",
    "geometric median": "geometric_median()",
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
    "ARC + CAF": "chain(arc(num_byzantine={f}), caf(num_byzantine={f}))",
}
"""Name in the table to spec. A new rule joins by a line here."""

RECOMMENDED = "ARC + NNM + trimmed mean"

Updates = np.ndarray
"""``(m, d)`` float32."""


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


@dataclass(frozen=True)
class Federation:
    """Padded client data ``(n, capacity, k)``, their sizes ``(n,)`` and the common test set."""

    x: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    side: int


@dataclass(frozen=True)
class Round:
    """What the hostile clients know: honest updates, theirs if they were honest, the rule, the past."""

    honest: Updates
    own: Updates
    aggregate: Callable[[Updates], np.ndarray]
    previous: np.ndarray | None
    history: list[Updates]
    rng: np.random.Generator


def gaussian(now: Round, f: int) -> Updates:
    """Noise three times as long as a typical honest update."""
    size = 3 * float(np.sqrt(np.mean(now.honest.astype(np.float64) ** 2)))
    return hostile.gaussian_noise(now.honest, f, stddev=size, rng=now.rng)


def mimic(now: Round, f: int) -> Updates:
    """Copy the client that the warm-up rounds chose."""
    return hostile.mimic(
        now.honest, f, target=hostile.mimic_target(np.stack([*now.history, now.honest][:MIMIC_WARM_UP]))
    )


def searched(
    attack: Callable[..., Updates], name: str, grid: tuple[float, ...], now: Round, f: int
) -> Updates:
    """Search the attack's parameter against the rule."""
    return hostile.line_search(
        now.honest,
        lambda value: attack(now.honest, f, **{name: value}),
        aggregate=now.aggregate,
        parameters=grid,
        refinements=1,
    ).hostile


ATTACKS: dict[str, Callable[[Round, int], Updates] | None] = {
    "none": None,
    "absent": lambda now, _: now.honest[:0],
    "sign flip ×10": lambda now, f: hostile.sign_flip(now.honest, f, scale=10.0),
    "Gaussian": gaussian,
    "zero": lambda now, f: hostile.zero(now.honest, f),
    "constant": lambda now, f: hostile.constant(now.honest, f, value=1.0),
    "NaN": lambda now, f: hostile.non_finite(now.honest, f),
    "free-rider": lambda now, f: hostile.free_rider(now.honest, f, previous=now.previous),
    "Sybil": lambda now, f: np.repeat(-now.own[:1], f, axis=0),
    "mimic": mimic,
    "label flip": lambda now, _: now.own,
    "backdoor": lambda now, _: now.own,
    "min-max": lambda now, f: hostile.min_max(now.honest, f),
    "min-sum": lambda now, f: hostile.min_sum(now.honest, f),
    "ALIE": lambda now, f: hostile.little_is_enough(now.honest, f),
    "ALIE*": partial(searched, hostile.little_is_enough, "z", Z_GRID),
    "IPM": lambda now, f: hostile.inner_product_manipulation(now.honest, f, epsilon=0.5),
    "IPM*": partial(searched, hostile.inner_product_manipulation, "epsilon", EPSILON_GRID),
}
"""``none``: everybody is honest. ``absent``: the hostile clients do not answer."""

BASELINES = ("none", "absent")


def load(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(N, side, side)`` in [0, 1] and labels; MNIST's are averaged 2 × 2 to 14 × 14."""
    if dataset == "digits":
        data = load_images()
        return data.x[..., 0], data.y
    folder = mnist_folder()
    images = np.frombuffer(gzip.decompress(next(folder.glob("*images*")).read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress(next(folder.glob("*labels*")).read_bytes()), np.uint8, offset=8)
    pooled = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    return pooled.astype(np.float32), labels.astype(np.int32)


def mnist_folder() -> Path:
    """Return where MNIST-10k is, or would be."""
    return Path(os.environ.get("FL_PLUGINS_DATA", ROOT.parent / "shared" / "data")) / "mnist10k"


@cache
def federation(dataset: str, heterogeneity: str, num_clients: int, seed: int) -> Federation:
    """Deal 80 % of the examples to the clients; the rest, stratified, is the test set."""
    images, labels = load(dataset)
    rng = derive_rng(seed, "robustness", dataset, heterogeneity)
    rest, test = hold_out(labels, 0.2, rng=rng)
    if heterogeneity == "IID":
        parts = iid(labels[rest], num_clients, rng=rng)
    else:
        alpha = float(heterogeneity.removeprefix("Dirichlet "))
        parts = dirichlet(labels[rest], num_clients, alpha=alpha, rng=rng, min_examples=8)
    capacity = max(map(len, parts))
    # Rows beyond a client's size are never drawn.
    rows = np.stack([np.resize(rest[part], capacity) for part in parts])
    flat = images.reshape(len(images), -1)
    sizes = np.array([len(part) for part in parts], np.int32)
    return Federation(flat[rows], labels[rows], sizes, flat[test], labels[test], images.shape[1])


def shapes(num_inputs: int) -> list[tuple[int, ...]]:
    """Return the parameters' shapes, in the order in which they lie in the vector."""
    return [(num_inputs, HIDDEN), (HIDDEN,), (HIDDEN, NUM_CLASSES), (NUM_CLASSES,)]


def initial(num_inputs: int, rng: np.random.Generator) -> np.ndarray:
    """Return He-initialised parameters ``(d,)``; biases are zero."""
    return np.concatenate(
        [
            rng.normal(0, np.sqrt(2 / shape[0]), shape).ravel() if len(shape) == 2 else np.zeros(shape)
            for shape in shapes(num_inputs)
        ]
    ).astype(np.float32)


def logits(parameters: Any, x: Any) -> Any:
    """Return ``(b, 10)`` for ``(b, k)``."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes(x.shape[-1])])
    w1, b1, w2, b2 = (
        part.reshape(shape)
        for part, shape in zip(jnp.split(parameters, ends[:-1]), shapes(x.shape[-1]), strict=True)
    )
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def _loss(parameters: Any, x: Any, y: Any) -> Any:
    return -jnp.mean(jax.nn.log_softmax(logits(parameters, x))[jnp.arange(len(y)), y])


@partial(jax.jit, static_argnames="steps")
def local_updates(parameters: Any, x: Any, y: Any, sizes: Any, seed: Any, rate: Any, *, steps: int) -> Any:
    """Return every client's update ``(n, d)`` after ``steps`` of SGD on batches drawn with replacement."""

    def one(x: Any, y: Any, size: Any, key: Any) -> Any:
        def step(current: Any, key: Any) -> Any:
            rows = jax.random.randint(key, (BATCH,), 0, size)
            return current - rate * jax.grad(_loss)(current, x[rows], y[rows]), None

        return jax.lax.scan(step, parameters, jax.random.split(key, steps))[0] - parameters

    return jax.vmap(one)(x, y, sizes, jax.random.split(jax.random.key(seed), x.shape[0]))


def predict(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return labels ``(b,)``; in NumPy, since it happens once a run."""
    with np.errstate(all="ignore"):
        w1, b1, w2, b2 = (
            part.reshape(shape)
            for part, shape in zip(
                np.split(parameters, np.cumsum([int(np.prod(s)) for s in shapes(x.shape[-1])])[:-1]),
                shapes(x.shape[-1]),
                strict=True,
            )
        )
        return np.argmax(np.maximum(x @ w1 + b1, 0) @ w2 + b2, axis=1)


def poisoned(data: Federation, attack: str, f: int) -> Federation:
    """Return the data with the hostile clients' poisoned, where the attack poisons data."""
    x, y = data.x.copy(), data.y.copy()
    if attack == "label flip":
        y[:f] = NUM_CLASSES - 1 - y[:f]
    elif attack == "backdoor":
        # Every second example; the batch is drawn from all of a client's rows.
        x[:f, ::2] = triggered(data, x[:f, ::2])
        y[:f, ::2] = TARGET
    return replace(data, x=x, y=y)


def triggered(data: Federation, x: np.ndarray) -> np.ndarray:
    """Return flat examples ``(..., k)`` with the trigger."""
    return TRIGGER(x.reshape(-1, data.side, data.side)).reshape(x.shape)


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
    """Train a federation under attack."""
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
    on_device = [jnp.asarray(array) for array in (data.x, data.y, data.sizes)]
    for number in range(cell.rounds):
        decay = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * number / cell.rounds))
        seed = derive_seed(cell.seed, "round", number) % 2**31
        everyone = np.asarray(
            local_updates(
                parameters, *on_device, seed, np.float32(cell.learning_rate * decay), steps=cell.local_steps
            )
        )
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
        if len(bad) == len(rows):
            break  # it has diverged
        result = call_rule(rule, np.delete(rows, bad, axis=0) if bad else rows, state=state)
        state, previous = result.state, result.value
        parameters = (parameters + result.value).astype(np.float32)
        if not np.isfinite(parameters).all():
            break
    correct = predict(parameters, clean.test_x) == clean.test_y
    outcome = {"accuracy": float(np.mean(correct)) if np.isfinite(parameters).all() else 0.0}
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
    path.parent.mkdir(parents=True, exist_ok=True)
    # A stopped run must not leave workers behind: what ends the parent ends the pool.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with path.open("a") as file, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
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


def report(records: list[dict[str, Any]]) -> str:
    """Return Markdown: per setting a table of mean accuracy over seeds, in percent, and the worst case."""
    lines: list[str] = []
    key = ("dataset", "heterogeneity", "num_byzantine", "num_clients")
    key += ("rounds", "local_steps", "learning_rate")
    settings = sorted({tuple(record[name] for name in key) for record in records})
    for setting in settings:
        chosen = [record for record in records if tuple(record[name] for name in key) == setting]
        dataset, heterogeneity, f, n, rounds, steps, rate = setting
        lines += [
            f"### {dataset}, {heterogeneity}, f = {f} of {n}",
            "",
            f"{rounds} rounds of {steps} local steps, learning rate {rate:g} with cosine decay; mean of "
            f"{len({record['seed'] for record in chosen})} seeds.",
            "",
            *_table(chosen),
            "",
        ]
    return "\n".join(lines)


def _table(records: list[dict[str, Any]]) -> list[str]:
    """Return one setting's table, the recommended defence in bold.

    A mean of fewer seeds than the table's has their number beside it, and a worst case from fewer attacks
    than the table's is an upper bound, with ``<=``: what was not measured never looks as if it were.
    """
    attacks = [name for name in ATTACKS if any(record["attack"] == name for record in records)]
    hostile_attacks = [name for name in attacks if name not in BASELINES]
    num_seeds = len({record["seed"] for record in records})
    header = ["defence", *attacks]
    if hostile_attacks:
        header += ["**worst**", "which"]
    if "backdoor" in attacks:
        header.append("backdoor success")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for defence in DEFENCES:
        mine = [record for record in records if record["defence"] == defence]
        if not mine:
            continue
        scores = {attack: _values(mine, attack, "accuracy") for attack in attacks}
        row = [f"**{defence}**" if defence == RECOMMENDED else defence]
        row += [_percent(scores[attack], num_seeds) for attack in attacks]
        measured = {name: scores[name] for name in hostile_attacks if scores[name]}
        if measured:
            worst = min(measured, key=lambda name: float(np.mean(measured[name])))
            complete = all(len(scores[name]) == num_seeds for name in hostile_attacks)
            row += [("" if complete else "<= ") + _percent(measured[worst], num_seeds), worst]
        elif hostile_attacks:
            row += ["–", "–"]
        if "backdoor" in attacks:
            row.append(_percent(_values(mine, "backdoor", "success"), num_seeds))
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _values(records: list[dict[str, Any]], attack: str, what: str) -> list[float]:
    """Return one number per seed measured."""
    return [record[what] for record in records if record["attack"] == attack and what in record]


def _percent(values: list[float], num_seeds: int) -> str:
    """Return the mean in percent; the number of seeds too where some are missing."""
    if not values:
        return "–"
    seeds = "" if len(values) == num_seeds else f" ({len(values)} of {num_seeds} seeds)"
    return f"{100 * float(np.mean(values)):.1f}{seeds}"


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
        "local_steps": 5,
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
    text = report(shown)
    print(text)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        heading = f"# Robustness\n\n{__doc__.split(chr(10) * 2, 2)[2].strip()}\n\n"
        options.write.write_text(heading + text)


if __name__ == "__main__":
    main()
