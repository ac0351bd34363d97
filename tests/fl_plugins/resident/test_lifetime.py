"""A node's process is told from every other, also from one that has its id later."""

import os
import signal
import subprocess
import threading
from dataclasses import replace

import pytest

from fl_plugins.resident.lifetime import ProcessId, deployed_node


def test_a_process_is_alive_until_it_ends_even_as_a_zombie() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    node = ProcessId.of(process.pid)
    assert node is not None
    assert node.is_alive()
    ended = threading.Thread(target=node.wait)
    ended.start()
    os.kill(process.pid, signal.SIGKILL)
    ended.join(10)
    assert not ended.is_alive()
    assert not node.is_alive()  # nobody has waited for it: it is a zombie
    process.wait()
    assert ProcessId.of(process.pid) is None
    node.wait()  # returns at once


def test_another_process_with_the_same_id_is_not_the_node() -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    before = replace(me, started=me.started - 1)
    assert not before.is_alive()
    before.wait()  # returns at once, although a process has that id


COMMAND = ["/venv/bin/flwr-clientapp", "--runtime-api-address", "127.0.0.1:1", "--token", "t", "--insecure"]


def test_a_clientapp_of_a_deployed_node_names_its_parent() -> None:
    assert deployed_node([*COMMAND, "--parent-pid", str(os.getpid())]) == ProcessId.of(os.getpid())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["/ray/default_worker.py", "--parent-pid", "2"],
        ["/venv/bin/flwr-simulation", "--parent-pid", "2"],
        COMMAND,
        [*COMMAND, "--parent-pid"],
        [*COMMAND, "--parent-pid", "one"],
        [*COMMAND, "--parent-pid", "1"],
    ],
)
def test_other_processes_have_no_node(arguments: list[str]) -> None:
    assert deployed_node(arguments) is None


def test_this_test_process_is_no_deployed_node() -> None:
    assert deployed_node() is None
