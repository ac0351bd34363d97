"""Handwritten digits: scikit-learn's bundled 1,797 grey images of 8×8 pixels, ten classes.

Alpaydin and Kaynak 1998, UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (its
test part). No download.
"""

from typing import Literal, Unpack

import numpy as np

from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, Task

from ..models import nnx_model
from ..networks import CNN, MLP
from ..partitioned import Partitioned, PartitionOptions
from ._classification import classification_task

NUM_CLASSES = 10


@register(Kind.TASK, "digits", paper="Alpaydin and Kaynak 1998, UCI ML Repository")
def digits(
    *,
    model: Literal["cnn", "mlp"] = "cnn",
    **options: Unpack[PartitionOptions],
) -> Task:
    """Return the task of classifying 8×8 images of handwritten digits.

    ``x`` is ``(n, 8, 8, 1)`` float32 in [0, 1], ``y`` is ``(n,)`` int32 in 0..9.

    Parameters
    ----------
    model : {"cnn", "mlp"}
        Two convolutions and a hidden layer, or one hidden layer of 64.
    **options
        How examples are dealt to clients, see :class:`clients.partitioned.Partitioned`.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """
    data = Partitioned(
        task="digits",
        load=load_images,
        **options,
    )
    match model:
        case "cnn":
            network = nnx_model(lambda rngs: CNN((8, 8, 1), NUM_CLASSES, rngs=rngs))
        case "mlp":
            network = nnx_model(lambda rngs: MLP(64, NUM_CLASSES, hidden=(64,), rngs=rngs))
        case _:
            raise ConfigError(f"digits: model={model!r} must be one of cnn, mlp; choose one.")
    return classification_task(data, network, num_classes=NUM_CLASSES)


def load_images() -> Dataset:
    """Return all 1,797 images, pixels scaled from 0..16 to [0, 1]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Dataset((bunch.images[..., None] / 16).astype(np.float32), bunch.target.astype(np.int32))
