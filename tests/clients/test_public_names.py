"""What ``import clients`` offers, and that it is cheap."""

import subprocess
import sys
from pathlib import Path

import pytest

import clients


def test_every_public_name_resolves_and_the_list_is_sorted():
    assert clients.__all__ == sorted(clients.__all__)
    assert set(clients.__all__) == set(clients._MODULES)
    for name in clients.__all__:
        assert getattr(clients, name) is not None
    assert set(clients.__all__) <= set(dir(clients))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Supervized'"):
        clients.Supervized  # noqa: B018


def test_importing_the_package_does_not_import_jax():
    code = "import sys, clients; sys.exit(bool({'jax', 'flax', 'sklearn', 'flwr'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
