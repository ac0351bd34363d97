"""One run state, one file: atomic, checksummed, versioned, without pickle.

A checkpoint is a zip archive of ``manifest.json`` (everything that is not an array, and the SHA-256 of
every array) and one ``.npy`` member per array. It is written beside its final name, flushed to disk and
renamed, so that a crash or a full disk leaves the previous checkpoint as it was.
"""

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array

from .errors import CheckpointError, CheckpointWriteError, ConfigError, StructureError
from .records import from_ndarray, to_ndarray
from .training import NamedArrays

CHECKPOINT_SCHEMA = 1
_FILE_NAME = re.compile(r"round-(\d{6,})\.ckpt")
_MANIFEST = "manifest.json"
_UNREADABLE = (
    OSError, EOFError, KeyError, TypeError, ValueError, StructureError,
    zipfile.BadZipFile, zlib.error,
    RuntimeError,  # by a flipped bit a member is encrypted, or of a zip version that nobody knows
)  # fmt: skip
"""What reading a damaged file raises."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is saved: arrays by group and name, and JSON-able facts.

    ``arrays["model"]`` are the global parameters; other groups belong to the strategy.
    """

    round: int
    arrays: Mapping[str, NamedArrays]
    facts: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 3) -> Path:
    """Write ``round-NNNNNN.ckpt`` into ``folder`` and delete all but the newest ``keep``; return its path.

    Raises
    ------
    CheckpointWriteError
        If the disk refuses; the checkpoints that were there are untouched.
    """
    if keep < 1:
        raise ConfigError(f"checkpoints: keep={keep}, but at least the newest must stay; give keep >= 1.")
    path = folder / f"round-{checkpoint.round:06d}.ckpt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_archive(path, checkpoint)
    except OSError as error:
        raise CheckpointWriteError(
            f"checkpoint {path}: cannot be written ({error.strerror or error}); those before it are as they "
            "were; make room (one more than keep-checkpoints must fit) or permit it, and resume the run."
        ) from error
    for old in _files(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def write_archive(path: Path, checkpoint: Checkpoint) -> None:
    """Write one archive atomically to ``path``."""
    for abandoned in path.parent.glob(f".{path.name}.*.partial"):  # of a process that was killed
        abandoned.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            _write(stream, checkpoint)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder_descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder_descriptor)
    finally:
        os.close(folder_descriptor)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one archive.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, altered, or of an unknown schema.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(_MANIFEST))
            if not isinstance(manifest, dict):
                raise CheckpointError(f"checkpoint {path}: {_MANIFEST} is no object; delete this file.")
            if manifest.get("schema") != CHECKPOINT_SCHEMA:
                raise CheckpointError(
                    f"checkpoint {path}: schema {manifest.get('schema')!r}, but this version reads "
                    f"{CHECKPOINT_SCHEMA}; use the fl-plugins version that wrote it."
                )
            arrays: dict[str, NamedArrays] = {group: {} for group in manifest["groups"]}
            for entry in manifest["arrays"]:
                data = archive.read(entry["member"])
                if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                    raise CheckpointError(
                        f"checkpoint {path}: array {entry['name']!r} does not match its SHA-256; the file "
                        "was altered or damaged; delete it to resume from the one before it."
                    )
                stored = Array(entry["dtype"], tuple(entry["shape"]), "numpy.ndarray", data)
                arrays[entry["group"]][entry["name"]] = np.array(to_ndarray(stored))
            number, facts = manifest["round"], manifest["facts"]
            if type(number) is not int or not isinstance(facts, dict):
                raise CheckpointError(
                    f"checkpoint {path}: round={number!r} or its facts are none; delete it."
                )
            return Checkpoint(round=number, arrays=arrays, facts=facts)
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(
            f"checkpoint {path}: cannot be read ({error}); delete this file to resume from the one before "
            "it, or start anew in another folder."
        ) from error


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint file in ``folder``, or ``None``."""
    files = _files(folder)
    return files[-1] if files else None


def _files(folder: Path) -> list[Path]:
    """Return the checkpoint files in ``folder``, oldest round first."""
    if not folder.is_dir():
        return []
    rounds = [
        (int(match[1]), path) for path in folder.iterdir() if (match := _FILE_NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(rounds)]


def _write(stream: Any, checkpoint: Checkpoint) -> None:
    """Write the archive's members; stored, not compressed, since parameters do not compress."""
    entries: list[dict[str, Any]] = []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for group, named in checkpoint.arrays.items():
            for name, value in named.items():
                array = from_ndarray(value)
                member = f"arrays/{len(entries):05d}.npy"
                archive.writestr(_member(member), array.data)
                entries.append(
                    {
                        "group": group,
                        "name": name,
                        "member": member,
                        "dtype": array.dtype,
                        "shape": list(array.shape),
                        "sha256": hashlib.sha256(array.data).hexdigest(),
                    }
                )
        manifest = {
            "schema": CHECKPOINT_SCHEMA,
            "round": checkpoint.round,
            "groups": list(checkpoint.arrays),
            "arrays": entries,
            "facts": dict(checkpoint.facts),
        }
        archive.writestr(_member(_MANIFEST), json.dumps(manifest))


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member without the time of writing: equal states make equal files."""
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o600 << 16
    return member
