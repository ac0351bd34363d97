"""What each way to hide a sum costs in one round: pairwise masks, helper nodes, homomorphic encryption.

    python benchmarks/secagg_backends.py            # prints the table
    python benchmarks/secagg_backends.py --write    # puts it into docs/benchmarks/secagg.md

As in secagg.py: one process, real sessions, CPU seconds of the process; a client's figure is the median of a
few. The other clients mask random words, and with encryption send the ciphertexts of one of the few again:
the work of server and helpers does not depend on what is summed. *Exchanges* is how often the server waits
for nodes in a round, training included.
"""

import argparse
import hashlib
import os
import secrets
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from secagg import NUM_SAMPLED, PAGE, Cost, Meter, ours

from fl_plugins.errors import ConfigError
from fl_plugins.secagg import (
    AdditiveServerSession,
    ClientPolicy,
    FixedPoint,
    HelperSession,
    Identity,
    RoundParameters,
    Stage,
    Tier,
    mask_for_helpers,
)
from fl_plugins.secagg.ckks import SumKey, tenseal
from fl_plugins.secagg.ckks_session import EncryptedClientSession, EncryptedServerSession

MODEL = hashlib.sha256(b"model").digest()
BEGIN, END = "<!-- written by benchmarks/secagg_backends.py -->", "<!-- end of secagg_backends.py -->"


@dataclass(kw_only=True)
class Line(Cost):
    """One backend's cell: what it costs helpers too, and how often nodes are waited for."""

    exchanges: int
    client_messages: int
    helper_s: float | None = None
    helper_uplink: int | None = None


def round_of(n: int, d: int, tier: Tier) -> tuple[RoundParameters, FixedPoint, Any, Any]:
    """Return parameters, encoding, an update and random words."""
    encoding = FixedPoint(num_bits=32, cohort=n, clip=1.0, max_weight=1.0, num_entries=d)
    parameters = RoundParameters(
        tier=tier,
        run_id=1,
        round=1,
        attempt=0,
        sid=secrets.token_bytes(16),
        cohort=n,
        min_clients=3,
        corrupt=0.05,
        dropout=0.05,
        num_bits=32,
        clip=1.0,
        max_weight=1.0,
        length=encoding.length,
        layout=MODEL,
        model=MODEL,
    )
    update = np.random.default_rng(0).normal(0, 0.1, d).astype(np.float32)
    noise = np.random.default_rng(1).integers(0, 2**32, encoding.length, np.uint64).astype("<u4")
    return parameters, encoding, update, noise


def pairwise(n: int, d: int, dropout: float, tier: Tier) -> Line:
    """Measure the protocol of pairwise masks."""
    cost = ours(n, d, dropout, tier=tier, num_bits=32)
    stages = 5 if tier is Tier.MALICIOUS else 4
    return Line(**{**vars(cost), "exchanges": stages, "client_messages": stages})


def additive(n: int, d: int, dropout: float, tier: Tier, num_helpers: int) -> Line:
    """Measure additive sharing over helpers."""
    parameters, encoding, update, noise = round_of(n, d, tier)
    nodes = list(range(1, n + 1))
    helpers = list(range(n + 1, n + num_helpers + 1))
    signed = tier is Tier.MALICIOUS
    identities = {node: Identity.generate() for node in nodes + helpers} if signed else {}

    def policy(peers: Sequence[int]) -> ClientPolicy:
        return ClientPolicy(roster=frozenset(identities[node].public for node in peers if signed))

    of_clients, of_helpers = policy(nodes), policy(helpers)
    dead, sampled = set(nodes[: round(dropout * n)]), set(nodes[-NUM_SAMPLED:])
    client, helper, server = Meter(), Meter(), Meter()
    with server.on("all"):
        session = AdditiveServerSession(parameters, nodes, helpers)
        requests = session.requests()
    saved = {}
    for node, request in requests.items():
        with helper.on(node):
            saved[node], reply = HelperSession.begin(
                request, node=node, run_id=1, policy=of_clients, identity=identities.get(node)
            )
        with server.on("all"):
            session.receive(node, reply.body)
    with server.on("all"):
        session.advance()
        requests = session.requests()
    uplink, down = 0, 0
    for node, request in requests.items():
        if node in dead:
            continue
        with client.on(node):
            words = encoding.encode([update]).words if node in sampled else noise
            reply = mask_for_helpers(
                request,
                words,
                node=node,
                run_id=1,
                model=MODEL,
                layout=MODEL,
                policy=of_helpers,
                num_helpers=num_helpers,
                identity=identities.get(node),
            )
        assert reply.vector is not None
        if node in sampled:
            uplink, down = len(reply.body) + reply.vector.nbytes, len(request)
        with server.on("all"):
            session.receive(node, reply.body, reply.vector)
    with server.on("all"):
        session.advance()
        requests = session.requests()
    for node, request in requests.items():
        with helper.on(node):
            reply = saved[node].answer(Stage.UNMASK, request)
        assert reply.vector is not None
        with server.on("all"):
            session.receive(node, reply.body, reply.vector)
    with server.on("all"):
        session.advance()
    assert len(session.result.survivors) == n - len(dead)
    return Line(
        name=f"additive, {num_helpers} helpers, {tier}",
        client_s=statistics.median(client.seconds[node] for node in sampled),
        server_s=server.seconds["all"],
        uplink=uplink,
        downlink=down,
        exchanges=3,
        client_messages=1,
        helper_s=statistics.median(helper.seconds.values()),
        helper_uplink=reply.vector.nbytes,
    )


