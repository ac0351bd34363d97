"""Breast cancer diagnosis from 30 measurements of cell nuclei: scikit-learn's bundled 569 cases, two classes.

Street, Wolberg and Mangasarian 1993, "Nuclear feature extraction for breast tumor diagnosis" (WDBC). No
download.
"""

from typing import Literal, Unpack

import numpy as np

from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, Task

from ..models import nnx_model
from ..networks import MLP
from ..partitioned import Partitioned, PartitionOptions
from ._classification import classification_task

NUM_CLASSES = 2
NUM_FEATURES = 30


@register(Kind.TASK, "breast_cancer", paper="Street, Wolberg and Mangasarian 1993")
def breast_cancer(
    *,
    model: Literal["mlp", "logistic"] = "mlp",
    **options: Unpack[PartitionOptions],
) -> Task:
    """Return the task of telling malignant (0) from benign (1) cases.

    ``x`` is ``(n, 30)`` float32, ``y`` is ``(n,)`` int32. Features are standardised with the mean and
    standard deviation of *all* clients' training cases together: two public constants per feature here. A
    real federation has to take them from public data or compute them federatedly.

    Parameters
    ----------
    model : {"mlp", "logistic"}
        One hidden layer of 32, or logistic regression.
    **options
        How examples are dealt to clients, see :class:`clients.partitioned.Partitioned`.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """
    data = Partitioned(
        task="breast_cancer",
        load=load_cases,
        **options,
        standardise=True,
    )
    if model not in ("mlp", "logistic"):
        raise ConfigError(f"breast_cancer: model={model!r} must be one of mlp, logistic; choose one.")
    hidden = (32,) if model == "mlp" else ()
    network = nnx_model(lambda rngs: MLP(NUM_FEATURES, NUM_CLASSES, hidden=hidden, rngs=rngs))
    return classification_task(data, network, num_classes=NUM_CLASSES)


def load_cases() -> Dataset:
    """Return all 569 cases in the features' own units, as float64."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return Dataset(x, y.astype(np.int32))
