"""A checkpoint holds exactly what was saved, or refuses to load."""

import builtins
import hashlib
import io
import json
import os
import time
import zipfile
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


def test_a_flipped_bit_in_the_archives_directory_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """It may make a member encrypted, or of a zip version that nobody knows."""
    small = Checkpoint(round=3, arrays={"model": {"w": np.ones(2, np.float32)}}, facts={"seed": 7})
    path = save_checkpoint(tmp_path, small)
    data = path.read_bytes()
    refused, directory = 0, range(data.index(b"PK\x01\x02"), len(data))
    for position in directory:
        for bit in range(8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            try:
                loaded = load_checkpoint(path)
            except CheckpointError:
                refused += 1
                continue
            assert (loaded.round, loaded.facts) == (3, {"seed": 7})
            assert loaded.arrays["model"]["w"].tobytes() == np.ones(2, np.float32).tobytes()
    assert refused > 4 * len(directory)  # most: what changes nothing are times, permissions and the like


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        '{"schema": 1, "groups": ["model"], "arrays": [], "round": "3", "facts": {}}',
        '{"schema": 1, "groups": ["model"], "arrays": [], "round": 3, "facts": []}',
        "[" * 100_000,
    ],
    ids=["no object", "round", "facts", "nested"],
)
def test_a_sound_archive_with_a_strange_manifest_is_refused(tmp_path: Path, manifest: str) -> None:
    path = tmp_path / "round-000003.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", manifest)
    with pytest.raises(CheckpointError, match=r"round-000003\.ckpt"):
        load_checkpoint(path)


def test_equal_states_make_equal_files_whenever_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_checkpoint(tmp_path / "a", _checkpoint()).read_bytes()
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert save_checkpoint(tmp_path / "b", _checkpoint()).read_bytes() == first


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


def _rewritten(path: Path, member: str, data: bytes, *, manifest: bool) -> None:
    """Write the archive anew with another member, its CRC right, and its SHA-256 too if ``manifest``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[member] = data
    if manifest:
        told = json.loads(members["manifest.json"])
        for entry in told["arrays"]:
            if entry["member"] == member:
                entry["sha256"] = hashlib.sha256(data).hexdigest()
        members["manifest.json"] = json.dumps(told).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_an_array_that_was_replaced_in_a_sound_archive_is_told_by_its_checksum(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, _checkpoint())
    other = _npy(np.ones((2, 3), np.float32))
    _rewritten(path, "arrays/00000.npy", other, manifest=False)
    with pytest.raises(CheckpointError, match="'w' does not match its SHA-256"):
        load_checkpoint(path)
    _rewritten(path, "arrays/00000.npy", other, manifest=True)  # the control: nothing else was wrong
    assert load_checkpoint(path).arrays["model"]["w"].tolist() == [[1.0] * 3] * 2


def test_a_pickled_array_is_refused_however_well_it_is_forged(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = save_checkpoint(tmp_path, _checkpoint())
    _rewritten(path, "arrays/00000.npy", _npy(np.array([Trap()], object)), manifest=True)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_what_a_killed_process_had_half_written_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(2))
    half = tmp_path / ".round-000003.ckpt.4711.partial"
    half.write_bytes(b"PK half of it")
    assert latest_checkpoint(tmp_path) == tmp_path / "round-000002.ckpt"
    save_checkpoint(tmp_path, _checkpoint(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000002.ckpt", "round-000003.ckpt"]
