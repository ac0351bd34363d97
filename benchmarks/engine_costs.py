"""What Flower's simulation engine (1.41) costs per message and per start: the figures of docs/upstream.md.

    python benchmarks/engine_costs.py                  # everything: some minutes
    python benchmarks/engine_costs.py sweep pickle     # parts: sweep, pickle, round-trip, imports

Reaches into flwr's private modules: for measuring only.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def median_of(repeats: int, call: Callable[[], Any]) -> float:
    """Return the median seconds that ``call`` takes."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def sweep() -> None:
    """Time the engine's delivery loop: one pass over all nodes with a fifth of them having a message."""
    from flwr.app import Message, RecordDict

    from fl_plugins._flower import server_identity

    print("| nodes | messages waiting | one sweep, s | one sweep with all delivered, s |\n|---|---|---|---|")
    for nodes, waiting in ((2, 2), (100, 20), (100, 100), (1000, 200)):
        state, ids = _state_with_nodes(nodes)
        with server_identity():
            for node in ids[:waiting]:
                message = Message(RecordDict(), node, "train")
                message.metadata.__dict__["_message_id"] = str(uuid4())
                message.metadata.__dict__["_run_id"] = _RUN_ID
                assert state.store_message_ins(message), "the message was refused"

        def one_sweep(state: Any = state, ids: list[int] = ids) -> int:
            return sum(len(state.get_message_ins(node_id=node, limit=1)) for node in ids)

        start = time.perf_counter()
        delivered = one_sweep()
        seconds = time.perf_counter() - start
        assert delivered == waiting
        idle = median_of(3 if nodes <= 100 else 1, one_sweep)
        print(f"| {nodes} | {waiting} | {seconds:.4f} | {idle:.4f} |", flush=True)


_RUN_ID = 1


def _state_with_nodes(nodes: int) -> tuple[Any, list[int]]:
    """Return the engine's in-memory state with one run and registered nodes, as its main loop makes it."""
    from flwr.proto.task_pb2 import Task
    from flwr.server.superlink.fleet.vce.vce_api import _register_nodes
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run
    from flwr.superlink.federation import NoOpFederationManager

    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    ids = list(_register_nodes(num_nodes=nodes, state_factory=factory))
    run: Any = Run.create_empty(_RUN_ID)
    run.federation_id = NOOP_FEDERATION_ID
    state: Any = factory.state()
    run.primary_task_id = _RUN_ID
    state.run_ids[_RUN_ID] = RunRecord(run=run)
    state.task_store[_RUN_ID] = Task(task_id=_RUN_ID, run_id=_RUN_ID)
    return state, ids


def pickling() -> None:
    """Time what Ray does with every message: pickle it with the model, and read it back."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, Message, RecordDict
    from ray import cloudpickle

    from fl_plugins._flower import server_identity

    print("| parameters | pickle one message, s | read it, s | for 20 clients, s |\n|---|---|---|---|")
    for size in (159_010, 10_000_000):
        with server_identity():
            record = ArrayRecord({"w": Array(np.zeros(size, np.float32))})
            message = Message(RecordDict({"arrays": record}), 1, "train")
        text = cloudpickle.dumps(message)
        write = median_of(7, lambda message=message: cloudpickle.dumps(message))
        read = median_of(7, lambda text=text: cloudpickle.loads(text))
        print(f"| {size:,} | {write:.4f} | {read:.4f} | {20 * (write + read):.3f} |", flush=True)


def round_trip() -> None:
    """Time an exchange of empty messages on the engine, and the start before the first of them."""
    print("| nodes | asked | start to first reply, s | one empty exchange, s |\n|---|---|---|---|")
    for nodes, asked in ((2, 2), (100, 20)):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = [sys.executable, __file__, "--child", f"{nodes},{asked},{out}"]
            begun = time.time()
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            first, *others = (float(line) for line in out.read_text().split())
        pauses = [after - before for before, after in pairwise(others)]
        line = f"| {nodes} | {asked} | {first - begun:.1f} | {statistics.median(pauses):.3f} |"
        print(line, flush=True)


def child(text: str) -> None:
    """Run the exchanges of :func:`round_trip` in this process."""
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    nodes, asked, out = text.split(",")
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, _: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        while len(ids := list(grid.get_node_ids())) < int(nodes):
            time.sleep(0.05)  # the ServerApp starts before the nodes are registered
        ids = ids[: int(asked)]
        with Path(out).open("a") as file:
            for _ in range(22):
                replies = list(grid.send_and_receive([Message(RecordDict(), i, "train") for i in ids]))
                assert len(replies) == int(asked)
                file.write(f"{time.time()}\n")
                file.flush()

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, num_supernodes=int(nodes), backend_config=resources)


def imports() -> None:
    """Time the imports that every fresh process of a run pays for."""
    print("| import | s, median of 3 fresh processes |\n|---|---|")
    for text in (
        "pass",
        "import numpy",
        "import flwr.simulation",
        "import ray",
        "import jax",
        "import flax.nnx",
    ):
        call = [sys.executable, "-c", text]
        seconds = median_of(3, lambda call=call: subprocess.run(call, check=True, capture_output=True))
        print(f"| `{text}` | {seconds:.2f} |", flush=True)


PARTS = {"sweep": sweep, "pickle": pickling, "round-trip": round_trip, "imports": imports}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="of: " + ", ".join(PARTS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    for part in options.parts:
        print(f"\n## {part}\n")
        PARTS[part]()


if __name__ == "__main__":
    main()
