"""``fl-plugins privacy``: a plan keeps the budget that it was asked for, a report says what is spent."""

import math
from pathlib import Path

import pytest

from fl_plugins.cli import main
from fl_plugins.privacy import Everyone, Gaussian, NeighborRelation, Release
from fl_plugins.privacy.ledger import Ledger


def exact_delta(epsilon: float, mu: float) -> float:
    """Balle and Wang 2018, Theorem 8, for sensitivity/noise = mu."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2.0)) / 2.0

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("adjacency", "shift"), [("add_remove", 1.0), ("zero_out", 1.0), ("replace", 2.0)])
def test_a_plan_without_sampling_is_the_exact_gaussian(
    capsys: pytest.CaptureFixture[str], adjacency: str, shift: float
) -> None:
    arguments = [
        "privacy",
        "plan",
        "--epsilon",
        "3",
        "--delta",
        "1e-5",
        "--rounds",
        "100",
        "--clients",
        "50",
        "--unit",
        "client",
        "--adjacency",
    ]
    assert main([*arguments, adjacency]) == 0
    told = capsys.readouterr().out
    noise = float(told.split("noise multiplier")[1].split()[0])
    mu = shift * math.sqrt(100) / noise
    assert exact_delta(3.0, mu) <= 1e-5 * 1.001  # four digits of noise are printed
    assert exact_delta(3.0, mu * 1.001) > 1e-5
    assert "client" in told
    assert adjacency in told


def test_a_plan_with_units_that_rest_is_that_of_as_many_releases_as_they_can_take_part_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """96 rounds, none again before 16: six releases."""
    given = "privacy plan --epsilon 8 --delta 1e-5 --clients 479 --unit client --adjacency zero_out"
    assert main(f"{given} --rounds 96 --separation 16".split()) == 0
    told = capsys.readouterr().out
    noise = float(told.split("noise multiplier")[1].split()[0])
    mu = math.sqrt(6) / noise
    assert exact_delta(8.0, mu) <= 1e-5 * 1.001
    assert exact_delta(8.0, mu * 1.001) > 1e-5
    assert "MinSeparation(size=29, rounds=16, population=479)" in told
    assert main(f"{given} --rounds 96 --separation 16 --sample 30".split()) != 0
    assert "come back too soon" in capsys.readouterr().err


def test_a_plan_without_an_adjacency_is_one_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    given = "privacy plan --epsilon 3 --delta 1e-5 --rounds 200 --clients 1000 --sample 50"
    assert main(given.split()) == 0
    together = capsys.readouterr().out
    for adjacency in ("add_remove", "replace", "zero_out"):
        assert main(f"{given} --unit client --adjacency {adjacency}".split()) == 0
        alone = capsys.readouterr().out
        assert f"unit client, adjacency {adjacency}" in alone
        assert alone in together


def test_a_report_names_unit_adjacency_and_what_is_pending(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    relation = NeighborRelation.of(unit="client", adjacency="zero_out")
    one = Release(mechanism=Gaussian(noise_multiplier=2.0), sampling=Everyone(), relation=relation)
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, population="hospitals", relation=relation) as ledger:
        ledger.begin("first", {})
        ledger.commit(ledger.reserve(one, run="first", number=1))
        ledger.reserve(one, run="first", number=2)
        assert main(["privacy", "report", str(path), "--delta", "1e-5"]) == 0  # while the run goes on
    told = capsys.readouterr().out
    epsilon = float(told.split("ε")[1].strip(" =<≤").split()[0])
    assert exact_delta(epsilon, math.sqrt(2) / 2.0) == pytest.approx(1e-5, rel=0.02)  # printed digits
    for words in ("hospitals", "client", "zero_out", "1 reservations"):
        assert words in told


def test_a_report_of_what_is_no_ledger_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["privacy", "report", str(tmp_path / "none"), "--delta", "1e-5"]) != 0
    assert "is no file" in "".join(capsys.readouterr())


STRATEGY = (
    "dp_fedavg(fedavg(weighting='uniform'), unit='client', adjacency='zero_out', population=100, delta=1e-5, "
    "clip_norm=0.5, noise_multiplier=3.0{})"
)


def test_an_audit_prints_both_bounds_and_passes_sound_noise(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "privacy",
        "audit",
        "--strategy",
        STRATEGY.format(""),
        "--dropouts",
        "0.2",
        "--num-rounds",
        "2",
    ]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert exact_delta(float(told.split("ε = ")[1].split()[0]), math.sqrt(2) / 3) == pytest.approx(
        1e-5, rel=0.02
    )
    for words in ("lower bound  ε ≥ ", "95.0% confidence", "unit client, adjacency zero_out", "80 canaries"):
        assert words in told


def test_an_audit_of_noise_that_can_be_subtracted_fails(capsys: pytest.CaptureFixture[str]) -> None:
    spec = STRATEGY.format(", insecure_seed=5")
    assert main(["privacy", "audit", "--strategy", spec, "--dropouts", "0"]) == 1
    assert "VIOLATION" in capsys.readouterr().out


def test_a_trainer_is_audited_by_records(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "dp_supervised(clip_norm=1.0, noise_multiplier=2.0, expected_batch_size=40, num_steps=1)"
    assert main(["privacy", "audit", "--client", spec, "--records", "40", "--confidence", "0.9"]) == 0
    told = capsys.readouterr().out
    for words in ("unit record, adjacency zero_out", "90.0% confidence", "40 canaries"):
        assert words in told


def test_options_of_the_other_kind_of_audit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "audit", "--strategy", STRATEGY.format(""), "--records", "5"]) == 2
    assert "goes with --client" in capsys.readouterr().err
    assert main(["privacy", "audit", "--client", "supervised", "--dropouts", "0.5"]) == 2
    assert "goes with --strategy" in capsys.readouterr().err


def test_membership_prints_area_rates_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    command = "privacy membership --task digits(model='mlp') --num-clients 3 --num-rounds 1 --shadow-models 0"
    assert main(command.split()) == 0
    told = capsys.readouterr().out
    for words in ("AUC  ", "at FPR 0.1%", "unit record, adjacency add_remove", "nothing is promised"):
        assert words in told
