"""What secure aggregation costs: CPU time, bytes and memory of a client and of the server, beside Flower's
SecAgg+.

    python benchmarks/secagg.py --quick      # n <= 100, d <= 10⁶, 5 % dropouts, and n = 1000 with d = 10⁵
    python benchmarks/secagg.py --write      # the whole grid, into docs/benchmarks/secagg.md

One process, no network: real client and server sessions pass bytes to each other. CPU seconds are those of
the process, all threads together. Every client runs every stage, but only a few, drawn evenly, hold a vector
of d words; the others hold one word, and the server gets random words in their place, since its work does
not depend on them. A client's figure is the median of the few. Whether sums are right is what the tests say,
not this.

**Flower.** The functions of its mod and workflow (``flwr.common.secure_aggregation`` and the mod's four
stages) on the complete graph, with the same threshold. At n = 100 its server takes minutes, nearly all of it
in Shamir's combination: one combination of each kind and five masks are timed and multiplied by their number
(marked ~).

Memory is the peak of what one client's stage, or the server's taking of all answers of one stage, allocates
beyond what was there when it began (tracemalloc, in a second round that is not timed, for at most 100
clients).

Plain FedAvg is one pass of weighted addition over n float32 vectors.
"""

import argparse
import contextlib
import hashlib
import importlib
import os
import secrets
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np

from fl_plugins.secagg import (
    ClientPolicy,
    ClientSession,
    FixedPoint,
    Identity,
    RoundParameters,
    ServerSession,
    Stage,
    Tier,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "secagg.md"
NUM_SAMPLED = 3
MARK = "<!-- written by benchmarks/secagg.py -->"


@dataclass(kw_only=True)
class Cost:
    """One contestant's cell."""

    name: str
    client_s: float
    server_s: float
    uplink: int
    downlink: int
    client_peak: int | None = None
    server_peak: int | None = None
    scaled: bool = False


@dataclass
class Meter:
    """Adds up CPU seconds by name."""

    seconds: dict[Any, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, name: Any) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


class Peak:
    """Peak of allocated memory, NumPy's included, above where it stood; 0 unless tracemalloc is on."""

    def __init__(self) -> None:
        self.start = tracemalloc.get_traced_memory()[0]
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()

    def bytes(self) -> int:
        return tracemalloc.get_traced_memory()[1] - self.start


def measured(n: int, d: int, dropout: float, **options: Any) -> Cost:
    """Play one round for the time, and up to 100 clients another, much slower, for the memory."""
    cost = ours(n, d, dropout, **options)
    if n > 100:
        return replace(cost, client_peak=None, server_peak=None)
    tracemalloc.start()
    traced = ours(n, d, dropout, **options)
    tracemalloc.stop()
    return replace(cost, client_peak=traced.client_peak, server_peak=traced.server_peak)


def ours(n: int, d: int, dropout: float, *, tier: Tier, num_bits: int, complete: bool = False) -> Cost:
    """Play one round."""
    encoding = FixedPoint(num_bits=num_bits, cohort=n, clip=1.0, max_weight=1.0, num_entries=d)
    model = hashlib.sha256(b"model").digest()
    parameters = RoundParameters(
        tier=tier,
        run_id=1,
        round=1,
        attempt=0,
        sid=secrets.token_bytes(16),
        cohort=n,
        min_clients=3,
        corrupt=0.05,
        dropout=max(dropout, 0.05),
        num_bits=num_bits,
        clip=1.0,
        max_weight=1.0,
        length=encoding.length,
        layout=model,
        model=model,
        max_complete=max(n, 64) if complete else 64,
    )
    nodes = [secrets.randbelow(2**64 - 1) + 1 for _ in range(n)]
    identities = {node: Identity.generate() for node in nodes} if tier is Tier.MALICIOUS else {}
    policy = ClientPolicy(roster=frozenset(identity.public for identity in identities.values()))
    dead = set(nodes[1 : 1 + round(dropout * n)])
    sampled = set(nodes[-min(NUM_SAMPLED, n) :])
    update = np.random.default_rng(0).normal(0, 0.1, d).astype(np.float32)
    noise = np.random.default_rng(1).integers(0, 2**num_bits, encoding.length, np.uint64)
    noise = noise.astype(f"<u{num_bits // 8}")
    client, server = Meter(), Meter()
    up, down, client_peak, server_peak = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0), 0, 0
    sessions: dict[int, ClientSession] = {}
    with server.on("all"):
        session = ServerSession(parameters, nodes)
    while session.stage is not Stage.CLOSED:
        stage = session.stage
        with server.on("all"):
            requests = session.requests()
        replies = {}
        for node, body in requests.items():
            if node in dead and stage not in (Stage.ADVERTISE, Stage.SHARE):
                continue
            down[node] += len(body)
            peak = Peak() if node in sampled else None
            with client.on(node):
                if stage is Stage.ADVERTISE:
                    words = encoding.encode([update]).words if node in sampled else noise
                    sessions[node], reply = ClientSession.begin(
                        body,
                        words,
                        node=node,
                        run_id=1,
                        model=model,
                        layout=model,
                        policy=policy,
                        identity=identities.get(node),
                    )
                    del words
                else:
                    reply = sessions[node].answer(stage, body)
            if peak is not None:
                client_peak = max(client_peak, peak.bytes())
            if stage is Stage.ADVERTISE and node not in sampled:
                sessions[node]._memory.vector = np.zeros(1, noise.dtype)
            vector = reply.vector if node in sampled or reply.vector is None else noise
            up[node] += len(reply.body) + (0 if vector is None else vector.nbytes)
            replies[node] = (reply.body, vector)
        peak = Peak()
        with server.on("all"):
            for node, (body, vector) in replies.items():
                session.receive(node, body, vector)
            session.advance()
        server_peak = max(server_peak, peak.bytes())
    middle = {node: client.seconds[node] for node in sampled}
    graph = "complete" if session._topology.is_complete(n) else f"k={session._topology.degree}"
    return Cost(
        name=f"this project, {tier}, {graph}, {num_bits} bits",
        client_s=statistics.median(middle.values()),
        server_s=server.seconds["all"],
        uplink=max(up[node] for node in sampled),
        downlink=max(down[node] for node in sampled),
        client_peak=client_peak,
        server_peak=server_peak,
    )


