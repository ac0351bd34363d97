"""How each contestant of ``benchmarks/simulation.py`` is started, and how its marks are read."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import workload
from .marks import Marks, read_marks

PEERS = Path(__file__).resolve().parents[2] / ".venv-peers"
HERE = Path(sys.executable)
FEDERATION = "fraction_train={fraction}, fraction_evaluate=0.0"

PINNED = {
    "flwr": ["flwr[simulation]==1.41.0", "torch==2.13.0"],
    "pfl": ["pfl==0.6.0", "torch==2.13.0"],
    # The newest on PyPI; it needs `jax.tree_map` given back to it (contestants/fedjax_runner.py).
    "fedjax": ["fedjax==0.0.17", "jax==0.10.2", "jaxlib==0.10.2", "dm-haiku==0.0.17"],
}
"""Each peer's virtual environment and what is in it."""


@dataclass(frozen=True)
class Run:
    """One run that is asked for, with so many clients per round; its marks and logs go to its folder."""

    model: str
    rounds: int
    folder: Path
    sampled: int

    @property
    def marks(self) -> Path:
        return self.folder / "marks.jsonl"


@dataclass(frozen=True)
class Runner:
    """One contestant: the command that runs it, and how its marks are read."""

    title: str
    command: Callable[[Run], list[str]]
    read: Callable[[Run], Marks] = field(default=lambda run: read_marks(run.marks))
    peer: str | None = None


def module(name: str, *options: str, python: Path = HERE) -> Callable[[Run], list[str]]:
    """Return the command of a contestant that is a module."""

    def command(run: Run) -> list[str]:
        said = ["--model", run.model, "--rounds", str(run.rounds), "--marks", str(run.marks)]
        return [str(python), "-m", f"contestants.{name}", *said, *options]

    return command


def ours(*, num_supernodes: int, config: str = "") -> Callable[[Run], list[str]]:
    """Return the command line with which a user of this project runs the same."""

    def command(run: Run) -> list[str]:
        share = run.sampled / workload.NUM_CLIENTS
        rate, batch = workload.LEARNING_RATE[run.model], workload.BATCH
        quiet = f"client-evaluation=false evaluate-every={10**6} checkpoint-every={10**6}"
        return [
            str(HERE.parent / "fl-plugins"),
            "simulate",
            *("--strategy", f"fedavg({FEDERATION.format(fraction=share)})"),
            *(
                "--client",
                f"supervised(optimizer='sgd', learning_rate={rate}, local_epochs=1, batch_size={batch})",
            ),
            *("--task", f"simulation(model='{run.model}')"),
            *("--num-rounds", str(run.rounds), "--num-supernodes", str(num_supernodes)),
            *("--run-config", f"plugins='contestants.ours' {quiet} {config}".strip()),
            *("--runs-dir", str(run.folder), "--name", "run"),
        ]

    return command


def read_events(run: Run) -> Marks:
    """Return the marks of a run of this project, from its event log."""
    lines = (run.folder / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    accepted = sum(e["accepted"] for e in events if e["event"] == "aggregated")
    losses = [e["metrics"]["loss"] for e in events if e["event"] == "evaluated" and e["where"] == "server"]
    if not any(e["event"] == "run_finished" for e in events):
        raise ValueError(f"{run.folder}: the run did not finish")
    return Marks(
        rounds=[e["time"] for e in events if e["event"] == "round_finished"],
        steps=accepted * workload.STEPS,
        loss=float(losses[-1]),
    )


def peer(name: str) -> Path:
    return PEERS / name / "bin" / "python"


RUNNERS = {
    "flwr-torch": Runner(
        "flwr + PyTorch client",
        module("flower_runner", "--framework", "torch", python=peer("flwr")),
        peer="flwr",
    ),
    "flwr-jax": Runner("flwr + naive JAX client", module("flower_runner", "--framework", "jax")),
    "ours-nodes": Runner(
        "ours, one client per SuperNode", ours(num_supernodes=workload.NUM_CLIENTS), read_events
    ),
    "ours-cohort": Runner(
        "ours, cohort: 100 clients on 1 SuperNode",
        ours(num_supernodes=1, config=f"virtual-clients={workload.NUM_CLIENTS}"),
        read_events,
    ),
    "ours-cohort-ray": Runner(
        "ours, cohort, the SuperNode in a Ray actor",
        ours(num_supernodes=1, config=f"virtual-clients={workload.NUM_CLIENTS} in-process-cores=0"),
        read_events,
    ),
    "pfl": Runner("pfl-research, 1 process", module("pfl_runner", python=peer("pfl")), peer="pfl"),
    "pfl-2": Runner(
        "pfl-research, 2 processes", module("pfl_runner", "--processes", "2", python=peer("pfl")), peer="pfl"
    ),
    "fedjax": Runner("FedJAX", module("fedjax_runner", python=peer("fedjax")), peer="fedjax"),
    "floor": Runner("bare XLA, 1 device", module("floor")),
    "floor-2": Runner("bare XLA, 2 host devices", module("floor", "--devices", "2")),
}
"""The contestants; the first one is what the others are compared with."""


def install_peers() -> None:
    """Make the peers' virtual environments; one that exists is brought to the pinned versions."""
    for name, pins in PINNED.items():
        print(f"{name}: {', '.join(pins)}", flush=True)
        if not peer(name).exists():
            subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
        pip = [str(peer(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, *pins]).returncode:
            print(f"{name}: does not install here; its contestants are left out", file=sys.stderr)
