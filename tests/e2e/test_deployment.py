"""A SuperLink with TLS and node authentication and four SuperNodes, all real processes, from nothing.

Everything is in one test per deployment, for bringing one up is what takes the time.
"""

import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.deployment import drive, processes
from fl_plugins.deployment.certificates import issue_server, make_authority
from fl_plugins.deployment.create import create
from fl_plugins.deployment.hospitals import deal_hospitals
from fl_plugins.deployment.layout import Layout, Role, Settings
from fl_plugins.deployment.node_keys import make_node_key
from fl_plugins.deployment.ports import free_ports
from fl_plugins.deployment.run import run_in
from fl_plugins.simulation.superlink import strip_colours

from . import as_written

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DATA = Path(os.environ.get("FL_PLUGINS_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROUNDS = 3


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    ports = free_ports(5)
    made = create(
        tmp_path / "d",
        Settings(
            host="127.0.0.1",
            port=ports[0],
            num_nodes=4,
            runtime_port=ports[1],
            task=deal_task(),
        ),
    )
    if DATA.joinpath("heart_disease").is_dir():
        deal_hospitals(made, DATA / "heart_disease")
    yield made
    drive.down(made)


def deal_task() -> str:
    """Return the task of four hospitals, or of one public data set where their data are not."""
    return "heart_disease" if DATA.joinpath("heart_disease").is_dir() else "breast_cancer(model='logistic')"


def demand_task(node: Role, task: str, *, max_rounds: int) -> None:
    """Put a policy in force, as its operator does."""
    settings = node.folder / "settings.env"
    settings.write_text(settings.read_text().replace("#POLICY=", "POLICY="))
    (node.folder / "policy.toml").write_text(
        f'tasks = ["{task.partition("(")[0]}"]\nmax_rounds = {max_rounds}\nstate = "state/policy.json"\n'
    )


def refused(role: Role, *arguments: str) -> str:
    """Start a SuperNode that has to give up by itself, and return its log."""
    processes.start(role, "--max-retries", "0", *arguments)
    deadline = time.monotonic() + 120
    while processes.is_running(role):
        assert time.monotonic() < deadline, role.log.read_text()
        time.sleep(0.1)
    assert processes.reap(role) != 0
    processes.end(role)
    return strip_colours(role.log.read_text())


def test_four_hospitals_train_and_strangers_are_kept_out(layout: Layout, tmp_path: Path) -> None:
    """The SuperLink and a node run as their systemd units say, another node as its compose file says."""
    for number in (0, 1):
        demand_task(layout.node(number), deal_task(), max_rounds=ROUNDS - number)
    sandboxed = as_written.can_be_run()
    if sandboxed:
        as_written.install(layout.server, as_written.unit(layout.server), tmp_path / "server")
        as_written.install(layout.node(0), as_written.unit(layout.node(0)), tmp_path / "node-0")
        as_written.install(layout.node(1), as_written.container(layout.node(1)), tmp_path / "node-1")
    drive.up(layout)
    assert [line.flower for line in drive.status(layout)] == ["answers", *["online"] * 4]
    events = run_in(
        layout,
        {
            "strategy": "fedavg(quorum=0.75, min_available_nodes=4)",
            "num-rounds": ROUNDS,
            "evaluate-every": ROUNDS,
            "round-timeout-s": 120.0,
            "seed": 7,
        },
        name="first",
    )
    trained = [e for e in events if e["event"] == "reply" and e["phase"] == "train"]
    accepted = {(e["round"], e["client"]) for e in trained if e["status"] == "accepted"}
    everything = {(number, str(client)) for number in range(1, ROUNDS + 1) for client in range(4)}
    assert accepted == everything - {(ROUNDS, "1")}
    (refused_one,) = [e for e in trained if e["status"] != "accepted"]
    assert (refused_one["round"], refused_one["client"]) == (ROUNDS, "1")
    assert "has answered 2 training messages, its max_rounds=2" in refused_one["reason"]
    metrics = [e["metrics"] for e in events if e["event"] == "evaluated"][-1]
    # Guessing the more frequent class of each data set gives at most 0.63.
    assert metrics["accuracy"] > 0.7
    assert load_checkpoint(layout.runs / "first" / "final_model.ckpt").round == ROUNDS

    processes.end(layout.node(3))
    key = layout.node(3).folder / "node.key"
    key.write_bytes(make_node_key("stranger").private)  # its mode stays 0600
    assert "Failed to initialize the connection" in refused(layout.node(3))

    processes.end(layout.node(2))
    certificate = layout.node(2).folder / "ca.crt"
    certificate.write_bytes(make_authority().certificate_pem())
    assert "CERTIFICATE_VERIFY_FAILED" in refused(layout.node(2))

    everyone = set().union(*map(processes.members, (layout.server, *layout.nodes)))
    assert everyone
    drive.down(layout)
    for pid in everyone:
        # What is started in a namespace is not marked with our folder; systemd ends all of a service.
        if sandboxed and processes.moment_of(pid):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + (10 if sandboxed else 0)
    while left := [pid for pid in everyone if processes.moment_of(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("starts_in_days", "told"), [(-40, "certificate has expired"), (2, "certificate is not yet valid")]
)
def test_a_certificate_of_another_time_is_refused_by_the_node(
    starts_in_days: int, told: str, layout: Layout
) -> None:
    """It has expired, or a clock is wrong: the issuer's was ahead, or the node's is late."""
    authority = make_authority()
    begins = datetime.now(UTC) + timedelta(days=starts_in_days)
    stale = issue_server(authority, host="127.0.0.1", days=30, now=begins)
    node = layout.node(0)
    (node.folder / "ca.crt").write_bytes(authority.certificate_pem())
    with tls_server(layout.settings.port, stale.certificate_pem(), stale.key_pem(), node.state):
        assert told in refused(node)
    assert processes.members(node) == set()


@contextmanager
def tls_server(port: int, certificate: bytes, key: bytes, folder: Path) -> Iterator[None]:
    """Do TLS handshakes and nothing else."""
    (folder / "both.pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
