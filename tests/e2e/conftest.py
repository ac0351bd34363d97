"""A private SuperLink for the end-to-end tests, and Flower's own command line pointed at it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_plugins.simulation.superlink import SuperLink, local_superlink

FLWR = Path(sys.executable).parent / "flwr"

LONGEST = ("test_faults.py", "test_additive_aggregation.py")
"""Begin first, so that nothing long is left for the end. No simulation is among them: beside these, Ray
starts so slowly that Flower may miss the run's heartbeat."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@dataclass(frozen=True)
class FlwrRun:
    """What ``flwr run --stream`` printed, and how ``flwr ls`` says that the run ended."""

    output: str
    status: str


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with local_superlink(tmp_path_factory.mktemp("superlink") / "superlink.log") as running:
        yield running


@pytest.fixture
def flwr_run(superlink: SuperLink, tmp_path: Path) -> Callable[..., FlwrRun]:
    """Run an app with ``flwr run``, as a user would, in the private SuperLink."""
    home = tmp_path / "flwr-home"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "private"\n'
        f'[superlink.private]\naddress = "{superlink.address}"\ninsecure = true\n'
    )
    environment = {**os.environ, "FLWR_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}

    def flwr(*arguments: str) -> str:
        done = subprocess.run(
            [FLWR, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        return done.stdout + done.stderr

    def run(app: Path, *, num_supernodes: int, **run_config: Any) -> FlwrRun:
        overrides = " ".join(f"{key.replace('_', '-')}={_toml(value)}" for key, value in run_config.items())
        settings = f"num-supernodes={num_supernodes} client-resources-num-cpus=1"
        arguments = ["run", str(app), "private", "--stream", "--federation-config", settings]
        output = flwr(*arguments, *(["--run-config", overrides] if overrides else []))
        newest = json.loads(flwr("ls", "private", "--format", "json"))["runs"][0]
        return FlwrRun(output, newest["status"])

    return run


def _toml(value: Any) -> str:
    """Return a value as ``--run-config`` wants it."""
    return json.dumps(value)
