"""Options of a strategy and of a run: refused by name, left as the caller gave them."""

from typing import Any

import optax
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from fl_plugins.errors import ConfigError
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import FedAvg

from .round_support import MakeClient


@pytest.mark.parametrize(
    "options",
    [
        {"fraction_train": 1.5},
        {"fraction_evaluate": -0.1},
        {"num_train_nodes": 0},
        {"min_train_nodes": 0},
        {"quorum": 0.0},
        {"quorum": 1.1},
        {"max_attempts": 0},
        {"max_num_examples": 0},
        {"num_train_nodes": 2.5},
        {"max_attempts": 1.5},
        {"min_train_nodes": True},
        {"quorum": True},
        {"quorum": float("nan")},
        {"max_num_examples": float("nan")},
        {"fraction_train": "0.5"},
        {"server_optimizer": "adam"},
        {"server_optimizer": optax.adam},
    ],
)
def test_options_out_of_range_are_refused_by_name_at_construction(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        FedAvg(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_rounds": 2.5},
        {"num_rounds": -1},
        {"seed": "1"},
        {"timeout_s": 0},
        {"evaluate_every": 0},
        {"checkpoint_dir": "somewhere"},
    ],
)
def test_run_options_of_the_wrong_type_or_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        RunOptions(**{"num_rounds": 1, **options})


def test_the_callers_config_is_not_changed(initial: ArrayRecord, make_client: MakeClient) -> None:
    config = ConfigRecord({"lr": 0.1})
    with InProcessGrid(make_client(1.0), 3) as grid:
        FedAvg().start(grid, initial, num_rounds=2, train_config=config)
        assert grid.sent[0].content.config_records["config"]["lr"] == 0.1
        assert grid.sent[0].content.config_records["config"]["server-round"] == 1
    assert dict(config) == {"lr": 0.1}