def timed(work: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """Return the median CPU seconds of some calls, and the last result."""
    seconds, result = [], None
    for _ in range(times):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), result


def flower(n: int, d: int, dropout: float) -> Cost:
    """Run Flower's mod for one client, and its workflow's functions for the server."""
    from flwr.app import ConfigRecord
    from flwr.common import ndarray_to_bytes, ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares
    from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_subtraction
    from flwr.common.secure_aggregation.secaggplus_constants import Key

    # The package has a function of the module's name in the module's place.
    mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    threshold = 2 * n // 3 + 1
    settings = {
        Key.SAMPLE_NUMBER: n,
        Key.SHARE_NUMBER: n,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: 1 << 22,
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 1000.0,
    }
    states, keys = {}, {}
    for node in range(1, n + 1):
        states[node] = mod.SecAggPlusState()
        states[node].nid = node
        keys[node] = mod._setup(states[node], ConfigRecord(settings))
    me = states[1]
    client_s, setup = timed(lambda: mod._setup(me, ConfigRecord(settings)))
    keys[1] = setup
    listed = ConfigRecord(
        {str(v): [keys[v][Key.PUBLIC_KEY_1], keys[v][Key.PUBLIC_KEY_2]] for v in range(1, n + 1)}
    )
    seconds, shared = timed(lambda: mod._share_keys(me, listed))
    client_s += seconds
    num_dead = round(dropout * n)
    packets, sources = [], []
    for node in range(2, n + 1):
        text = mod.share_keys_plaintext_concat(node, 1, me.rd_seed_share_dict[1], me.sk1_share_dict[1])
        packets.append(mod.encrypt(me.ss2_dict[node], text))
        sources.append(node)
    update = np.random.default_rng(0).normal(0, 0.1, d).astype(np.float32)
    parameters = ndarrays_to_parameters([update])
    received = ConfigRecord({Key.CIPHERTEXT_LIST: packets, Key.SOURCE_LIST: sources})
    seconds, masked = timed(lambda: mod._collect_masked_vectors(me, received, 10, parameters))
    client_s += seconds
    alive = list(range(1, n + 1 - num_dead))
    lists = ConfigRecord(
        {Key.ACTIVE_NODE_ID_LIST: alive, Key.DEAD_NODE_ID_LIST: list(range(len(alive) + 1, n + 1))}
    )
    seconds, shares = timed(lambda: mod._unmask(me, lists))
    client_s += seconds
    uplink = sum(len(item) for item in (*setup.values(), *masked[Key.MASKED_PARAMETERS]))
    uplink += sum(map(len, (*shared[Key.CIPHERTEXT_LIST], *shares[Key.SHARE_LIST])))
    downlink = sum(len(key) for pair in listed.values() for key in pair) + sum(map(len, packets))

    seed_shares = mod.create_shares(me.rd_seed, threshold, n)[: len(alive)]
    key_shares = mod.create_shares(me.sk1, threshold, n)[: len(alive)]
    combine_seed, _ = timed(lambda: combine_shares(seed_shares))
    combine_key, _ = timed(lambda: combine_shares(key_shares))
    vector = [np.zeros(d, np.int64)]
    mask_s, _ = timed(
        lambda: parameters_subtraction(vector, mod.pseudo_rand_gen(me.rd_seed, 1 << 32, [(d,)])), 5
    )
    agree_s, _ = timed(
        lambda: mod.generate_shared_key(
            mod.bytes_to_private_key(me.sk1), mod.bytes_to_public_key(keys[2][Key.PUBLIC_KEY_1])
        ),
        3,
    )
    add_s, _ = timed(lambda: parameters_addition(vector, vector), 5)
    data = ndarray_to_bytes(vector[0])
    read_s, _ = timed(lambda: mod.parameters_to_ndarrays(ndarrays_to_parameters([vector[0]])) and data, 3)
    num_pairs = num_dead * (n - 1)
    server_s = len(alive) * (add_s + read_s + combine_seed + mask_s)
    server_s += num_dead * combine_key + num_pairs * (agree_s + mask_s)
    return Cost(
        name="Flower SecAgg+ functions, complete",
        client_s=client_s,
        server_s=server_s,
        uplink=uplink,
        downlink=downlink,
        scaled=True,
    )


