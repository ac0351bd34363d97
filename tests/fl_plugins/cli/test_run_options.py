import argparse
import math

import pytest

from fl_plugins.cli import _run_options as options
from fl_plugins.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1 b=2.5  c=true", {"a": 1, "b": 2.5, "c": True}),
        ("a='x y' b=\"it's\"", {"a": "x y", "b": "it's"}),
        (r'a="q\"\n;=" b=-1', {"a": 'q"\n;=', "b": -1}),
        (
            'strategy="krum(num_byzantine=2)" num-rounds=20',
            {"strategy": "krum(num_byzantine=2)", "num-rounds": 20},
        ),
        ("a.b=1e-3", {"a.b": 0.001}),
        ("a=inf", {"a": math.inf}),
        ("a=''", {"a": ""}),
    ],
)
def test_pairs_are_read_like_toml(text, expected):
    config = options.parse_run_config([text])
    assert config == expected
    assert [type(value) for value in config.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    "text", ["task=digits", "a", "a=", "=1", "a=1 junk b=2", "a='x", 'a="x"b=1', "a = 1", "a=True", "a=1,b=2"]
)
def test_what_is_not_understood_is_an_error_although_flwr_run_drops_some_of_it(text):
    with pytest.raises(ConfigError, match=r"--run-config: cannot read .*write KEY=VALUE pairs"):
        options.parse_run_config([text])


@pytest.mark.parametrize("text", ["a=1979-05-27", "a=07:32:00"])
def test_a_value_of_another_type_is_an_error(text):
    with pytest.raises(ConfigError, match="a value is a bool, int, float or string"):
        options.parse_run_config([text])


def test_a_key_that_comes_twice_is_an_error():
    with pytest.raises(ConfigError, match="seed is given twice"):
        options.parse_run_config(["seed=1", "seed=1"])


def test_a_toml_file_is_read_and_its_tables_get_dots(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('num-rounds = 3\n[a]\nb = "x"\n[a.c]\nd = true\n')
    assert options.parse_run_config([str(path), "seed=1"]) == {
        "num-rounds": 3,
        "a.b": "x",
        "a.c.d": True,
        "seed": 1,
    }
    path.write_text("a = [1]")
    with pytest.raises(ConfigError, match=r"a=\[1\], but a value is"):
        options.parse_run_config([str(path)])
    with pytest.raises(ConfigError, match="cannot read"):
        options.parse_run_config([str(tmp_path / "missing.toml")])


def parse(*arguments):
    parser = argparse.ArgumentParser()
    options.add_run_options(parser)
    return parser.parse_args(arguments)


def test_options_and_run_config_come_together():
    args = parse(
        "--num-rounds", "3", "--seed", "0", "--attack", "", "--run-config", "stop='x'", "--run-config", "a=1"
    )
    assert options.overrides(args) == {"num-rounds": 3, "seed": 0, "attack": "", "stop": "x", "a": 1}
    assert options.overrides(parse()) == {}


def test_a_key_in_both_is_an_error():
    with pytest.raises(ConfigError, match="seed is also given as --seed"):
        options.overrides(parse("--seed", "1", "--run-config", "seed=2"))


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"num-round is not a key of the app; did you mean num-rounds\?"):
        options.check_keys(["num-round"], {"num-rounds": 1}, where="the app")
    options.check_keys(["num-rounds"], {"num-rounds": 1}, where="the app")


def test_an_apps_declared_keys_are_found(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        "[tool.flwr.app.config]\na = 1\n[tool.flwr.app.config.b]\nc = 'x'\n"
    )
    assert options.declared_config(tmp_path) == {"a": 1, "b.c": "x"}
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app]\npublisher = 'x'\n")
    assert options.declared_config(tmp_path) == {}


@pytest.mark.parametrize("content", [None, "", "[tool]\nflwr = 1", "nonsense"])
def test_a_folder_without_an_app_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"no \[tool.flwr.app\] in"):
        options.declared_config(tmp_path)
