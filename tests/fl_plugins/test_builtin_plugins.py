"""The plugins of this distribution: announced, loaded and documented like everyone's."""

import tomllib

import pytest

from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.registry import Kind, available, load, own_project, register
from fl_plugins.registry._registrations import registered

from .fake_plugins import REPOSITORY


def test_every_builtin_is_an_entry_point_of_this_distribution():
    project = own_project()
    assert project is not None
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    announced = {(kind, name) for kind in Kind for name in table.get(kind.group, {})}
    ours = {(entry.kind, entry.name) for entry in available() if entry.owner == "fl-plugins"}
    assert announced == ours
    assert {group for group in table if group.startswith("fl_plugins.")} <= {kind.group for kind in Kind}


@pytest.mark.parametrize(
    "entry",
    [entry for entry in available() if entry.owner == "fl-plugins"],
    ids=lambda entry: f"{entry.kind}-{entry.name}",
)
def test_every_builtin_loads_and_carries_its_decorator_and_documentation(entry):
    plugin = load(entry.kind, entry.qualified)
    assert any(known.factory is plugin.factory for known in registered(entry.kind, entry.name))
    assert plugin.summary
    undocumented = [p.name for p in plugin.parameters if not p.doc and p.name != "server_optimizer"]
    assert undocumented == []


def test_the_contract_of_a_plugin_is_what_its_decorator_says(install):
    contract = Contract(access=Access.SUM, weighting=Weighting.EXAMPLES)
    assert load(Kind.STRATEGY, "krum").contract == Contract(
        access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM
    )

    @register(Kind.CODEC, "summing", contract=contract)
    def summing() -> None:
        """Sum."""

    assert load(Kind.CODEC, "summing").contract == contract
