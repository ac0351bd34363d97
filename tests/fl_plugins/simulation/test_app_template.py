import io
import math
import tomllib
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins import __version__
from fl_plugins.apps.config import RunConfig
from fl_plugins.simulation.app_template import _numeric, to_toml, write_app
from fl_plugins.simulation.session import load_bundle

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | text


@given(st.dictionaries(text, scalars, max_size=5))
def test_every_value_is_read_back_as_it_was(table):
    back = tomllib.loads(to_toml({"run-config": table}))["run-config"]
    assert list(back) == list(table)
    for key, value in table.items():
        assert type(back[key]) is type(value)
        assert back[key] == value or (math.isnan(back[key]) and math.isnan(value))


def test_flower_accepts_the_ready_made_app_and_it_holds_no_code(tmp_path):
    bundle = load_bundle(write_app(tmp_path / "app"))
    names = set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())
    assert {"pyproject.toml", "LICENSE"} <= names
    assert not any(name.endswith(".py") for name in names)


def test_the_ready_made_app_declares_every_key_with_its_default(tmp_path):
    app = tomllib.loads((write_app(tmp_path) / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == RunConfig.defaults()
    assert {key: type(value) for key, value in app["config"].items()} == {
        key: type(value) for key, value in RunConfig.defaults().items()
    }


def test_the_same_version_makes_the_same_bundle(tmp_path):
    assert load_bundle(write_app(tmp_path / "a")) == load_bundle(write_app(tmp_path / "b"))


@pytest.mark.parametrize(
    ("version", "expected"), [("0.1.0", "0.1.0"), ("0+unknown", "0"), ("1.2.dev3+g1", "1.2")]
)
def test_the_apps_version_is_one_that_flower_takes(version, expected):
    assert _numeric(version) == expected
    assert _numeric(__version__)
