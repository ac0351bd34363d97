"""A deployment with faults, on this machine: `make deploy-demo`.

Five real processes (and what they start): a SuperLink with TLS and node authentication, and four SuperNodes,
each with its own key, its own policy and, if the data are there, its own hospital's patients only.

1. An undisturbed run.
2. The same run again. A SuperNode is killed in mid-round and brought back; then the ServerApp is killed and
   the run resumed.
3. A run of another task, which every node's policy refuses.

The first two must have ended with the same parameters, bit for bit: nothing was lost.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.deployment import drive, processes
from fl_plugins.deployment.create import create
from fl_plugins.deployment.hospitals import HOSPITALS, deal_hospitals
from fl_plugins.deployment.layout import Layout, Settings
from fl_plugins.deployment.ports import free_ports
from fl_plugins.deployment.run import run_in
from fl_plugins.errors import RunFailedError
from fl_plugins.runlog.events import Event

DATA = Path(os.environ.get("FL_PLUGINS_DATA", Path(__file__).parents[3] / "shared" / "data"))
NUM_ROUNDS = 5
NODE_KILLED_IN_ROUND, VICTIM = 1, 2
SERVER_KILLED_IN_ROUND = 3
RUN_CONFIG = {
    # Every round needs all four: a round that a node's death disturbs is tried again when it is back.
    "strategy": "fedavg(quorum=1.0, min_available_nodes=4, max_attempts=5)",
    "client": "supervised(learning_rate=0.02)",
    "num-rounds": NUM_ROUNDS,
    "evaluate-every": NUM_ROUNDS,
    "seed": 7,
}
STARTED = time.monotonic()


def tell(text: str) -> None:
    """Print one line of the story."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def narrate(event: Event) -> None:
    """Tell what an event of the run means."""
    match event["event"]:
        case "round_started" if event["attempt"] > 1:
            tell(f"  round {event['round']}: attempt {event['attempt']} with {len(event['sampled'])} nodes")
        case "missing":
            tell(f"  round {event['round']}: no answer from node {', '.join(event['clients'])}")
        case "reply" if event["status"] != "accepted":
            tell(f"  round {event['round']}: node {event['client']} {event['status']}: {event['reason']}")
        case "round_finished":
            tell(f"  round {event['round']} of {NUM_ROUNDS} took {event['seconds']:.1f} s")
        case "evaluated":
            whose = "the nodes' own validation" if event["where"] == "clients" else "the server's held-out"
            tell(f"  round {event['round']}: accuracy {event['metrics']['accuracy']:.3f} on {whose} data")


class Saboteur:
    """Listens to a run's events and kills a node, and later the ServerApp, at the worst moment."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.node_killed = self.server_killed = False

    def __call__(self, event: Event) -> None:
        """Tell the event, and strike if it is time."""
        narrate(event)
        if event["event"] == "round_started" and event["round"] == NODE_KILLED_IN_ROUND:
            self._kill_node()
        if event["event"] == "round_started" and event["round"] >= SERVER_KILLED_IN_ROUND:
            self._kill_server_app()

    def _kill_node(self) -> None:
        """End a SuperNode and all its processes while it trains, and start it again."""
        if self.node_killed:
            return
        self.node_killed = True
        node = self.layout.node(VICTIM)
        while not processes.client_apps(node):
            time.sleep(0.05)
        victims = processes.members(node)
        processes.kill(node)
        tell(f"  KILLED {node.name} (SIGKILL, {len(victims)} processes) while it trains; bringing it back")
        drive.bring_back(self.layout, VICTIM)
        tell(f"  {node.name} is back: the SuperLink has taken its key again")

    def _kill_server_app(self) -> None:
        """End the ServerApp's process while a round is under way: a warm one takes less than a second."""
        if self.server_killed:
            return
        for pid in processes.programs(self.layout.server, "flwr-serverapp"):
            os.kill(pid, signal.SIGKILL)
            self.server_killed = True
        tell(f"  KILLED the ServerApp (kill -9) after round {event_round(self.layout)}")


