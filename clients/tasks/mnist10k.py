"""MNIST's 10,000 test images as a data set of its own, from idx files on this machine.

LeCun, Bottou, Bengio and Haffner 1998. The 60,000 training images are not used, so figures are not comparable
to those on full MNIST.
"""

from pathlib import Path
from typing import Literal, Unpack

import numpy as np

from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, Task

from ..models import nnx_model
from ..networks import CNN, MLP
from ..partitioned import Partitioned, PartitionOptions
from ._classification import classification_task
from ._folder import data_path
from ._idx import read_idx

NUM_CLASSES = 10
FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


@register(Kind.TASK, "mnist10k", paper="LeCun et al. 1998; McMahan et al. 2017 (2NN)")
def mnist10k(
    *,
    path: str | None = None,
    model: Literal["cnn", "mlp", "2nn"] = "cnn",
    **options: Unpack[PartitionOptions],
) -> Task:
    """Return the task of classifying 28×28 images of handwritten digits.

    ``x`` is ``(n, 28, 28, 1)`` float32 in [0, 1], ``y`` is ``(n,)`` int32 in 0..9. ``partition='by_label'``
    is McMahan et al.'s pathological non-IID split.

    Parameters
    ----------
    path : str, optional
        The folder with ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``; by default
        ``mnist10k`` inside ``$FL_PLUGINS_DATA``.
    model : {"cnn", "mlp", "2nn"}
        Two convolutions and a hidden layer, one hidden layer of 200, or two (McMahan et al.'s 2NN).
    **options
        How examples are dealt to clients, see :class:`clients.partitioned.Partitioned`.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    DataError
        If the files are not there or not whole.
    """
    match model:
        case "cnn":
            network = nnx_model(lambda rngs: CNN((28, 28, 1), NUM_CLASSES, rngs=rngs))
        case "mlp":
            network = nnx_model(lambda rngs: MLP(784, NUM_CLASSES, hidden=(200,), rngs=rngs))
        case "2nn":
            network = nnx_model(lambda rngs: MLP(784, NUM_CLASSES, hidden=(200, 200), rngs=rngs))
        case _:
            raise ConfigError(f"mnist10k: model={model!r} must be one of cnn, mlp, 2nn; choose one.")
    folder = data_path(path, "mnist10k", task="mnist10k")
    data = Partitioned(task="mnist10k", load=lambda: load_images(folder), **options)
    return classification_task(data, network, num_classes=NUM_CLASSES)


def load_images(folder: Path) -> Dataset:
    """Return all images, pixels scaled from 0..255 to [0, 1]."""
    images, labels = (read_idx(folder / name) for name in FILES)
    return Dataset(images[..., None].astype(np.float32) / 255, labels.astype(np.int32))
