"""Data sets by name through Flower Datasets (``flwr-datasets``), or from a folder on this machine.

Needs the extra ``datasets``: ``pip install "fl-plugins[datasets]"``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from fl_plugins.errors import ConfigError, DataError, PluginLoadError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, Model, Task

from ..models import nnx_model
from ..networks import CNN, MLP
from ..partitioned import Partitioned, PartitionOptions
from ._classification import classification_task

if TYPE_CHECKING:
    import datasets

_READERS = {".csv": "from_csv", ".parquet": "from_parquet", ".json": "from_json", ".jsonl": "from_json"}
_PATH_PREFIXES = ("./", "../", "/", "~")


@register(Kind.TASK, "flwr_dataset")
def flwr_dataset(
    name: str,
    *,
    split: str = "train",
    subset: str | None = None,
    features: str = "image",
    label: str = "label",
    model: Literal["cnn", "mlp"] = "cnn",
    hidden: int = 64,
    **options: Unpack[PartitionOptions],
) -> Task:
    """Return a classification task over a data set that ``flwr-datasets`` can load, or a local one.

    Images (PIL or uint8) become float32 ``(n, h, w, c)`` in [0, 1]; other features become float32
    ``(n, ...)``. Labels become int32 ``0 .. num_classes - 1`` in the order of their values.

    Parameters
    ----------
    name : str
        A name on the Hugging Face hub (``"ylecun/mnist"``), a folder written by ``Dataset.save_to_disk``, or
        a ``.csv``, ``.parquet``, ``.json`` or ``.jsonl`` file.
    split : str
        The split that is dealt to clients; the test set is held out from it too.
    subset : str, optional
        Configuration name of a hub data set that has several.
    features : str
        The column of inputs; comma-separated names stack several numeric columns to ``(n, columns)``, and
        ``"*"`` stacks all but the label.
    label : str
        The column of labels.
    model : {"cnn", "mlp"}
        Two convolutions (images of at least 4×4 only) and a hidden layer, or one hidden layer.
    hidden : int
        Width of the hidden layer.
    **options
        How examples are dealt to clients, see :class:`clients.partitioned.Partitioned`.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    DataError
        If there is no such data set or it cannot be loaded, has not the columns, or cannot be made arrays.
    PluginLoadError
        If the extra ``datasets`` is not installed.
    """
    if model not in ("cnn", "mlp"):
        raise ConfigError(f"flwr_dataset: model={model!r} must be one of cnn, mlp; choose one.")
    if isinstance(hidden, bool) or hidden < 1:
        raise ConfigError(f"flwr_dataset: hidden={hidden!r} must be >= 1; raise it.")
    data = to_arrays(load_table(name, split=split, subset=subset), features=features, label=label)
    num_classes = int(data.y.max()) + 1
    network = _network(model, data.x.shape[1:], num_classes, hidden=hidden)
    partitioned = Partitioned(
        task="flwr_dataset",
        load=lambda: data,
        **options,
    )
    return classification_task(partitioned, network, num_classes=num_classes)


def load_table(name: str, *, split: str, subset: str | None) -> "datasets.Dataset":
    """Return one split as a table; local folders and files are read without a network.

    Raises
    ------
    DataError
        If there is no such folder, file, split or data set on the hub, or the hub cannot be reached.
    PluginLoadError
        If the extra ``datasets`` is not installed.
    """
    try:
        import datasets
        from flwr_datasets import FederatedDataset
    except ImportError as error:
        raise PluginLoadError(
            f"flwr_dataset: the package {error.name!r} is not installed; pip install 'fl-plugins[datasets]'."
        ) from error
    path = Path(name).expanduser()
    if path.is_dir():
        table = datasets.load_from_disk(str(path))
        if isinstance(table, datasets.Dataset):
            return table
        if split not in table:
            raise DataError(
                f"flwr_dataset: {name} has the splits {', '.join(table)}, but split={split!r}; choose one."
            )
        return table[split]
    if path.is_file():
        if path.suffix not in _READERS:
            raise DataError(
                f"flwr_dataset: {name} must end in one of {', '.join(_READERS)}, or be a folder written by "
                "Dataset.save_to_disk; convert it."
            )
        return getattr(datasets.Dataset, _READERS[path.suffix])(str(path))
    if name.startswith(_PATH_PREFIXES) or path.suffix in _READERS:
        raise DataError(
            f"flwr_dataset: there is no file or folder {name} (seen from {Path.cwd()}); correct the path, or "
            "make it absolute."
        )
    try:
        return FederatedDataset(dataset=name, subset=subset, partitioners={}).load_split(split)
    except Exception as error:  # datasets, the hub's client and its HTTP library have no common error
        raise DataError(
            f"flwr_dataset: {name!r} (subset={subset!r}, split={split!r}) cannot be loaded from the Hugging "
            f"Face hub: {type(error).__name__}: {' '.join(str(error).split())[:300]}; check the names and "
            "the network, or give the path of a local copy."
        ) from error


def to_arrays(table: "datasets.Dataset", *, features: str, label: str) -> Dataset:
    """Return a table's columns as ``x`` float32 ``(n, ...)`` and ``y`` int32 ``(n,)`` from 0 on.

    Raises
    ------
    DataError
        If a column is missing, the examples differ in shape, or there are none.
    """
    columns = _columns(table, features=features, label=label)
    if len(table) == 0:
        raise DataError("flwr_dataset: the table has no rows; choose another split.")
    parts = [_numeric(table[column], column=column) for column in columns]
    x = parts[0] if len(parts) == 1 else np.stack(parts, axis=-1)
    if x.ndim == 1:
        x = x[:, None]
    if x.dtype == np.uint8:
        x = (x[..., None] if x.ndim == 3 else x) / np.float32(255)
    _, y = np.unique(np.asarray(table[label]), return_inverse=True)
    return Dataset(x.astype(np.float32), y.astype(np.int32))


def _columns(table: "datasets.Dataset", *, features: str, label: str) -> list[str]:
    """Return the names of the columns of inputs."""
    known = list(table.column_names)
    names = [part.strip() for part in features.split(",")]
    columns = [name for name in known if name != label] if names == ["*"] else names
    for name in (*columns, label):
        if name not in known:
            raise DataError(
                f"flwr_dataset: there is no column {name!r}; the table has {', '.join(known)}: set features "
                "and label."
            )
    return columns


def _numeric(values: Any, *, column: str) -> NDArray[Any]:
    """Return one column as ``(n, ...)``; images as uint8."""
    try:
        array = np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        raise DataError(
            f"flwr_dataset: the examples of column {column!r} differ in shape; resize them beforehand."
        ) from error
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise DataError(
            f"flwr_dataset: column {column!r} has dtype {array.dtype}, but inputs must be numbers or images; "
            "encode it beforehand or leave it out of features."
        )
    return array


def _network(kind: str, shape: tuple[int, ...], num_classes: int, *, hidden: int) -> Model:
    """Return the network for inputs of ``shape``."""
    if kind == "mlp":
        size = int(np.prod(shape))
        return nnx_model(lambda rngs: MLP(size, num_classes, hidden=(hidden,), rngs=rngs))
    if len(shape) != 3 or min(shape[:2]) < 4:
        raise ConfigError(
            f"flwr_dataset: model='cnn' needs images (height, width, channels) of at least 4×4, but examples "
            f"have shape {shape}; use model='mlp'."
        )
    height, width, depth = shape
    return nnx_model(lambda rngs: CNN((height, width, depth), num_classes, hidden=hidden, rngs=rngs))