def write_policies(layout: Layout, task: str) -> None:
    """Let every node train this task only, and answer 100 training messages at most, over all runs."""
    name = task.partition("(")[0]
    for node in layout.nodes:
        text = f'tasks = ["{name}"]\nmax_rounds = 100\nstate = "state/policy.json"\n'
        (node.folder / "policy.toml").write_text(text)
        settings = node.folder / "settings.env"
        settings.write_text(settings.read_text().replace("#POLICY=", "POLICY="))


def is_refused(layout: Layout) -> bool:
    """Run another task and return whether no node trained it."""
    run_config = {"task": "digits", "strategy": "fedavg(max_attempts=1)", "num-rounds": 1}
    trained = []

    def listen(event: Event) -> None:
        narrate(event)
        if event["event"] == "reply" and event["status"] == "accepted":
            trained.append(event["client"])

    try:
        run_in(layout, run_config, name="refused", show=listen)
    except RunFailedError:
        return not trained
    return False


def event_round(layout: Layout) -> int:
    """Return the newest round that the disturbed run has a checkpoint of."""
    return max(load_checkpoint(p).round for p in (layout.runs / "disturbed" / "checkpoints").glob("*.ckpt"))


def parameters(layout: Layout, name: str) -> dict[str, bytes]:
    """Return a run's final parameters as bytes."""
    model = load_checkpoint(layout.runs / name / "final_model.ckpt").arrays["model"]
    return {key: array.tobytes() for key, array in model.items()}


def main(folder: Path, round_timeout_s: float) -> int:
    """Tell the whole story; return 0 if nothing was lost."""
    hospitals = DATA.joinpath("heart_disease").is_dir()
    task = "heart_disease" if hospitals else "breast_cancer(model='logistic')"
    ports = free_ports(5)
    settings = Settings(host="127.0.0.1", port=ports[0], num_nodes=4, runtime_port=ports[1], task=task)
    layout = create(folder, settings)
    whose = f"one hospital each ({', '.join(HOSPITALS)})" if hospitals else "a quarter of breast_cancer each"
    tell(f"made a deployment in {folder}: own CA, server certificate, four P-384 node keys")
    if hospitals:
        deal_hospitals(layout, DATA / "heart_disease")
    write_policies(layout, task)
    tell(f"nodes have {whose}, and each its policy: this task, 100 training messages")
    run_config = {**RUN_CONFIG, "round-timeout-s": round_timeout_s}
    with drive.running(layout, note=tell):
        tell("1. an undisturbed run")
        run_in(layout, run_config, name="undisturbed", show=narrate)
        tell("2. the same run, disturbed")
        saboteur = Saboteur(layout)
        try:
            run_in(layout, run_config, name="disturbed", show=saboteur)
        except RunFailedError as error:
            tell(f"  Flower reports the run as failed: {str(error).splitlines()[0]}")
            tell("  resuming it")
            run_in(layout, run_config, name="disturbed", resume=True, show=narrate)
        tell("3. a run of another task")
        refused = is_refused(layout)
        tell("  no node has trained it" if refused else "  but a node has trained it")
    tell("all processes have ended")
    if not (saboteur.node_killed and saboteur.server_killed):
        tell("but nothing was killed: this demo has shown nothing")
        return 1
    same = parameters(layout, "undisturbed") == parameters(layout, "disturbed")
    tell(f"final parameters of runs 1 and 2: {'identical, bit for bit' if same else 'DIFFERENT'}")
    return 0 if same and refused else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="keep the deployment in this new folder")
    parser.add_argument("--round-timeout-s", type=float, default=120.0, help="default: 120")
    arguments = parser.parse_args()
    if arguments.keep:
        sys.exit(main(arguments.keep, arguments.round_timeout_s))
    with tempfile.TemporaryDirectory(prefix="fl-plugins-deploy-") as temporary:
        sys.exit(main(Path(temporary) / "deployment", arguments.round_timeout_s))
