"""Where the seconds of a deployed message go, without and with a resident worker on the nodes.

    python benchmarks/deployment.py --quick
    python benchmarks/deployment.py --write      # into docs/benchmarks/deployment.md

A real SuperLink and two SuperNodes on loopback, without TLS. Every message's way is read from the nodes' logs
(``FLWR_LOG_LEVEL=DEBUG``), the workers' lines in them, and the run's events. Medians over all messages from
the second round on, of one run per row: compare rows of one table, and look at the load before you believe.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_plugins.simulation.app_template import write_app
from fl_plugins.simulation.session import load_bundle
from fl_plugins.simulation.superlink import strip_colours
from fl_plugins.testing.deployment import local_deployment

NUM_NODES = 2
POLL_VARIABLE = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"

CONFIGURATIONS = {
    "flower-supernode, no worker": ("resident-worker=false", "flower-supernode"),
    "flower-supernode": ("", "flower-supernode"),
    "fl-plugins-supernode": ("", "fl-plugins-supernode"),
}
"""By name: node config, and what the nodes are started with."""

STEPS = {
    "received": "Receiving: ",
    "acquired": "Runtime.AcquireTask",
    "started": "Start `flwr-clientapp` process",
    "loading": "Loading ClientApp",
    "answered": "Runtime.PushMessages",
    "sending": "Sending: ",
    "sent": "Sent successfully",
}
"""What the log says when a message has got so far, in this order."""

COLUMNS = {
    "SuperExec looks": ("received", "acquired"),
    "flwr-clientapp starts": ("acquired", "started"),
    "it fetches the message": ("started", "loading"),
    "app: import, train, reply": ("loading", "answered"),
    "SuperNode looks": ("answered", "sending"),
    "upload": ("sending", "sent"),
}
"""Everything but the fourth is Flower's."""

_LINE = re.compile(r"^(?:INFO|DEBUG) (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}):\s*(.*)$")
_WORKED = re.compile(r"\[resident worker \d+\] (train|evaluate) in ([\d.]+) s")
_KIND = re.compile(r"Receiving: (\S+) message")


@dataclass
class Way:
    """One message's way through its node: when each step was reached, and the seconds in a worker."""

    kind: str
    steps: dict[str, float]
    worked: float | None = None

    def is_whole(self) -> bool:
        return len(self.steps) == len(STEPS)

    def seconds(self, column: str) -> float:
        first, last = COLUMNS[column]
        return self.steps[last] - self.steps[first]


def ways(log: Path) -> Iterator[Way]:
    """Read a node's log; a SuperNode has one message at a time."""
    way: Way | None = None
    order = list(STEPS)
    for line in strip_colours(log.read_text(errors="replace")).splitlines():
        if way is not None and (worked := _WORKED.search(line)):
            way.worked = float(worked[2])
        if not (match := _LINE.match(line)):
            continue
        stamp, text = match.groups()
        if kind := _KIND.search(text):
            way = Way(kind[1], {})
        if way is None or way.is_whole():
            continue
        left = order[len(way.steps) :]
        reached = next((index for index, step in enumerate(left) if STEPS[step] in text), None)
        if reached is not None:
            when = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
            for step in left[: reached + 1]:  # SuperExec may have been faster than the SuperNode's log
                way.steps[step] = when.timestamp()
            if way.is_whole():
                yield way


def to_server(found: list[Way], events: list[dict[str, object]]) -> list[float]:
    """Return the seconds from the end of each upload until the server has the reply."""
    uploads = sorted(way.steps["sent"] for way in found if way.kind in ("train", "evaluate"))
    replies = sorted(float(str(event["time"])) for event in events if event["event"] == "reply")
    return [max(reply - upload, 0.0) for upload, reply in zip(uploads, replies, strict=True)]


