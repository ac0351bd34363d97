"""The rule in ``examples/in_app_plugin``, without Flower: that its app runs is an e2e test."""

import importlib.util
from pathlib import Path

import numpy as np

from fl_plugins.aggregation import Aggregator


def test_the_examples_rule_is_halfway_between_the_extremes() -> None:
    path = Path(__file__).parents[2] / "examples" / "in_app_plugin" / "in_app_plugin" / "midrange.py"
    spec = importlib.util.spec_from_file_location("in_app_plugin_midrange", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rule = module.MidrangeRule()
    assert isinstance(rule, Aggregator)
    rows = np.random.default_rng(0).normal(size=(5, 70_000)).astype(np.float32)
    np.testing.assert_array_equal(rule(rows).value, (rows.min(axis=0) + rows.max(axis=0)) / 2)
