import math

import pytest

from fl_plugins.errors import ConfigError
from fl_plugins.runlog.events import EventLog
from fl_plugins.simulation.run_directory import (
    check_name,
    claimed,
    installed_versions,
    read_config,
    slug,
    write_config,
)


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_resumed(tmp_path):
    folder = tmp_path / "runs" / "a"
    with claimed(folder, resume=False):
        EventLog(folder / "events.jsonl")("run_started")
    with (
        pytest.raises(ConfigError, match=r"holds a run already.*another --name, or --resume"),
        claimed(folder, resume=False),
    ):
        pytest.fail("it was given away")
    with claimed(folder, resume=True) as given:
        assert given == folder


def test_there_must_be_a_run_to_resume_and_the_folder_is_not_made(tmp_path):
    with pytest.raises(ConfigError, match="there is no run to resume"), claimed(tmp_path / "b", resume=True):
        pytest.fail("there is nothing")
    assert not (tmp_path / "b").exists()


def test_a_run_that_never_started_leaves_its_folder_free(tmp_path):
    (tmp_path / "events.jsonl").touch()
    with claimed(tmp_path, resume=False):
        pass


def test_two_processes_cannot_write_into_one_folder(tmp_path):
    with (
        claimed(tmp_path, resume=False),
        pytest.raises(ConfigError, match="another run is being written here"),
        claimed(tmp_path, resume=False),
    ):
        pytest.fail("both have it")
    with claimed(tmp_path, resume=False):
        pass


def test_the_config_is_read_back_with_the_versions(tmp_path):
    run_config = {"strategy": 'odd(name="a;\n")', "num-rounds": 3, "scale": math.inf, "resume": True}
    write_config(tmp_path, {"app": "ready-made", "num-supernodes": 10}, run_config)
    back = read_config(tmp_path)
    assert back == {
        "run": {"app": "ready-made", "num-supernodes": 10},
        "run-config": run_config,
        "versions": installed_versions(),
    }
    assert back["versions"]["flwr"][0].isdigit()


def test_a_missing_config_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["a", "krum-2.1_b", "_x"])
def test_names_of_folders_are_accepted(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-rf", "a b", "a\n"])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ConfigError, match="not the name of a folder"):
        check_name(name)


@pytest.mark.parametrize("spec", ["krum(num_byzantine=2)", "../../etc", "☃", "x" * 500, ""])
def test_every_spec_makes_the_name_of_a_folder(spec):
    assert check_name(slug(spec))
    assert len(slug(spec)) <= 60
