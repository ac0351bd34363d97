"""The ready-made tasks: data, splits, errors."""

import importlib.util
import sys

import jax
import numpy as np
import pytest

from clients.partitioned import Partitioned
from clients.supervised import Supervised
from clients.tasks.breast_cancer import breast_cancer
from clients.tasks.digits import digits
from fl_plugins.errors import ConfigError, ConfigTypeError, DataError, PluginLoadError
from fl_plugins.registry import Kind
from fl_plugins.spec import build
from fl_plugins.training import Dataset, Task

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("flwr_datasets") is None, reason="the extra 'datasets' is not installed"
)


def all_rows(task, num_partitions):
    parts = [task.load_partition(i, num_partitions) for i in range(num_partitions)]
    sets = [part for client in parts for part in (client.train, client.validation)] + [task.load_test()]
    return np.concatenate([part.x.reshape(len(part), -1) for part in sets if len(part)])


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "by_label"])
def test_digits_deals_all_1797_images_and_each_once(partition):
    from sklearn.datasets import load_digits

    task = digits(partition=partition, min_examples=5)
    rows = all_rows(task, 10)
    assert rows.shape == (1797, 64)
    expected = load_digits().data / 16
    # Equal as multisets of rows: sorted by all columns.
    np.testing.assert_array_equal(
        rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)].astype(np.float32)
    )


def test_digits_has_the_shapes_and_dtypes_that_it_says():
    task = build(Kind.TASK, "digits(model='mlp', test_fraction=0.25)")
    assert isinstance(task, Task)
    client, test = task.load_partition(3, 10), task.load_test()
    for part in (client.train, client.validation, test):
        assert part.x.shape[1:] == (8, 8, 1)
        assert part.x.dtype == np.float32
        assert part.y.dtype == np.int32
        assert part.x.min() >= 0
        assert part.x.max() <= 1
        assert set(part.y) <= set(range(10))
    assert len(test) == pytest.approx(1797 / 4, abs=10)
    assert len(client.validation) == (len(client.train) + len(client.validation)) // 10
    assert task.num_classes == 10


def test_splits_are_the_same_on_every_machine_and_change_with_the_seed():
    def rows(seed):
        task = digits(seed=seed)
        return task.load_partition(2, 7).train.x, task.load_test().x

    first, again, other = rows(0), rows(0), rows(1)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_the_test_set_does_not_depend_on_how_examples_are_dealt():
    np.testing.assert_array_equal(
        digits(partition="iid").load_test().x, digits(partition="by_label").load_test().x
    )


@pytest.mark.parametrize("make", [digits, breast_cancer])
def test_without_a_test_fraction_there_is_no_test_set(make):
    task = make(test_fraction=0.0)
    assert task.load_test is None
    assert make(test_fraction=0.1).load_test is not None
    # Of at most 357 examples of a class.
    with pytest.raises(DataError, match=r"test_fraction=0.001 of \d+ examples.*is none; raise it"):
        make(test_fraction=0.001).load_test()


@pytest.mark.parametrize("partition_id", [-1, 10, 11])
def test_a_partition_that_does_not_exist_is_an_error_with_its_number(partition_id):
    with pytest.raises(DataError, match=f"partition_id={partition_id} must be between 0 and .* = 9"):
        digits().load_partition(partition_id, 10)


def test_a_partition_with_no_examples_is_an_error_with_its_number():
    data = Partitioned(
        task="toy",
        load=lambda: Dataset(np.ones((4, 2)), np.zeros(4, int)),
        test_fraction=0.0,
        validation_fraction=0.5,
    )
    sizes = [len(data.load_partition(i, 6).train) for i in range(4)]
    assert sizes == [1] * 4  # a single example is trained on, not put aside
    with pytest.raises(DataError, match="partition 5 of 6 has no examples; use fewer partitions"):
        data.load_partition(5, 6)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"partition": "random"}, ConfigError, "partition='random' must be one of iid, dirichlet, by_label"),
        ({"test_fraction": 1.0}, ConfigError, r"test_fraction=1.0 must be in \[0, 1\)"),
        ({"validation_fraction": -0.1}, ConfigError, "validation_fraction=-0.1"),
        ({"alpha": 0.0}, ConfigError, "alpha=0.0"),
        ({"labels_per_client": 0}, ConfigError, "labels_per_client=0 must be >= 1"),
        ({"min_examples": 1.5}, ConfigTypeError, "min_examples=1.5 must be an int"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"model": "transformer"}, ConfigError, "model='transformer' must be one of cnn, mlp"),
    ],
)
def test_bad_parameters_are_refused_when_the_task_is_built(parameters, error, message):
    with pytest.raises(error, match=message):
        digits(**parameters)


@pytest.mark.parametrize("model", ["mlp", "logistic"])
def test_breast_cancer_is_standardised_over_all_training_cases_and_can_be_learned(model):
    task = breast_cancer(model=model, validation_fraction=0.0)
    x = np.concatenate([task.load_partition(i, 5).train.x for i in range(5)])
    assert len(x) + len(task.load_test()) == 569
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)  # float32 means of 455 values
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-4)
    trainer = Supervised(task, local_epochs=5)
    arrays = trainer.train(trainer.init(seed=0), task.load_partition(0, 1).train, seed=0).arrays
    assert trainer.evaluate(arrays, task.load_test())["accuracy"] > 0.93


