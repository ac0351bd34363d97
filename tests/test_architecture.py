"""The house keeps its own rules."""

import ast
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

import clients
import fl_plugins
import strategies
from fl_plugins.apps.config import RunConfig
from fl_plugins.registry import Kind, load

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY_POINTS = [
    (group, name, target)
    for group, names in PYPROJECT["project"]["entry-points"].items()
    for name, target in names.items()
]


def test_the_root_app_declares_every_run_config_key_with_its_default() -> None:
    assert PYPROJECT["tool"]["flwr"]["app"]["config"] == RunConfig.defaults()


@pytest.mark.parametrize("package", [fl_plugins, strategies, clients])
def test_public_names_are_sorted_and_exist(package: ModuleType) -> None:
    assert package.__all__ == sorted(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)


@pytest.mark.parametrize(("group", "name", "target"), ENTRY_POINTS)
def test_every_built_in_is_registered_under_its_entry_points_name_and_documented(
    group: str, name: str, target: str
) -> None:
    kind = next(kind for kind in Kind if kind.group == group)
    plugin = load(kind, f"fl-plugins:{name}")
    assert (plugin.kind, plugin.name) == (kind, name)
    assert plugin.summary
    assert all(parameter.doc for parameter in plugin.parameters), [
        p.name for p in plugin.parameters if not p.doc
    ]


def test_every_registered_built_in_has_an_entry_point() -> None:
    declared = {(group, name) for group, name, _ in ENTRY_POINTS}
    for package in ("fl_plugins", "strategies", "clients"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", "") == "register"
                    and len(node.args) >= 2
                ):
                    continue
                kind, name = node.args[:2]
                if isinstance(kind, ast.Attribute) and isinstance(name, ast.Constant):
                    assert (Kind[kind.attr].group, name.value) in declared, f"{path}: {name.value}"


def test_the_installed_entry_points_are_those_of_pyproject() -> None:
    installed = {
        (point.group, point.name, point.value)
        for group, _, _ in ENTRY_POINTS
        for point in entry_points(group=group)
        if point.dist and point.dist.name == "fl-plugins"
    }
    assert installed == set(ENTRY_POINTS), "run `make install` after changing pyproject.toml"


UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unsafe_readers(source: str) -> list[str]:
    """Return what in a module's source could run code that comes with data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            names = []
            found += [
                f"line {node.lineno}: allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle"
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
        else:
            continue
        found += [f"line {node.lineno}: {name}" for name in names if name.partition(".")[0] in UNSAFE_MODULES]
    return found


def test_no_pickle_anywhere() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {what}"
        for package in ("fl_plugins", "strategies", "clients")
        for path in (ROOT / package).rglob("*.py")
        for what in unsafe_readers(path.read_text())
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy as np, cloudpickle.compat",
        "from joblib import load",
        "numpy.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=trusted)",
    ],
)
def test_the_search_for_pickle_finds_it(source: str) -> None:
    assert unsafe_readers(source)
    assert not unsafe_readers("import json\nnumpy.load(path, allow_pickle=False)")
