"""Fake installed distributions, and a registry that forgets them afterwards."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from fl_plugins.registry import _registrations

Install = Callable[..., Path]


def write_tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")


def write_distribution(
    site: Path,
    name: str,
    entry_points: str,
    files: Mapping[str, str] | None = None,
    *,
    record: bool = True,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write what an installer would: the files, and a dist-info that lists them."""
    files = files or {}
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/entry_points.txt": entry_points,
        **{(key if key.endswith(".pth") else f"{info}/{key}"): text for key, text in (extra or {}).items()},
    }
    if record:
        metadata[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, *metadata])
    write_tree(site, {**files, **metadata})
    return site


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install fake distributions on ``sys.path`` for one test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    known = dict(_registrations._registrations)
    before = set(sys.modules)

    def do(
        name: str, entry_points: str = "", files: Mapping[str, str] | None = None, **options: object
    ) -> Path:
        return write_distribution(site, name, dedent(entry_points), files, **options)

    yield do
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[module]
    for key, registrations in _registrations._registrations.items():
        _registrations._registrations[key] = [
            each
            for each in registrations
            if each in known.get(key, ())
            or each.module.startswith(("fl_plugins.", "strategies.", "clients."))
        ]


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a fresh interpreter, in a folder, with further folders on its path."""

    def run(code: str, *, cwd: Path, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [sys.executable, "-c", dedent(code)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
