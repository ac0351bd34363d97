"""A checkpoint holds exactly what was saved, or refuses to load."""

import builtins
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fl_plugins import checkpoints
from fl_plugins.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from fl_plugins.errors import CheckpointError, ConfigError

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.5], dtype=ml_dtypes.bfloat16),
    "half": np.array(0.1, dtype=np.float16),
    "steps": np.array(2**60, dtype=np.int64),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float64),
}


def _checkpoint(number: int = 3) -> Checkpoint:
    return Checkpoint(round=number, arrays={"model": ARRAYS, "strategy": {}}, facts={"loss": 0.1, "seed": 7})


def test_round_trip_is_exact_in_every_dtype(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_checkpoint(tmp_path, _checkpoint()))
    assert (loaded.round, loaded.facts) == (3, {"loss": 0.1, "seed": 7})
    assert loaded.arrays["strategy"] == {}
    assert list(loaded.arrays["model"]) == list(ARRAYS)
    for key, value in ARRAYS.items():
        assert loaded.arrays["model"][key].dtype == value.dtype
        assert loaded.arrays["model"][key].shape == value.shape
        assert loaded.arrays["model"][key].tobytes() == value.tobytes()


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for number in (1, 2, 10, 9):
        save_checkpoint(tmp_path, _checkpoint(number), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000009.ckpt", "round-000010.ckpt"]
    assert latest_checkpoint(tmp_path) == tmp_path / "round-000010.ckpt"


def test_a_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep=0"):
        save_checkpoint(tmp_path, _checkpoint(), keep=0)


@pytest.mark.parametrize("position", [0.02, 0.3, 0.6, 0.97])
def test_one_flipped_byte_is_noticed(tmp_path: Path, position: float) -> None:
    path = save_checkpoint(tmp_path, _checkpoint())
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"round-000003\.ckpt"):
        load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 10, 500])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = save_checkpoint(tmp_path, _checkpoint())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)


def test_another_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SCHEMA", 99)
    path = save_checkpoint(tmp_path, _checkpoint())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="schema 99"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save_checkpoint(tmp_path, _checkpoint(1))
    before = old.read_bytes()

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, _checkpoint(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == before


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path, _checkpoint())
    real = builtins.__import__

    def no_pickle(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name != "pickle"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pickle)
    load_checkpoint(path)
