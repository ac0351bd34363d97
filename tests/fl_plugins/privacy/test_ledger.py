"""The ledger never under-counts."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from fl_plugins.errors import ConfigError, DataError, FLPluginsError
from fl_plugins.privacy import (
    Accountant,
    Budget,
    Everyone,
    FixedSize,
    Gaussian,
    Laplace,
    NeighborRelation,
    Release,
)
from fl_plugins.privacy.divergences import rdp
from fl_plugins.privacy.ledger import Ledger

ADD = NeighborRelation.of(unit="client", adjacency="add_remove")
RECORD = NeighborRelation.of(unit="record", adjacency="add_remove")
ONE = Release(mechanism=Gaussian(noise_multiplier=2.0), sampling=Everyone(), relation=ADD)

WRITER = """
import sys
from pathlib import Path
from fl_plugins.privacy import Everyone, Gaussian, NeighborRelation, Release
from fl_plugins.privacy.ledger import Ledger
relation = NeighborRelation.of(unit="client", adjacency="add_remove")
one = Release(mechanism=Gaussian(noise_multiplier=2.0), sampling=Everyone(), relation=relation)
with Ledger(Path(sys.argv[1]), population="p", relation=relation) as ledger:
    ledger.begin("r", {})
    for number in range(10**6):
        reservation = ledger.reserve(one, run="r", number=number)
        print(number, flush=True)  # a message leaves
        ledger.commit(reservation)
