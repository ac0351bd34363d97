"""The task that most tests of trainers train on."""

import pytest

from fl_plugins.training import Task

from .support import mlp_model, task_of


@pytest.fixture(scope="module")
def toy() -> Task:
    return task_of(mlp_model())