def encrypted(n: int, d: int, dropout: float) -> Line:
    """Measure encrypted summing; what the client that decrypts does for it is counted apart."""
    parameters, encoding, update, _ = round_of(n, d, Tier.HONEST_BUT_CURIOUS)
    key, nodes = SumKey.generate(), list(range(1, n + 1))
    dead = set(nodes[: round(dropout * n)])
    alive = [node for node in nodes if node not in dead]
    client, server = Meter(), Meter()
    with server.on("all"):
        session = EncryptedServerSession(parameters, nodes)
        requests = session.requests()
    vector = None
    for node in alive:
        own = EncryptedClientSession(parameters=parameters, node=node, key=key, policy=ClientPolicy())
        if node in alive[:NUM_SAMPLED]:
            with client.on(node):
                vector = own.begin(encoding.encode([update]).words).vector
        with server.on("all"):
            session.receive(node, b"", vector)
    assert vector is not None
    with server.on("all"):
        session.advance()
        [(node, request)] = session.requests().items()
    own = EncryptedClientSession(parameters=parameters, node=node, key=key, policy=ClientPolicy())
    with client.on("decrypts"):
        reply = own.answer(Stage.UNMASK, request)
    with server.on("all"):
        session.receive(node, reply.body, reply.vector)
        session.advance()
    return Line(
        name="CKKS, one key of all clients",
        client_s=statistics.median(client.seconds[node] for node in alive[:NUM_SAMPLED]),
        server_s=server.seconds["all"],
        uplink=vector.nbytes,
        downlink=len(requests[node]),
        exchanges=2,
        client_messages=1,
        helper_s=client.seconds["decrypts"],
        helper_uplink=reply.vector.nbytes if reply.vector is not None else 0,
    )


COLUMNS = (
    "n",
    "d",
    "backend",
    "exchanges",
    "messages of a client",
    "client CPU s",
    "helper CPU s (CKKS: who decrypts)",
    "server CPU s",
    "client's uplink bytes/parameter",
    "helper's uplink bytes/parameter",
    "client's downlink KiB (without the model)",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def row(n: int, d: int, line: Line) -> str:
    """Return a line of the table."""
    helper = "" if line.helper_s is None else f"{line.helper_s:.3f}"
    sent = "" if line.helper_uplink is None else f"{line.helper_uplink / d:.3f}"
    costs = (f"{line.client_s:.3f}", helper, f"{line.server_s:.3f}", f"{line.uplink / d:.3f}", sent)
    counts = (str(line.exchanges), str(line.client_messages))
    return (
        f"| {' | '.join((str(n), f'{d:.0e}', line.name, *counts, *costs, f'{line.downlink / 1024:.1f}'))} |"
    )


def lines(clients: Sequence[int], entries: Sequence[int], dropout: float) -> Iterator[str]:
    """Yield the table's lines."""
    yield HEADER
    for n in clients:
        for d in entries:
            for tier in Tier:
                yield row(n, d, pairwise(n, d, dropout, tier))
            for tier in Tier:
                yield row(n, d, additive(n, d, dropout, tier, 2))
            yield row(n, d, additive(n, d, dropout, Tier.HONEST_BUT_CURIOUS, 3))
            try:
                tenseal()
            except ConfigError as error:
                print(error, file=sys.stderr)
            else:
                yield row(n, d, encrypted(n, d, dropout))


def main() -> None:
    """Measure and print, and write the section if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="replace the section of docs/benchmarks/secagg.md"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--entries", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dropout", type=float, default=0.05)
    arguments = parser.parse_args()
    table = []
    for line in lines(arguments.clients, arguments.entries, arguments.dropout):
        table.append(line)
        print(line, flush=True)
    if arguments.write:
        write_section(PAGE, table)


def write_section(page: Path, table: Sequence[str]) -> None:
    """Replace what stands between the two marks."""
    before, rest = page.read_text().split(BEGIN)
    command = " ".join(["python", "benchmarks/secagg_backends.py", *sys.argv[1:]])
    body = f"`{command}`, {os.cpu_count()} cores\n\n" + "\n".join(table)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
