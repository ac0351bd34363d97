"""Time and memory of one aggregation, end to end, against flwr's own strategies and byzfl's NumPy kernels.

    python benchmarks/aggregation.py --quick            # n=10, 50 and 100 with d <= 10⁶, three repeats
    python benchmarks/aggregation.py --write            # the whole grid, into docs/benchmarks/aggregation.md
    python benchmarks/aggregation.py --cells 10x100000 --results r.jsonl --write    # or in parts

Like is timed with like. End to end is ``aggregate_train`` for this project and for flwr, on the same
ArrayRecords: reading the replies, the rule, and the new ArrayRecord; ours also checks each reply. byzfl has
kernels only: end to end it is what a user must write around one (:func:`byzfl_round`), with no check at all.
A kernel alone, ours and byzfl's, gets the same stacked (n, d) array. The contestants take turns within each
repeat, so that the machine's other load hits all of them; a cell gives medians over the repeats, and ratios
of them. The first call, with JAX's import and compilation or what the persistent cache holds of it, is
reported apart.

Memory is the peak of resident memory (VmHWM) above where it stood when the call began, less the record that
it returns, as a share of the payload (the bytes of all replies). Linux only.
"""

import argparse
import functools
import gc
import json
import logging
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

import strategies
from fl_plugins.aggregation import Arc, Chain, NearestNeighborMixing, TrimmedMean
from fl_plugins.aggregation.core import call_rule
from fl_plugins.records import from_ndarray
from fl_plugins.testing import InProcessGrid
from fl_plugins.testing.byzfl import load_byzfl

byzfl = load_byzfl()

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (0.5, 0.2, 0.15, 0.1, 0.05)
"""The model's arrays, as shares of d."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Rule:
    """The same rule in three libraries; f is the number of hostile clients."""

    ours: Callable[[int, int], Any]
    flwr: Callable[[int, int], Any] | None
    byzfl: Callable[[int, int], Any] | None


def in_turn(*stages: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function that applies the stages one after the other."""
    return lambda rows: functools.reduce(lambda value, stage: stage(value), stages, rows)


RULES = {
    "median": Rule(
        lambda n, f: strategies.Median(), lambda n, f: flower.FedMedian(), lambda n, f: byzfl.Median()
    ),
    "trimmed mean": Rule(
        lambda n, f: strategies.TrimmedMean(num_byzantine=f),
        lambda n, f: flower.FedTrimmedAvg(beta=(f + 0.5) / n),
        lambda n, f: byzfl.TrMean(f=f),
    ),
    "Krum": Rule(
        lambda n, f: strategies.Krum(num_byzantine=f),
        lambda n, f: flower.Krum(num_malicious_nodes=f),
        lambda n, f: byzfl.Krum(f=f),
    ),
    "Multi-Krum": Rule(
        lambda n, f: strategies.MultiKrum(num_byzantine=f, num_selected=n - f - 2),
        lambda n, f: flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=n - f - 2),
        lambda n, f: byzfl.MultiKrum(f=f),
    ),
    "Bulyan": Rule(
        lambda n, f: strategies.Bulyan(num_byzantine=f),
        lambda n, f: flower.Bulyan(num_malicious_nodes=f),
        None,
    ),
    "MeaMed": Rule(lambda n, f: strategies.MeaMed(num_byzantine=f), None, lambda n, f: byzfl.Meamed(f=f)),
    "geometric median": Rule(
        # As many steps as byzfl makes by default; ours otherwise iterates to its tolerance.
        lambda n, f: strategies.GeometricMedian(max_iterations=3),
        None,
        lambda n, f: byzfl.GeometricMedian(),
    ),
    "centered clipping": Rule(
        lambda n, f: strategies.CenteredClipping(max_norm=1.0),
        None,
        lambda n, f: byzfl.CenteredClipping(tau=1.0),
    ),
    "NNM + trimmed mean": Rule(
        lambda n, f: strategies.Robust(
            aggregator=Chain(NearestNeighborMixing(num_byzantine=f), TrimmedMean(num_byzantine=f))
        ),
        None,
        lambda n, f: in_turn(byzfl.NNM(f=f), byzfl.TrMean(f=f)),
    ),
    "ARC + NNM + trimmed mean": Rule(
        lambda n, f: strategies.Robust(
            aggregator=Chain(
                Arc(num_byzantine=f), NearestNeighborMixing(num_byzantine=f), TrimmedMean(num_byzantine=f)
            )
        ),
        None,
        # byzfl's ARC overwrites its input.
        lambda n, f: in_turn(np.copy, byzfl.ARC(f=f), byzfl.NNM(f=f), byzfl.TrMean(f=f)),
    ),
}
GRID = [(n, d) for n in (10, 50, 100) for d in (100_000, 1_000_000, 10_000_000)]
QUICK = [(10, 100_000), (10, 1_000_000), (50, 100_000), (50, 1_000_000), (100, 100_000)]
TARGETS = {
    (50, 1_000_000): {"median": 10, "trimmed mean": 6, "Krum": 4, "Multi-Krum": 4, "Bulyan": 25},
    (10, 10_000_000): {"median": 30, "trimmed mean": 30, "Krum": 7, "Bulyan": 40},
}
SLOW_S = 10.0
"""A contestant that takes longer is timed once."""