@dataclass
class Measured:
    """What one configuration gave."""

    name: str
    round_s: float
    columns: dict[str, float]
    training_s: float | None
    arrival_s: float
    arrival_worst_s: float

    def row(self) -> str:
        ours = self.columns["app: import, train, reply"]
        added = f"{ours - self.training_s:.2f}" if self.training_s is not None else "–"
        training = f"{self.training_s:.2f}" if self.training_s is not None else "–"
        parts = [f"{self.round_s:.1f}", *(f"{value:.2f}" for value in self.columns.values())]
        parts += [training, added, f"{self.arrival_s:.2f}", f"{self.arrival_worst_s:.2f}"]
        # A round is two exchanges, one after the other: train and evaluate.
        parts.append(f"{self.round_s / 2 - self.training_s:.2f}" if self.training_s is not None else "–")
        return f"| {self.name} | " + " | ".join(parts) + " |"


HEADER = ["", "round", *COLUMNS, "of it handler", "of it ours", "server has it", "worst", "added"]


def measure(name: str, num_rounds: int, task: str) -> Measured:
    """Run one configuration."""
    node_config, command = CONFIGURATIONS[name]
    with tempfile.TemporaryDirectory(prefix="flp-bench-") as temporary:
        folder = Path(temporary)
        bundle = load_bundle(write_app(folder / "app"))
        configs = [f"partition-id={i} num-partitions={NUM_NODES} {node_config}" for i in range(NUM_NODES)]
        variables = {"FL_PLUGINS_CACHE_DIR": str(folder / "jax-cache"), "FLWR_LOG_LEVEL": "DEBUG"}
        run_config = {"task": task, "num-rounds": num_rounds, "run-dir": str(folder / "run")}
        with local_deployment(
            folder, node_configs=configs, variables=variables, command=command
        ) as deployment:
            status = deployment.run(bundle, run_config, timeout_s=1800)
        if not status.is_completed:
            sys.exit(f"{name}: the run ended as {status}")
        lines = (folder / "run" / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        found = [way for number in range(NUM_NODES) for way in ways(folder / f"node-{number}.log")]
    served = [way for way in found if way.kind in ("train", "evaluate")]
    per_round = 2 * NUM_NODES
    later = sorted(served, key=lambda way: way.steps["received"])[per_round:]
    arrivals = to_server(served, events)[per_round:]
    rounds = [float(event["seconds"]) for event in events if event["event"] == "round_finished"][1:]
    worked = [way.worked for way in later if way.worked is not None]
    return Measured(
        name,
        statistics.median(rounds),
        {column: statistics.median(way.seconds(column) for way in later) for column in COLUMNS},
        statistics.median(worked) if worked else None,
        statistics.median(arrivals),
        max(arrivals),
    )


def table(rows: list[Measured], *, num_rounds: int, task: str) -> str:
    """Return the table as Markdown."""
    poll = os.environ.get(POLL_VARIABLE, "0.1")  # local_deployment's default
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n".join(
        [
            f"Task `{task}`, {NUM_NODES} SuperNodes, {num_rounds} rounds of train and evaluate; "
            f"{POLL_VARIABLE}={poll}; {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"load at the end {load}. Median seconds per message from round 2 on.",
            "",
            "| " + " | ".join(HEADER) + " |",
            "|" + "---|" * len(HEADER),
            *(row.row() for row in rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 rounds instead of 10")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--only", choices=CONFIGURATIONS, help="one configuration")
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/benchmarks/deployment.md"
    )
    options = parser.parse_args()
    num_rounds = 4 if options.quick else 10
    rows = []
    for name in [options.only] if options.only else CONFIGURATIONS:
        rows.append(measure(name, num_rounds, options.task))
        print(rows[-1].row(), flush=True)
    text = table(rows, num_rounds=num_rounds, task=options.task)
    print(f"\n{text}")
    if options.write:
        page = Path(__file__).parents[1] / "docs" / "benchmarks" / "deployment.md"
        marker = "<!-- everything below is written by benchmarks/deployment.py -->"
        kept = page.read_text().partition(marker)[0] if page.exists() else "# Deployed messages\n\n"
        page.write_text(f"{kept}{marker}\n\n{text}\n")


if __name__ == "__main__":
    main()
