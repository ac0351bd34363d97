"""JAX's persistent compilation cache: a fresh process loads yesterday's programs instead of compiling.

A deployed Flower ClientApp is a new process for every message, and every Ray actor and ServerApp starts
cold; without the cache each compiles its trainer or aggregation kernels again. Executables are code, so the
directory is private to the user (mode 0700) and is not used if somebody else owns it or may write to it.

Where it is: ``$JAX_COMPILATION_CACHE_DIR`` if JAX was already given one (then it is used as it is), else
``$FL_PLUGINS_CACHE_DIR``, else ``$XDG_CACHE_HOME/fl-plugins/jax`` (``~/.cache/fl-plugins/jax``).
"""

import functools
import os
import stat
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax

DIRECTORY_VARIABLE = "FL_PLUGINS_CACHE_DIR"

_ENTRY_LIMITS = {
    # Local training of a small model compiles in less than JAX's threshold of one second.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable_compilation_cache() -> Path | None:
    """Switch the persistent cache on for this process and return its directory.

    A directory that cannot be used costs compile time, not the run: it warns once per process and directory
    and returns ``None``. Limits that the environment sets (``$JAX_PERSISTENT_CACHE_MIN_...``) are kept, and
    so is ``$JAX_ENABLE_COMPILATION_CACHE=false``.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache:
        return None
    configured: str | None = config.jax_compilation_cache_dir
    if configured is None:
        directory = _private_directory(default_directory())
        if directory is None:
            return None
        config.update("jax_compilation_cache_dir", str(directory))
    else:
        directory = Path(configured)
    for name, value in _ENTRY_LIMITS.items():
        if name.upper() not in os.environ:
            config.update(name, value)
    return directory


def default_directory() -> Path:
    """Return the directory that the environment asks for."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fl-plugins" / "jax"


@functools.cache
def _private_directory(directory: Path) -> Path | None:
    """Create ``directory`` for this user alone; warn and return ``None`` if that is not possible."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            raise PermissionError(f"it belongs to user {status.st_uid}")
        if hasattr(os, "getuid") and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError("other users may write to it")
        with tempfile.TemporaryFile(dir=directory):
            pass
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"compilation cache: {directory} cannot be used ({error}), so every new process compiles again; "
            f"set {DIRECTORY_VARIABLE} to a directory that only you can write to.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return directory