def fedavg(n: int, d: int, dropout: float) -> Cost:
    """Add up n float32 vectors with weights."""
    update = np.random.default_rng(0).normal(0, 0.1, d).astype(np.float32)
    total, term = np.zeros(d, np.float32), np.empty(d, np.float32)

    def add() -> None:
        for _ in range(n - round(dropout * n)):
            np.multiply(update, np.float32(0.5), out=term)
            np.add(total, term, out=total)

    seconds, _ = timed(add, 3)
    return Cost(name="plain FedAvg", client_s=0.0, server_s=seconds, uplink=4 * d, downlink=0)


def row(n: int, d: int, dropout: float, cost: Cost) -> str:
    """Return a line of the table."""

    def mib(value: int | None) -> str:
        return "" if value is None else f"{value / 2**20:.1f}"

    server = f"{'~' if cost.scaled else ''}{cost.server_s:.3f}"
    numbers = (f"{cost.client_s:.3f}", server, f"{cost.uplink / d:.3f}", f"{cost.downlink / 1024:.0f}")
    memory = (mib(cost.client_peak), mib(cost.server_peak))
    return f"| {' | '.join((str(n), f'{d:.0e}', f'{dropout:.0%}', cost.name, *numbers, *memory))} |"


HEADER = (
    "| n | d | dropouts | what | client CPU s | server CPU s | uplink bytes/parameter | "
    "downlink KiB (without the model) | client peak MiB | server peak MiB |\n|" + "---|" * 10
)


def cells(arguments: argparse.Namespace) -> Iterator[tuple[int, int, float]]:
    """Yield what is measured."""
    for n in arguments.clients:
        for d in arguments.entries:
            if arguments.quick and n == 1000 and d > 100_000:
                continue
            for dropout in arguments.dropouts:
                yield n, d, dropout


def main() -> None:
    """Measure and print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="d <= 10⁶, 5 %% dropouts")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {PAGE.relative_to(ROOT)}")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--entries", type=int, nargs="+")
    parser.add_argument("--dropouts", type=float, nargs="+")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.entries = arguments.entries or ([100_000, 1_000_000] if quick else [10**5, 10**6, 10**7])
    arguments.dropouts = arguments.dropouts or ([0.05] if quick else [0.0, 0.05, 0.1])
    lines = [HEADER]
    print(HEADER)
    for n, d, dropout in cells(arguments):
        costs = [measured(n, d, dropout, tier=Tier.HONEST_BUT_CURIOUS, num_bits=bits) for bits in (32, 16)]
        if n <= 100:
            if n > 64:
                costs.append(
                    measured(n, d, dropout, tier=Tier.HONEST_BUT_CURIOUS, num_bits=32, complete=True)
                )
            costs.append(measured(n, d, dropout, tier=Tier.MALICIOUS, num_bits=32))
            costs.append(flower(n, d, dropout))
        costs.append(fedavg(n, d, dropout))
        for cost in costs:
            lines.append(row(n, d, dropout, cost))
            print(lines[-1], flush=True)
    if arguments.write:
        page = PAGE.read_text().split(MARK)[0] if PAGE.exists() else "# Secure aggregation: what it costs\n\n"
        command = " ".join(["python", "benchmarks/secagg.py", *(a for a in sys.argv[1:] if a != "--write")])
        PAGE.write_text(f"{page}{MARK}\n\n`{command}`, {os.cpu_count()} cores\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
