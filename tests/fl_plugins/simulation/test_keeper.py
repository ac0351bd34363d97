import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_plugins.simulation import keeper

# A process in a session of its own that is deaf to SIGTERM, and its parent, which is gone at once.
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
DETACHED = f"""
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-c", {DEAF!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "w").write(str(child.pid))
os._exit(0)
"""
STARTS_ONE_AND_STAYS = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]], check=True)
open(sys.argv[1] + ".ready", "w").close()
time.sleep(600)
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def start(tmp_path, *command):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "file").write_text("x")
    return subprocess.Popen(
        [sys.executable, "-I", keeper.__file__, str(folder), *command],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(condition, seconds=30.0):
    """Thirty seconds: this machine may be starting several Pythons for others."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def kept(tmp_path):
    """A keeper whose command has started a detached process that ignores SIGTERM."""
    pid_file = tmp_path / "pid"
    process = start(tmp_path, sys.executable, "-c", STARTS_ONE_AND_STAYS, str(pid_file), DETACHED)
    wait_for(Path(f"{pid_file}.ready").exists)
    detached = int(pid_file.read_text())
    assert is_alive(detached)
    yield process, detached
    process.kill()
    process.stdin.close()
    process.wait()
    if is_alive(detached):
        os.kill(detached, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_everything_ends_even_detached_orphans_that_ignore_sigterm(kept, tmp_path, end):
    process, detached = kept
    tree = keeper.descendants(process.pid)
    assert detached in tree
    assert len(tree) == 2
    if end == "close":
        process.stdin.close()
    else:
        process.terminate()
    assert process.wait(30) == 0
    assert not any(is_alive(pid) for pid in tree)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_from_the_terminal_is_the_parents_to_decide_about(tmp_path, number):
    process = start(tmp_path, sys.executable, "-c", "import time; time.sleep(600)")
    wait_for(lambda: keeper.descendants(process.pid))
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_commands_own_end_is_reported(tmp_path, code, status):
    process = start(tmp_path, sys.executable, "-c", code)
    assert process.wait(30) == status
    assert not (tmp_path / "home").exists()
    process.stdin.close()


def test_when_the_parent_is_killed_everything_ends(tmp_path):
    pid_file = tmp_path / "pids"
    code = f"""
import subprocess, sys, time
keeper = subprocess.Popen(
    [sys.executable, "-I", {keeper.__file__!r}, {str(tmp_path / "home")!r},
     sys.executable, "-c", "import time; time.sleep(600)"],
    stdin=subprocess.PIPE, start_new_session=True)
open({str(pid_file)!r}, "w").write(str(keeper.pid))
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(
        lambda: pid_file.exists() and pid_file.read_text() and keeper.descendants(int(pid_file.read_text()))
    )
    tree = keeper.descendants(parent.pid)
    assert len(tree) == 2
    parent.kill()
    parent.wait()
    # Gone, or a zombie that the machine's first process has not yet taken leave of.
    wait_for(lambda: all(not is_alive(pid) or state(pid) == "Z" for pid in tree))


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_tree_that_ps_shows_is_the_tree_that_proc_shows(monkeypatch):
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True) as process:
        wait_for(lambda: keeper.descendants(process.pid))
        from_proc = keeper.descendants(process.pid)
        assert process.pid in keeper.descendants(os.getpid())
        monkeypatch.setattr(keeper.os.path, "isdir", lambda path: False)
        assert keeper.descendants(process.pid) == from_proc
        assert process.pid in keeper.descendants(os.getpid())
        os.killpg(process.pid, signal.SIGKILL)