NNM_MAX_BYTES = 12 << 30
"""byzfl's NNM gathers n − f neighbours of each of n rows at once; more than this is not asked of it."""

BYZFL_MAX_BYTES = 1 << 30
"""Larger stacks are not made for byzfl: its Krum needs several times their size."""


@dataclass(frozen=True)
class Result:
    """One row of the table; times in seconds, memory as shares of the payload, ``None`` where not run."""

    rule: str
    n: int
    d: int
    ours: float
    flwr: float | None
    byzfl: float | None
    kernel: float | None
    byzfl_kernel: float | None
    first: float
    memory: float
    flwr_memory: float | None

    @property
    def target(self) -> int | None:
        return TARGETS.get((self.n, self.d), {}).get(self.rule)


# -- The task -------------------------------------------------------------------------------------------


def make_arrays(d: int, rng: np.random.Generator, base: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """Return a model's layers, or a client's: a step of 0.01 away from the model."""
    sizes = [round(share * d) for share in LAYERS]
    sizes[0] += d - sum(sizes)
    drawn = [rng.standard_normal(size, dtype=np.float32) for size in sizes]
    return drawn if base is None else [b + 0.01 * x for b, x in zip(base, drawn, strict=True)]


def to_arrays(layers: list[np.ndarray]) -> dict[str, Array]:
    return {f"layer{i}": from_ndarray(values) for i, values in enumerate(layers)}


def make_reply(message: Message, arrays: dict[str, Array]) -> Message:
    """Return a reply of its own (flwr empties the records that it aggregates) over the same buffers."""
    metrics = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


def stacked(records: list[ArrayRecord]) -> np.ndarray:
    """Return the clients' arrays as byzfl wants them, one row each."""
    return np.stack(
        [np.concatenate([array.numpy().ravel() for array in record.values()]) for record in records]
    )


def byzfl_round(kernel: Callable[[Any], Any], replies: list[Message]) -> ArrayRecord:
    """Return the new parameters by a byzfl kernel: read, stack, call, write back."""
    records = [next(iter(reply.content.array_records.values())) for reply in replies]
    vector = kernel(stacked(records))
    ends = np.cumsum([np.prod(array.shape) for array in records[0].values()])[:-1].astype(int)
    parts = zip(records[0].items(), np.split(vector, ends), strict=True)
    return ArrayRecord({key: Array(part.reshape(array.shape)) for (key, array), part in parts})


# -- Measuring ------------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measured(call: Callable[[], Any], record_bytes: int) -> tuple[float, float]:
    """Return the seconds that ``call`` takes, and the bytes at its peak beyond what it returns."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resident("VmHWM") - before
    del result
    return seconds, max(peak - record_bytes, 0)


def is_slow(runs: list[tuple[float, float]]) -> bool:
    """Whether once is enough: noise does not change what a minute against a second says."""
    return bool(runs) and runs[0][0] > SLOW_S


def run_cell(n: int, d: int, names: list[str], repeats: int) -> list[Result]:
    """Return the results of all rules for one size; the replies are made once."""
    f = (n - 3) // 4
    rng = np.random.default_rng(0)
    base = make_arrays(d, rng)
    model = ArrayRecord(to_arrays(base))
    clients = [to_arrays(make_arrays(d, rng, base)) for _ in range(n)]
    stack = None
    if n * d * 4 <= BYZFL_MAX_BYTES:
        stack = stacked([ArrayRecord(client) for client in clients])
    results = []
    with InProcessGrid(lambda message, _: message, n) as grid:
        for name in names:
            rule = RULES[name]
            ours = rule.ours(n, f)
            messages = list(ours.configure_train(1, model, ConfigRecord(), grid))
            theirs = None if rule.flwr is None else rule.flwr(n, f)
            kernel = None if rule.byzfl is None or stack is None else rule.byzfl(n, f)
            if "NNM" in name and 4 * n * (n - f) * d > NNM_MAX_BYTES:
                kernel = None

            def replies(messages: list[Message] = messages) -> list[Message]:
                return [make_reply(m, client) for m, client in zip(messages, clients, strict=True)]

            start = time.perf_counter()
            ours.aggregate_train(1, replies())
            first = time.perf_counter() - start
            seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for _ in range(repeats):
                given = replies()
                seen["ours"].append(measured(lambda: ours.aggregate_train(1, given), 4 * d))  # noqa: B023
                if theirs is not None and not is_slow(seen["flwr"]):
                    given = replies()
                    seen["flwr"].append(measured(lambda: theirs.aggregate_train(1, given), 4 * d))  # noqa: B023
                if kernel is not None and not is_slow(seen["byzfl"]):
                    given = replies()
                    seen["byzfl"].append(measured(lambda: byzfl_round(kernel, given), 4 * d))  # noqa: B023
                    seen["byzfl_kernel"].append(measured(lambda: kernel(stack), 4 * d))  # noqa: B023
                    seen["kernel"].append(measured(lambda: call_rule(ours.aggregator, stack), 4 * d))  # noqa: B023
            time_of = {who: statistics.median(t for t, _ in runs) for who, runs in seen.items()}
            memory_of = {
                who: statistics.median(m for _, m in runs) / (4 * n * d) for who, runs in seen.items()
            }
            results.append(
                Result(
                    rule=name,
                    n=n,
                    d=d,
                    ours=time_of["ours"],
                    flwr=time_of.get("flwr"),
                    byzfl=time_of.get("byzfl"),
                    kernel=time_of.get("kernel"),
                    byzfl_kernel=time_of.get("byzfl_kernel"),
                    first=first,
                    memory=memory_of["ours"],
                    flwr_memory=memory_of.get("flwr"),
                )
            )
            print(table_row(results[-1]), flush=True)
    return results


# -- Reporting ------------------------------------------------------------------------------------------

HEADER = (
    "| rule | n | d | ours s | flwr s | byzfl s | flwr / ours | byzfl / ours | target | our kernel s "
    "| byzfl's kernel s | byzfl's / our kernel | first call s | extra memory / payload | flwr's |\n"
    + "|---" * 15
    + "|"
)


def table_row(result: Result) -> str:
    def seconds(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    def ratio(other: float | None, own: float | None = result.ours) -> str:
        return "–" if other is None or own is None else f"{other / own:.1f}×"

    target = "–"
    if result.target and result.flwr:
        target = f"{result.target}× {'met' if result.flwr / result.ours >= result.target else 'MISSED'}"
    memory = "–" if result.flwr_memory is None else f"{result.flwr_memory:.2f}"
    cells = [
        result.rule,
        result.n,
        f"10^{len(str(result.d)) - 1}",
        seconds(result.ours),
        seconds(result.flwr),
        seconds(result.byzfl),
        ratio(result.flwr),
        ratio(result.byzfl),
        target,
        seconds(result.kernel),
        seconds(result.byzfl_kernel),
        ratio(result.byzfl_kernel, result.kernel),
        seconds(result.first),
        f"{result.memory:.2f}",
        memory,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def document(results: list[Result], repeats: int, note: str) -> str:
    return "\n".join(
        [
            "# Aggregation: time and memory",
            "",
            f"Written by `python benchmarks/aggregation.py --write` on {os.cpu_count()} cores, medians of "
            f"{repeats} interleaved repeats, float32, f = (n − 3) // 4. {note}".strip(),
            "",
            "- *ours s*, *flwr s*: `aggregate_train` end to end on the same ArrayRecords. Ours checks every "
            "reply (layout, finiteness, metrics) and reports who counted.",
            "- *byzfl s*: end to end too, what a user must write around its kernel: `Array.numpy()` of every "
            "array, concatenate, stack, call, split, a new ArrayRecord. No check.",
            "- *our kernel s*, *byzfl's kernel s*: the rule alone on the same stacked (n, d) array.",
            "- Where the stack has more than 1 GiB, byzfl is not run.",
            "- What bounds ours: every reply is read from memory twice, to judge it before it counts and for "
            "the rule, and the new parameters are written three times (aggregate, step, record); distances "
            "add a product for every pair of rows.",
            "",
            HEADER,
            *map(table_row, results),
            "",
        ]
    )


def merged(path: Path | None, results: list[Result]) -> list[Result]:
    """Return the results with those in the file, to which they are added; a cell's last one counts."""
    if path is None:
        return results
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(result)) + "\n" for result in results)
    kept = {(r.n, r.d, r.rule): r for r in (Result(**json.loads(line)) for line in path.open())}
    names = list(RULES)
    return [kept[key] for key in sorted(kept, key=lambda key: (key[0], key[1], names.index(key[2])))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, three repeats")
    parser.add_argument("--rules", default=",".join(RULES), help="comma-separated, of: " + ", ".join(RULES))
    parser.add_argument("--cells", help="such as 50x1000000,10x10000000, instead of the grid")
    parser.add_argument("--repeats", type=int, help="per contestant")
    parser.add_argument("--results", type=Path, help="JSON lines of other runs; this run's are added")
    parser.add_argument("--note", default="", help="said in the document: what else the machine was doing")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/aggregation.md")
    options = parser.parse_args(arguments)
    cells = QUICK if options.quick else GRID
    if options.cells:
        cells = [(int(n), int(d)) for n, d in (cell.split("x") for cell in options.cells.split(","))]
    repeats = options.repeats or (3 if options.quick else 5)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    print(HEADER, flush=True)
    results = [result for n, d in cells for result in run_cell(n, d, options.rules.split(","), repeats)]
    measured_now, results = results, merged(options.results, results)
    if options.write:
        target = ROOT / "docs" / "benchmarks" / "aggregation.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(document(results, repeats, options.note))
        print(f"written to {target}")
    return int(any(r.target and r.flwr and r.flwr / r.ours < r.target for r in measured_now))


if __name__ == "__main__":
    sys.exit(main())
