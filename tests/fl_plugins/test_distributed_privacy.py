"""Noise from the clients as it is announced: what both sides compute from it, over all sizes of a sum."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_plugins import distributed_privacy
from fl_plugins.distributed_privacy import DistributedSettings
from fl_plugins.errors import ConfigError, PolicyViolationError, RoundAbortedError
from fl_plugins.privacy import Accountant, Budget, NoiseSource
from fl_plugins.records import Layout
from fl_plugins.registry import Kind
from fl_plugins.secagg import RoundParameters, Tier
from fl_plugins.spec import build

D = 2048
MODEL = {"params/a": np.zeros((32, 32), np.float32), "params/b": np.zeros(D - 1024)}
LAYOUT = Layout.of(MODEL)


def announced(**changes: Any) -> DistributedSettings:
    values: dict[str, Any] = {
        "num_bits": 16,
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "min_clients": 8,
        "max_cohort": 10,
        "unit": "client",
        "adjacency": "zero_out",
    }
    values.update(changes)
    return DistributedSettings(**{"clip": values["clip_norm"], **values})


def parameters(of: DistributedSettings, **changes: Any) -> RoundParameters:
    values: dict[str, Any] = {
        "tier": Tier(of.tier),
        "run_id": 1,
        "round": 1,
        "attempt": 1,
        "sid": bytes(16),
        "cohort": of.max_cohort,
        "length": of.num_words(of.max_cohort, LAYOUT),
        "layout": of.layout_digest(LAYOUT),
        "model": bytes(32),
        **{
            name: getattr(of, name)
            for name in ("min_clients", "corrupt", "dropout", "num_bits", "clip", "max_weight")
        },
    }
    return RoundParameters(**{**values, **changes})


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_sum_of_any_survivors_is_that_of_their_updates_with_the_noise_that_is_accounted(data: Any) -> None:
    cohort = data.draw(st.integers(3, 40), label="cohort")
    corrupt = data.draw(st.sampled_from([0.0, 0.05, 0.2]), label="corrupt")
    colluders = math.ceil(corrupt * cohort - 1e-9)
    least = data.draw(st.integers(min(2 + colluders, cohort), cohort), label="min_clients")
    of = announced(
        mechanism=data.draw(st.sampled_from(["discrete_gaussian", "skellam"]), label="mechanism"),
        num_bits=data.draw(st.sampled_from([16, 32]), label="num_bits"),
        noise_multiplier=data.draw(st.floats(0.3, 4.0), label="noise_multiplier"),
        max_cohort=cohort,
        min_clients=least,
        corrupt=corrupt,
    )
    survivors = data.draw(st.integers(least, cohort), label="survivors")
    encoding = of.encoding(parameters(of), LAYOUT)
    seeds = iter(range(10**6))
    rng = np.random.default_rng(survivors)
    updates = rng.normal(0.3, 1.0, size=(survivors, D))
    updates *= 0.25 / np.linalg.norm(updates, axis=1, keepdims=True)  # nothing is clipped
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed_privacy, "NoiseSource", lambda: NoiseSource(insecure_seed=next(seeds)))
        total = sum(encoding.encode([update]).words for update in updates)
    decoded = encoding.decode(total, survivors)
    noise = decoded.update - updates.sum(axis=0) / cohort
    expected = of.noise_multiplier * 0.5 * math.sqrt(survivors / (least - colluders)) / cohort
    # Six standard errors, and 2 % for entries that wrap at four standard deviations and for rounding.
    assert noise.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * D) + 0.02)
    with pytest.raises(RoundAbortedError, match="the noise is right for at least"):
        encoding.decode(total, least - 1)


def test_the_announcement_says_it_all() -> None:
    of = announced(mechanism="skellam", num_bits=32, corrupt=0.1)
    mod = build(Kind.MOD, of.spec())
    assert asdict(mod) == asdict(of)
    assert mod.encoding(parameters(of), LAYOUT) == of.encoding(parameters(of), LAYOUT)
    assert mod.layout_digest(LAYOUT) == of.layout_digest(LAYOUT)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 1.0000001},
        {"clip_norm": 0.6},
        {"mechanism": "skellam"},
        {"max_cohort": 11},
        {"adjacency": "replace"},
    ],
)
def test_clients_that_are_told_different_noise_do_not_share_a_layout(changes: dict[str, Any]) -> None:
    assert announced(**changes).layout_digest(LAYOUT) != announced().layout_digest(LAYOUT)
    assert announced().layout_digest(LAYOUT) == announced().layout_digest(LAYOUT)


def test_an_attempt_at_more_clients_than_announced_is_refused() -> None:
    announced().check_announces(parameters(announced()))
    for changes, said in (
        ({"cohort": 11}, "max_cohort=10"),
        ({"min_clients": 7}, "announces 8"),
        ({"corrupt": 0.0}, "corrupt=0.0"),
    ):
        with pytest.raises(PolicyViolationError, match=said):
            announced().check_announces(parameters(announced(), **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clip": 0.4}, "clip=0.4, but it is 0.5"),
        ({"max_weight": 2.0}, "every client counts the same"),
        ({"weighting": "examples"}, "every client counts the same"),
        ({"metrics": ("loss",)}, "nothing but the noisy update"),
        ({"max_cohort": 7}, "max_cohort=7, but it must be >= 8"),
        ({"min_clients": 2}, "at least 2 must be left"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
    ],
)
def test_an_announcement_that_is_not_covered_by_the_noise_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        announced(**changes)


@pytest.mark.parametrize("mechanism", ["discrete_gaussian", "skellam"])
def test_a_target_takes_the_least_noise_that_keeps_it(mechanism: str) -> None:
    def spent(of: DistributedSettings) -> float:
        accountant = Accountant(of.relation)
        accountant.compose(of.release(D), 20)
        return accountant.report(1e-5).epsilon

    of = announced(mechanism=mechanism).planned(Budget(epsilon=4.0, delta=1e-5), rounds=20, num_entries=D)
    assert spent(of) <= 4.0 < spent(replace(of, noise_multiplier=0.998 * of.noise_multiplier))
