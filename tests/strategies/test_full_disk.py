"""A disk that is full: the run ends with an error that says so, and what was saved before can be resumed."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fl_plugins.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from fl_plugins.errors import CheckpointWriteError
from fl_plugins.run_options import RunOptions
from fl_plugins.runlog.events import EventLog, read_events
from fl_plugins.testing import InProcessGrid
from strategies import FedAvg

LIMIT = 8192
"""Bytes: less than a checkpoint of the model below, more than a run's events."""


@contextmanager
def files_end_at(limit: int) -> Iterator[None]:
    """Let the kernel refuse every byte of a file beyond ``limit`` (Python ignores the signal, SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def wide() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(4096, np.float32))})


def test_a_checkpoint_that_does_not_fit_leaves_those_before_it_and_no_debris(tmp_path: Path) -> None:
    def checkpoint(number: int) -> Checkpoint:
        return Checkpoint(round=number, arrays={"model": {"w": np.full(4096, number, np.float32)}}, facts={})

    old = save_checkpoint(tmp_path, checkpoint(1))
    before = old.read_bytes()
    with files_end_at(LIMIT), pytest.raises(CheckpointWriteError, match=r"round-000002.*resume the run"):
        save_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == before
    assert load_checkpoint(old).arrays["model"]["w"][0] == 1


SMALL_DISK = """
import sys
from pathlib import Path
import numpy as np
from fl_plugins.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from fl_plugins.errors import CheckpointWriteError

def checkpoint(number):
    return Checkpoint(round=number, arrays={"model": {"w": np.full(10_000, number, np.float32)}}, facts={})

folder = Path(sys.argv[1])
old = save_checkpoint(folder, checkpoint(1))
try:
    save_checkpoint(folder, checkpoint(2), keep=1)
except CheckpointWriteError as error:
    assert load_checkpoint(old).arrays["model"]["w"][0] == 1
    print(error, [path.name for path in folder.iterdir()])
"""


def test_a_file_system_without_room_for_two(tmp_path: Path) -> None:
    """A real one of 64 KiB, in a mount namespace of its own; a checkpoint has 40 kB."""
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    try:
        done = subprocess.run(
            [*command, str(tmp_path), sys.executable, SMALL_DISK], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no file system of one's own on this system: {done.stderr.strip()}")
    assert "cannot be written (No space left on device)" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("['round-000001.ckpt']")


def test_a_run_on_a_full_disk_ends_clearly_and_is_resumed_bit_for_bit(
    wide: ArrayRecord, make_client: Callable[..., Any], tmp_path: Path
) -> None:
    def run(folder: Path, *, full_in_round: int | None = None) -> Any:
        def evaluate(number: int, _: ArrayRecord) -> None:
            if number == full_in_round:
                soft = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, soft[1]))

        options = RunOptions(
            num_rounds=4,
            seed=1,
            timeout_s=5,
            checkpoint_dir=folder / "checkpoints",
            resume=True,
            evaluate_fn=evaluate,
            emit=EventLog(folder / "events.jsonl"),
        )
        with InProcessGrid(make_client(lambda partition: partition + 0.1), 3) as grid:
            return FedAvg(fraction_evaluate=0.0).run(grid, wide, options)

    whole, hit = tmp_path / "whole", tmp_path / "hit"
    undisturbed = run(whole)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointWriteError, match="File too large") as caught:
            run(hit, full_in_round=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.result is not None
    newest = latest_checkpoint(hit / "checkpoints")
    assert newest is not None
    assert load_checkpoint(newest).round == 2
    assert read_events(hit / "events.jsonl")[-1]["kind"] == "CheckpointWriteError"
    resumed = run(hit)
    assert resumed.arrays["w"].numpy().tobytes() == undisturbed.arrays["w"].numpy().tobytes()


def test_an_event_that_does_not_fit_is_an_error_and_leaves_the_log_readable(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log("run_failed", error="first")
    size = (tmp_path / "events.jsonl").stat().st_size
    with files_end_at(size + 10), pytest.raises(OSError, match=f"{os.strerror(28)}|File too large"):
        log("run_failed", error="second")
    log("run_failed", error="third")
    assert [event["error"] for event in read_events(tmp_path / "events.jsonl")] == ["first", "third"]


def test_a_log_that_cannot_be_written_does_not_hide_what_ended_the_run(
    wide: ArrayRecord, make_client: Callable[..., Any]
) -> None:
    def full(event: str, /, **_: Any) -> None:
        if event == "run_failed":
            raise OSError(28, os.strerror(28))

    def evaluate(number: int, _: ArrayRecord) -> None:
        raise ZeroDivisionError("what really happened")

    options = RunOptions(num_rounds=1, timeout_s=5, evaluate_fn=evaluate, emit=full)
    with (
        InProcessGrid(make_client(1.0), 2) as grid,
        pytest.raises(ZeroDivisionError, match="what really happened") as caught,
    ):
        FedAvg().run(grid, wide, options)
    assert "could not be written" in caught.value.__notes__[0]