def test_a_constant_feature_stays_finite():
    x = np.stack([np.arange(10.0), np.ones(10)], axis=1)
    data = Partitioned(task="toy", load=lambda: Dataset(x, np.zeros(10, int)), standardise=True)
    assert np.isfinite(data.load_partition(0, 1).train.x).all()


def test_the_extra_is_named_when_it_is_missing(monkeypatch):
    from clients.tasks.flwr_dataset import load_table

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PluginLoadError, match=r"'fl-plugins\[datasets\]'"):
        load_table("ylecun/mnist", split="train", subset=None)


@needs_datasets
@pytest.mark.parametrize(
    "name",
    ["table.csv", "data/table.parquet", "t.json", "t.jsonl", "./folder", "../folder", "/no/folder", "~/no/x"],
)
def test_a_path_to_nothing_is_refused_without_asking_the_hub(name, monkeypatch):
    import flwr_datasets

    from clients.tasks.flwr_dataset import load_table

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", lambda **_: pytest.fail("the hub was asked"))
    with pytest.raises(DataError, match=f"no file or folder {name}"):
        load_table(name, split="train", subset=None)


@needs_datasets
@pytest.mark.parametrize(
    "error", [ConnectionError("no\nroute"), ValueError("Unknown split"), FileNotFoundError("404")]
)
def test_what_the_hub_answers_is_told_in_one_line_with_what_to_do(error, monkeypatch):
    import flwr_datasets

    from clients.tasks.flwr_dataset import load_table

    class Hub:
        def __init__(self, **names):
            assert names["dataset"] == "ylecun/mnist"

        def load_split(self, split):
            raise error

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", Hub)
    with pytest.raises(DataError, match=r"'ylecun/mnist' .*check the names and the network") as caught:
        load_table("ylecun/mnist", split="train", subset=None)
    assert type(error).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_datasets
class TestLocalDatasets:
    """flwr_dataset on files of this machine only."""

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    @pytest.fixture
    def images(self, tmp_path):
        import datasets

        rng = np.random.default_rng(0)
        labels = [str(value) for value in rng.integers(0, 3, 60)]
        pixels = [rng.integers(0, 256, (8, 6), dtype=np.uint8) for _ in labels]
        table = datasets.Dataset.from_dict(
            {"image": pixels, "label": labels},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1", "2"])}
            ),
        )
        table.save_to_disk(tmp_path / "one")
        datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "splits")
        return tmp_path, pixels

    @pytest.mark.parametrize("folder", ["one", "splits"])
    def test_a_folder_of_images_becomes_a_task_that_trains(self, images, folder):
        root, pixels = images
        task = build(
            Kind.TASK,
            f"flwr_dataset('{root / folder}', partition='dirichlet', min_examples=2, test_fraction=0.1)",
        )
        rows = all_rows(task, 4)
        expected = np.stack(pixels).reshape(60, -1).astype(np.float32) / 255
        np.testing.assert_allclose(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)], rtol=1e-6)
        assert task.num_classes == 3
        trainer = Supervised(task)
        result = trainer.train(trainer.init(seed=0), task.load_partition(0, 4).train, seed=0)
        assert np.isfinite(result.metrics["loss"])

    def test_an_unknown_split_or_column_is_an_error_that_lists_what_there_is(self, images):
        root, _ = images
        from clients.tasks.flwr_dataset import flwr_dataset

        with pytest.raises(DataError, match="has the splits train, test, but split='valid'"):
            flwr_dataset(str(root / "splits"), split="valid")
        with pytest.raises(DataError, match="no column 'img'; the table has image, label"):
            flwr_dataset(str(root / "one"), features="img")
        (root / "table.xls").write_text("")
        with pytest.raises(DataError, match=r"must end in one of \.csv"):
            flwr_dataset(str(root / "table.xls"))

    # datasets' CSV reader leaves its file to the garbage collector.
    @pytest.mark.filterwarnings("ignore:.*table.csv:pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("features", ["*", "a, b"])
    def test_a_csv_file_of_numbers_becomes_a_tabular_task(self, tmp_path, features):
        from clients.tasks.flwr_dataset import flwr_dataset

        lines = [f"{i},{i * 0.5},{'yes' if i % 3 else 'no'}" for i in range(30)]
        (tmp_path / "table.csv").write_text("\n".join(["a,b,outcome", *lines]))
        name = str(tmp_path / "table.csv")
        task = flwr_dataset(name, features=features, label="outcome", model="mlp", test_fraction=0.0)
        assert task.load_test is None
        data = task.load_partition(0, 1)
        assert data.train.x.shape == (27, 2)
        assert set(data.train.y) == {0, 1}
        assert ((data.train.x[:, 0] % 3 != 0) == (data.train.y == 1)).all()  # "no" < "yes"
        with pytest.raises(ConfigError, match="model='cnn' needs images"):
            flwr_dataset(name, features=features, label="outcome")
        with pytest.raises(DataError, match="'outcome' has dtype"):
            flwr_dataset(name, features="a, outcome", label="b", model="mlp")


def test_models_have_the_sizes_that_the_docs_say():
    sizes = {
        model: sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(digits(model=model).model.init, jax.random.key(0)))
        )
        for model in ("cnn", "mlp")
    }
    assert sizes == {"cnn": 160 + 4640 + 128 * 64 + 64 + 650, "mlp": 64 * 64 + 64 + 650}
