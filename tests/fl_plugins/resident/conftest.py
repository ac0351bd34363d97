"""A node for workers: a process that can be ended, and a private folder for sockets."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fl_plugins.resident.lifetime import ProcessId


@pytest.fixture
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Keep sockets out of the user's own folder."""
    folder = tempfile.mkdtemp(prefix="flp-t-", dir="/tmp")  # short, as sockets' paths must be
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    yield folder

    def is_removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)  # a worker that ends now removes its own part
        return not Path(folder).exists()

    eventually(is_removed)


@pytest.fixture
def node_process(runtime_folder: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stands for a SuperNode; its workers end with it."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.fixture
def node(node_process: "subprocess.Popen[bytes]") -> ProcessId:
    found = ProcessId.of(node_process.pid)
    assert found is not None
    return found


def eventually(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it has not come true in time"
        time.sleep(0.02)
