"""A fresh process loads its programs; a directory that cannot be used costs time, not the run."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fl_plugins import compilation_cache
from fl_plugins.compilation_cache import _private_directory, default_directory

ROOT = Path(__file__).parents[2]

PROGRAM = textwrap.dedent(
    """
    import jax
    import numpy as np

    hits, misses = [], []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)
        if event == "/jax/compilation_cache/cache_misses":
            misses.append(event)

    jax.monitoring.register_event_listener(listen)

    from clients.supervised import Supervised
    from clients.tasks.digits import digits
    from fl_plugins.training import Dataset

    trainer = Supervised(digits(model="mlp"))
    data = Dataset(np.ones((20, 8, 8, 1), np.float32), np.arange(20) % 10)
    arrays = trainer.train(trainer.init(seed=0), data, seed=0).arrays
    trainer.evaluate(arrays, data)
    print(len(hits), len(misses))
    """
)


def run(**environment):
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "FL_PLUGINS_"))
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**clean, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    hits, misses = map(int, finished.stdout.split())
    return hits, misses, finished.stderr


def test_a_fresh_process_compiles_nothing_that_an_earlier_one_compiled(tmp_path):
    cache = tmp_path / "cache"
    hits, misses, _ = run(FL_PLUGINS_CACHE_DIR=str(cache))
    assert hits == 0
    assert misses >= 3  # init, train, evaluate
    assert cache.stat().st_mode & 0o777 == 0o700
    hits_again, misses_again, _ = run(FL_PLUGINS_CACHE_DIR=str(cache))
    assert (hits_again, misses_again) == (misses, 0)


def test_a_directory_that_cannot_be_used_warns_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    hits, misses, stderr = run(FL_PLUGINS_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert (hits, misses) == (0, 0)
    assert stderr.count("compilation cache:") == 1
    assert "set FL_PLUGINS_CACHE_DIR to a directory" in stderr


def test_the_directory_that_jax_was_given_is_used(tmp_path):
    run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"), FL_PLUGINS_CACHE_DIR=str(tmp_path / "ours"))
    assert list((tmp_path / "theirs").iterdir())
    assert not (tmp_path / "ours").exists()


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    _private_directory.cache_clear()
    (tmp_path / "shared").mkdir(mode=0o777)
    (tmp_path / "shared").chmod(0o777)
    with pytest.warns(RuntimeWarning, match="other users may write to it"):
        assert _private_directory(tmp_path / "shared") is None


def test_a_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    _private_directory.cache_clear()
    monkeypatch.setattr(compilation_cache.os, "getuid", lambda: os.geteuid() + 1)
    with pytest.warns(RuntimeWarning, match="it belongs to user"):
        assert _private_directory(tmp_path / "theirs") is None


def test_the_default_directory_follows_the_environment(monkeypatch):
    monkeypatch.setenv("FL_PLUGINS_CACHE_DIR", "/somewhere")
    assert default_directory() == Path("/somewhere")
    monkeypatch.delenv("FL_PLUGINS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_directory() == Path("/cache/fl-plugins/jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_directory() == Path.home() / ".cache/fl-plugins/jax"
