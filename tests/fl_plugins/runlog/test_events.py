import json
import math
import threading
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import ConfigError, DataError
from fl_plugins.runlog.events import FIELDS, EventLog, EventReader, read_events, to_json


def strict(text):
    """Parse as other languages do: NaN and Infinity are no JSON."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("event", sorted(FIELDS))
def test_every_event_has_all_fields_of_its_type_whatever_the_writer_knows(tmp_path, event):
    log = EventLog(tmp_path / "run" / "events.jsonl")
    log(event)
    log(event, **dict.fromkeys(FIELDS[event], 1), extra="more")
    bare, full = read_events(log.path)
    assert bare["event"] == full["event"] == event
    assert bare["schema"] == 1
    assert {name: bare[name] for name in FIELDS[event]} == dict.fromkeys(FIELDS[event])
    assert {name: full[name] for name in FIELDS[event]} == dict.fromkeys(FIELDS[event], 1)
    assert full["extra"] == "more"


def test_an_unknown_event_type_is_refused_and_nothing_is_written(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ConfigError, match=r"'round_strated' is no event type; the types are .*round_started"):
        log("round_strated", round=1)
    assert read_events(log.path) == []


def test_time_and_type_cannot_be_overwritten_by_a_field(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log("run_failed", error="x", schema=7, time="never")
    [event] = read_events(log.path)
    assert event["schema"] == 1
    assert isinstance(event["time"], float)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3),
        (np.bool_(True), True),
        (ml_dtypes.bfloat16(1.5), 1.5),
        (jnp.float32(0.25), 0.25),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.float64("inf"), "Infinity"),
        (-math.inf, "-Infinity"),
        (np.float32("nan"), "NaN"),
        ({"b", "a"}, ["a", "b"]),
        ({1: Path("x/y")}, {"1": "x/y"}),
        (2**80, 2**80),
    ],
)
def test_values_become_plain_json(value, expected):
    assert strict(json.dumps(to_json(value), allow_nan=False)) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, min_size=1, max_size=4))
def test_any_values_are_one_line_each_and_come_back(tmp_path_factory, written):
    log = EventLog(tmp_path_factory.mktemp("log") / "events.jsonl")
    for value in written:
        log("run_failed", error=value)
    lines = log.path.read_bytes().split(b"\n")
    assert [strict(line)["error"] for line in lines[:-1]] == [
        event["error"] for event in read_events(log.path)
    ]
    assert [event["error"] for event in read_events(log.path)] == [back(to_json(value)) for value in written]


def back(value):
    """What UTF-8 makes of text: a lone surrogate, which it cannot express, stays as its escape."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_read_back_by_float(number):
    assert repr(float(to_json(number))) == repr(number)


def test_a_torn_last_line_is_dropped_by_the_reader_and_cut_off_by_a_resumed_run(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path)("round_started", round=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert [event["round"] for event in read_events(path)] == [1]
    EventLog(path)("round_started", round=2)
    assert [event["round"] for event in read_events(path)] == [1, 2]


def test_a_resumed_run_appends(tmp_path):
    for number in (1, 2):
        EventLog(tmp_path / "events.jsonl")("run_started", num_rounds=number)
    assert [event["num_rounds"] for event in read_events(tmp_path / "events.jsonl")] == [1, 2]


def test_the_reader_gives_each_event_once_however_the_file_grows(tmp_path):
    source, growing = tmp_path / "source", tmp_path / "growing"
    log = EventLog(source)
    for number in range(4):
        log("round_started", round=number, sampled=["ü"])
    reader, seen = EventReader(growing), []
    assert reader.poll() == []
    data = source.read_bytes()
    for end in range(0, len(data) + 1, 7):
        growing.write_bytes(data[:end])
        seen += reader.poll()
    growing.write_bytes(data)
    seen += reader.poll() + reader.poll()
    assert [event["round"] for event in seen] == [0, 1, 2, 3]


def test_a_reader_from_the_end_sees_only_what_comes(tmp_path):
    path = tmp_path / "events.jsonl"
    assert EventReader.end_of(path) == 0
    EventLog(path)("run_failed", error="old")
    with path.open("ab") as file:
        file.write(b'{"torn')
    reader = EventReader(path, offset=EventReader.end_of(path))
    EventLog(path)("run_failed", error="new")
    assert [event["error"] for event in reader.poll()] == ["new"]


def test_threads_never_mix_their_lines(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")

    def write(client):
        for number in range(50):
            log("reply", client=client, round=number, reason="x" * 5000)

    threads = [threading.Thread(target=write, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = read_events(log.path)
    for client in range(4):
        assert [event["round"] for event in events if event["client"] == client] == list(range(50))


def test_a_file_from_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"schema": 2, "event": "run_started"}\n')
    with pytest.raises(DataError, match="schema=2, but this fl-plugins reads schema 1"):
        read_events(path)


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"schema": 1}', '{"schema": 1, "event": 3}', "\x00"])
def test_a_whole_line_that_is_no_event_is_an_error(tmp_path, line):
    path = tmp_path / "events.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match="is not an event"):
        read_events(path)
