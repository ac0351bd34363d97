"""The part that all classification tasks share: loss, accuracy, and where their data come from."""

from fl_plugins.training import Model, Task

from ..losses import accuracy, softmax_cross_entropy
from ..partitioned import Partitioned


def classification_task(data: Partitioned, model: Model, *, num_classes: int) -> Task:
    """Return the task of telling ``num_classes`` classes apart; it has the name that ``data`` has."""
    return Task(
        name=data.task,
        model=model,
        loss=softmax_cross_entropy,
        metrics={"accuracy": accuracy},
        load_partition=data.load_partition,
        load_test=data.load_test,
        num_classes=num_classes,
    )
