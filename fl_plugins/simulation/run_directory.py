"""The folder of one run: claimed, so that no two runs write into it, and told what is run in it.

::

    runs/<name>/
        config.toml    what was run: nodes, run config, versions
        events.jsonl   what happened (fl_plugins.runlog.events)
        checkpoints/   written by the ServerApp, as is the final model
        server.log     the server's and the clients' log
        superlink.log  the SuperLink's own
"""

import fcntl
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fl_plugins.errors import ConfigError, SpecError
from fl_plugins.spec import parse

from .app_template import Value, to_toml
from .session import EVENTS_FILE

CONFIG_FILE = "config.toml"
LOCK_FILE = ".lock"
SPEC_KEYS = ("strategy", "client", "task", "attack")
IDENTITY_KEYS = (*SPEC_KEYS, "seed", "num-supernodes", "virtual-clients")
"""What a run is: a run that is resumed has the same. Rounds, stopping, evaluation and timeouts may change."""

PACKAGES = ("fl-plugins", "flwr", "ray", "jax", "flax", "optax", "numpy")


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Make ``folder``, check that it may be written to, and keep others out while the block runs.

    Raises
    ------
    ConfigError
        If it already holds a run that is not to be resumed, or none to resume, or is in use.
    """
    check_folder(folder, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder}: another run is being written here; wait, or give another --name."
            ) from None
        check_folder(folder, resume=resume)
        yield folder


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run, or, to resume, one that holds none.

    Raises
    ------
    ConfigError
        If so.
    """
    events = folder / EVENTS_FILE
    has_run = events.exists() and events.stat().st_size > 0
    if has_run and not resume:
        raise ConfigError(
            f"{folder}: holds a run already ({EVENTS_FILE}); give another --name, or --resume to continue it."
        )
    if resume and not has_run:
        raise ConfigError(f"{folder}: there is no run to resume ({EVENTS_FILE} is missing); check --name.")


def write_config(folder: Path, run: Mapping[str, Value], run_config: Mapping[str, Value]) -> None:
    """Write what is run, and with which versions, into ``config.toml``."""
    tables = {"run": run, "run-config": run_config, "versions": installed_versions()}
    (folder / CONFIG_FILE).write_text(to_toml(tables), encoding="utf-8")


def read_config(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what :func:`write_config` wrote.

    Raises
    ------
    ConfigError
        If it is missing or does not read.
    """
    path = folder / CONFIG_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); give the options anew and another --name."
        ) from None


def check_same_run(folder: Path, saved: Mapping[str, Value], given: Mapping[str, Value]) -> None:
    """Refuse to resume a run as another one; specs are compared as plugins and arguments, not as text.

    Parameters
    ----------
    folder : Path
        The run's folder, for the message.
    saved, given : Mapping[str, Value]
        What the run had, and what is asked for now; keys that are in one only are not compared.

    Raises
    ------
    ConfigError
        Naming every one of :data:`IDENTITY_KEYS` that differs.
    """
    changed = [
        f"{key}={given[key]!r} (it has {saved[key]!r})"
        for key in IDENTITY_KEYS
        if key in saved and key in given and _canonical(key, saved[key]) != _canonical(key, given[key])
    ]
    if changed:
        raise ConfigError(
            f"{folder}: cannot be resumed with {', '.join(changed)}, for that would be another run; leave it "
            "out to continue this one, or give another --name and no --resume."
        )


def _canonical(key: str, value: Value) -> Value:
    """Return a value in the form in which equal ones are equal; an app of one's own may have no specs."""
    if key not in SPEC_KEYS or not isinstance(value, str):
        return value
    try:
        return str(parse(value))
    except SpecError:
        return value.strip()


def installed_versions() -> dict[str, str]:
    """Return the versions that a run's numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def slug(text: str) -> str:
    """Return text as part of a folder's name.

    >>> slug("krum(num_byzantine=2)")
    'krum-num_byzantine-2'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:60] or "run"


def check_name(name: str) -> str:
    """Return a run's name if it is the name of one folder.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f"--name {name!r} is not the name of a folder: letters, digits, '.', '_' and '-' only, and it "
            "does not begin with '.' or '-'; use --runs-dir for the folder above."
        )
    return name