"""


def open_ledger(path, population="p", relation=ADD):
    return Ledger(path, population=population, relation=relation)


def filled(path, rounds=3):
    with open_ledger(path) as ledger:
        ledger.begin("r", {"z": 2.0})
        for number in range(rounds):
            ledger.commit(ledger.reserve(ONE, run="r", number=number))
    return path


def count(path):
    with open_ledger(path) as ledger:
        return sum(ledger.accountant.counts.values())


def test_runs_compose_and_a_reservation_counts_without_its_commit(tmp_path):
    path = filled(tmp_path / "ledger")
    with open_ledger(path) as ledger:
        before = ledger.report(1e-5).epsilon
        ledger.begin("other task", {})
        ledger.reserve(ONE, run="other task", number=0)
    with open_ledger(path) as ledger:
        assert (ledger.report(1e-5).num_releases, ledger.pending) == (4, 1)
        after = ledger.report(1e-5).epsilon
        assert after > before
        assert ledger.would_exceed(ONE, Budget(epsilon=after, delta=1e-5))
        assert not ledger.would_exceed(ONE, Budget(epsilon=2 * after, delta=1e-5))


def test_a_changed_configuration_population_or_relation_is_refused(tmp_path):
    path = filled(tmp_path / "ledger")
    with open_ledger(path) as ledger:
        ledger.begin("r", {"z": 2.0})
        with pytest.raises(ConfigError, match="another privacy configuration"):
            ledger.begin("r", {"z": 1.0})
        with pytest.raises(ConfigError, match="not begun"):
            ledger.reserve(ONE, run="never", number=0)
    with pytest.raises(ConfigError, match="use another file"):
        open_ledger(path, population="q")
    with pytest.raises(ConfigError, match="use another file"):
        open_ledger(path, relation=NeighborRelation.of(unit="client", adjacency="zero_out"))


def test_two_writers_are_refused(tmp_path):
    with open_ledger(tmp_path / "ledger"), pytest.raises(ConfigError, match="another process has it open"):
        open_ledger(tmp_path / "ledger")


def test_a_torn_last_line_counts_as_spent_wherever_it_was_cut(tmp_path):
    whole = filled(tmp_path / "ledger").read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in range(last + 1, len(whole), 7):
        (tmp_path / "torn").write_bytes(whole[:cut])
        assert count(tmp_path / "torn") == 4  # three, and the torn line
        assert count(tmp_path / "torn") == 4  # repaired: once only


def gaussian(z):
    return Release(mechanism=Gaussian(noise_multiplier=z), sampling=Everyone(), relation=ADD)


def test_a_torn_line_is_charged_as_the_costliest_release_of_the_population_and_its_largest_count(tmp_path):
    dear, cheap = gaussian(1.0), gaussian(9.0)
    path = tmp_path / "ledger"
    with open_ledger(path) as ledger:
        ledger.begin("r", {})
        for one, times in ((dear, 2), (cheap, 3), (cheap, 1)):  # the last definition is the cheap one
            ledger.reserve(one, run="r", number=0, count=times)
    path.write_bytes(path.read_bytes() + b'{"count":')
    assert dict(Ledger.read(path).accountant.counts) == {dear: 2 + 3, cheap: 4}
    for _ in range(2):
        with open_ledger(path) as ledger:
            assert dict(ledger.accountant.counts) == {dear: 2 + 3, cheap: 4}


def test_where_no_release_costs_most_at_every_order_a_torn_line_is_charged_as_each_that_may(
    tmp_path,
):
    laplace = Release(mechanism=Laplace(noise_multiplier=0.7), sampling=Everyone(), relation=ADD)
    gauss, cheap = gaussian(1.2), gaussian(5.0)
    at_low, at_high = (rdp(laplace)[order] > rdp(gauss)[order] for order in (0, -1))
    assert at_low != at_high
    path = tmp_path / "ledger"
    with open_ledger(path) as ledger:
        ledger.begin("r", {})
        for one in (cheap, laplace, gauss):
            ledger.reserve(one, run="r", number=0)
    path.write_bytes(path.read_bytes() + b"{")
    assert dict(Ledger.read(path).accountant.counts) == {cheap: 1, laplace: 2, gauss: 2}
    with open_ledger(path) as ledger:
        assert dict(ledger.accountant.counts) == {cheap: 1, laplace: 2, gauss: 2}


def test_any_other_damage_is_refused(tmp_path):
    lines = filled(tmp_path / "ledger").read_bytes().splitlines(keepends=True)
    damaged = [b"".join(lines[:i] + lines[i + 1 :]) for i in range(len(lines) - 1)]
    damaged += [b"".join([*lines[:i], lines[i].replace(b'"count":1', b'"count":0'), *lines[i + 1 :]])
                for i in range(len(lines)) if b'"count":1' in lines[i]]  # fmt: skip
    damaged += [b"".join([lines[1], lines[0], *lines[2:]]), b"\xff\n" + b"".join(lines)]
    for data in damaged:
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(DataError, match="was changed, or one before it was removed"):
            open_ledger(tmp_path / "bad")


def test_a_process_killed_at_any_point_has_not_sent_more_than_was_charged(tmp_path):
    path, sent, moment = tmp_path / "ledger", 0, random.Random(0)
    for kill in range(1, 7):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            time.sleep(moment.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            sent += 1 + len(process.stdout.read().splitlines())
        assert sent <= count(path) <= sent + 2 * kill  # a kill leaves at most one unsent and one torn line


@pytest.mark.parametrize(
    ("release", "times"),
    [
        (ONE, 0),
        (ONE, -1),
        (ONE, 1.5),
        (Release(mechanism=ONE.mechanism, sampling=ONE.sampling, relation=RECORD), 1),
    ],
)
def test_what_cannot_be_charged_is_refused_before_it_is_written(tmp_path, release, times):
    path = filled(tmp_path / "ledger")
    before = path.read_bytes()
    with open_ledger(path) as ledger, pytest.raises(FLPluginsError):
        ledger.reserve(release, run="r", number=3, count=times)
    assert path.read_bytes() == before
    assert count(path) == 3


def test_after_the_disk_has_refused_the_ledger_is_closed_and_can_be_opened_again(tmp_path, monkeypatch):
    path = filled(tmp_path / "ledger")

    def refuse(_):
        raise OSError(28, "No space left on device")

    with open_ledger(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(OSError, match="No space"):
                ledger.reserve(ONE, run="r", number=3)
        with pytest.raises(ValueError, match="closed file"):
            ledger.reserve(ONE, run="r", number=3)
    assert count(path) == 4  # the line may have reached the disk: it counts


def test_a_line_is_on_the_disk_before_the_reservation_is_returned(tmp_path, monkeypatch):
    sizes = []
    fsync = os.fsync

    def noted(descriptor):
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    path = filled(tmp_path / "ledger")
    with open_ledger(path) as ledger:
        monkeypatch.setattr(os, "fsync", noted)
        ledger.reserve(ONE, run="r", number=3)
        assert sizes == [path.stat().st_size]


def test_a_reader_sees_what_is_spent_while_a_run_has_the_ledger_and_changes_nothing(tmp_path):
    path = filled(tmp_path / "ledger")
    with open_ledger(path) as writing:
        writing.begin("r", {"z": 2.0})
        writing.reserve(ONE, run="r", number=9)
        before = path.read_bytes()
        read = Ledger.read(path)
        assert (read.report(1e-5), read.pending, read.head) == (writing.report(1e-5), 1, writing.head)
        assert path.read_bytes() == before
        with pytest.raises(ValueError, match="closed file"):
            read.reserve(ONE, run="r", number=10)
    path.write_bytes(before + b'{"line":')
    assert Ledger.read(path).report(1e-5).num_releases == 5
    assert path.read_bytes() == before + b'{"line":'


def test_a_ledger_cut_off_before_it_defines_a_release_is_refused_and_never_counts_as_new(tmp_path):
    whole = filled(tmp_path / "ledger").read_bytes()
    lines = whole.splitlines(keepends=True)
    cut_path = tmp_path / "cut"
    for cut in (5, len(lines[0]) - 1, len(lines[0]) + 5, len(lines[0] + lines[1]) + 5):
        cut_path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            open_ledger(cut_path)
        assert cut_path.read_bytes() == whole[:cut]
        with pytest.raises(DataError):
            Ledger.read(cut_path)


def test_a_torn_line_costs_no_less_than_any_release_of_the_ledger_however_each_is_accounted(tmp_path):
    replace = NeighborRelation.of(unit="client", adjacency="replace")
    # By Rényi divergence the sampled one costs more at every order, by loss distributions less.
    sampled, plain = (
        Release(mechanism=Gaussian(noise_multiplier=z), sampling=sampling, relation=replace)
        for z, sampling in ((4.0, FixedSize(size=10, population=100)), (20.0, Everyone()))
    )
    path = tmp_path / "ledger"
    with Ledger(path, population="p", relation=replace) as ledger:
        ledger.begin("r", {})
        ledger.reserve(sampled, run="r", number=1)
        ledger.reserve(plain, run="r", number=2)
        spent = Accountant(replace)
        for release, times in ((sampled, 1), (plain, 2)):
            spent.compose(release, times)
    path.write_bytes(path.read_bytes() + b"{")
    assert Ledger.read(path).report(1e-5).epsilon >= spent.report(1e-5).epsilon
