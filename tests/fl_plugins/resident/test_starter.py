"""Forked ClientApp processes: what the command is asked is what a process of its own does."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fl_plugins.resident import command, starter
from fl_plugins.resident.address import base_folder
from fl_plugins.resident.lifetime import ProcessId
from fl_plugins.resident.starter import start_starter, write_command

from .conftest import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="starters are for Linux")

FLOWER = '''
"""Stands for flwr.supernode.cli: tells what a ClientApp process would see."""

import json
import os
import random
import sys

import numpy as np
import numpy.random  # which "import numpy" leaves for later: here it is there before the fork


def flwr_clientapp():
    told = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "arguments": sys.argv,
        "folder": os.getcwd(),
        "stdin": sys.stdin.read(),
        "drawn": [random.random(), float(np.random.random())],
    }
    print(json.dumps(told), flush=True)
    sys.exit(7)
'''


@pytest.fixture
def our_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our command, in an environment where Flower's main function only tells what it sees."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys, types\n"
        f"module = types.ModuleType('flwr.supernode.cli'); exec({FLOWER!r}, module.__dict__)\n"
        "sys.modules['flwr.supernode.cli'] = module\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    return write_command(tmp_path / "bin")


def call(our_command: Path, node: ProcessId, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [our_command, "--token", "a b", "--parent-pid", str(node.pid)],
        input="typed",
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=60,
    )


def test_messages_are_served_by_forks_that_differ_in_what_they_draw(
    our_command: Path,
    node: ProcessId,
    node_process: "subprocess.Popen[bytes]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(command.VARIABLE, "1")
    start_starter(node)
    done = [call(our_command, node, tmp_path) for _ in range(3)]
    assert [one.returncode for one in done] == [7, 7, 7], done[0].stderr
    told = [json.loads(one.stdout) for one in done]
    assert len({one["pid"] for one in told}) == 3
    (parent,) = {one["parent"] for one in told}
    assert parent != os.getpid()
    assert told[0]["arguments"] == ["flwr-clientapp", "--token", "a b", "--parent-pid", str(node.pid)]
    assert (told[0]["folder"], told[0]["stdin"]) == (str(tmp_path), "typed")
    assert len({one["drawn"][0] for one in told}) == 3
    assert len({one["drawn"][1] for one in told}) == 3  # NumPy's generator would be the same in every fork
    node_process.kill()
    eventually(lambda: ProcessId.of(parent) is None)


def test_without_a_starter_the_command_is_the_real_one_and_asks_for_one(
    tmp_path: Path, node: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.write_text(f'#!/bin/sh\necho "$@" "${command.VARIABLE}"\n')
    real.chmod(0o755)
    arguments = ["--parent-pid", str(node.pid), "--insecure"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", command.__file__, str(real), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"--parent-pid {node.pid} --insecure 1\n", done.stderr


@pytest.mark.parametrize("preloaded", [True, False])
def test_a_fork_imports_nothing_more_to_ask_its_node_and_to_read_a_bundle(preloaded: bool) -> None:
    code = f"""
import codecs, sys
import httpx
from fl_plugins.resident.starter import preload_http
if {preloaded}:
    preload_http()
before = set(sys.modules)
httpx.Client(verify=False, timeout=1.0, follow_redirects=True).close()
codecs.lookup("cp437")  # names in a zip file
print(len(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) == 0) == preloaded, (
        "the negative control: without it there is something to import"
    )


def test_no_starter_is_started_unless_our_command_asks_for_it(node: ProcessId, runtime_folder: str) -> None:
    start_starter(node)
    assert not Path(runtime_folder, "fl-plugins").exists()


@pytest.mark.parametrize("runtime", ["private", "absent", "long"])
def test_the_command_finds_the_folder_where_the_starter_is(
    node: ProcessId, runtime_folder: str, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    if runtime == "absent":
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    elif runtime == "long":
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_folder + "/" * 50)
    expected = base_folder() / f"{node.pid}-{node.started}-starter"
    assert command.starter_folder(node.pid) == str(expected)


def _open_the_folder(node: ProcessId, _: Path) -> None:
    Path(command.starter_folder(node.pid)).chmod(0o777)


def _install_something(_: ProcessId, tmp_path: Path) -> None:
    (tmp_path / "site-packages" / "new.py").touch()


@pytest.mark.parametrize("change", [_open_the_folder, _install_something])
def test_a_starter_that_others_may_reach_or_whose_code_is_old_serves_nothing(
    our_command: Path,
    node: ProcessId,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ProcessId, Path], None],
) -> None:
    monkeypatch.setenv(command.VARIABLE, "1")
    start_starter(node)
    assert json.loads(call(our_command, node, tmp_path).stdout)["parent"] != os.getpid()
    change(node, tmp_path)
    alone = call(our_command, node, tmp_path)
    assert json.loads(alone.stdout)["parent"] == os.getpid()  # the command has become the real one


def test_neither_side_talks_to_another_user(
    node: ProcessId, runtime_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[int] = []
    monkeypatch.setattr(os, "fork", lambda: forked.append(1) or 1)
    folder = Path(command.starter_folder(node.pid))
    folder.mkdir(parents=True)
    arguments = ["--parent-pid", str(node.pid)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()

        def agree() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):  # the other side leaves without a word
                connection.sendall(b"y\0")
                while connection.recv(1 << 16):
                    pass

        thread = threading.Thread(target=agree)
        thread.start()
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)  # as if the other side were somebody else's
        with pytest.raises(PermissionError):
            command.forward(arguments)
        thread.join()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            words = json.dumps({"arguments": arguments, "folder": "/"}).encode()
            socket.send_fds(theirs, [len(words).to_bytes(8, "big")], [0, 1, 2])
            theirs.sendall(words)
            with pytest.raises(PermissionError, match="only user"):
                starter._serve(ours, listener)
    assert forked == []


def test_a_starter_has_the_layers_but_no_jax_in_what_it_forks() -> None:
    """XLA's threads would not be in the forks, whose first use of it would wait for them forever."""
    code = (
        "import sys; from fl_plugins.apps import client_app; from fl_plugins.resident import starter; "
        "starter.preload_layers(); layers = 'clients.mods.secure_aggregation'; "
        "print(layers in sys.modules, 'jax' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "False"]
