"""Tasks over files on this machine: MNIST-10k and Shakespeare's roles."""

import gzip
import os
import struct
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clients.losses import softmax_cross_entropy
from clients.networks import LeNet, Transformer
from clients.tasks._idx import read_idx
from clients.tasks.mnist10k import mnist10k
from clients.tasks.shakespeare import read_speeches, shakespeare
from fl_plugins.errors import ConfigError, ConfigTypeError, DataError

DATA = Path(os.environ.get("FL_PLUGINS_DATA", Path(__file__).parents[3] / "shared" / "data"))
PLAY = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved: rather to die
than to famish?

Crier:
O
"""


@pytest.fixture
def play(tmp_path):
    file = tmp_path / "play.txt"
    file.write_text(PLAY)
    return str(file)


def idx(array, code=0x08):
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


# -- Shakespeare ------------------------------------------------------------------------------------------


def test_every_role_gets_its_own_speeches(play):
    assert read_speeches(Path(play)) == {
        "First Citizen": "Before we proceed any further, hear me speak.\n\n"
        "You are all resolved: rather to die\nthan to famish?",
        "All": "Speak, speak.",
        "Crier": "O",
    }


def test_windows_spell_the_role_s_text_and_targets_are_one_character_on(play):
    task = shakespeare(path=play, context=5, min_examples=2, test_fraction=0.2, validation_fraction=0.2)
    characters = sorted(set().union(*read_speeches(Path(play)).values()))
    client, test = task.load_partition(0, 2), task.load_test()
    text = read_speeches(Path(play))["First Citizen"]
    n = (len(text) - 1) // 5
    assert len(client.train) == n - 2 * (n // 5)
    assert len(client.validation) == n // 5
    assert len(test) == n // 5 + 0  # "All" has two windows, of which a fifth is none
    rows = np.concatenate([client.train.x, client.validation.x, test.x])
    assert "".join(characters[code] for code in rows.ravel()) == text[: n * 5]
    targets = np.concatenate([client.train.y, client.validation.y, test.y])
    assert "".join(characters[code] for code in targets.ravel()) == text[1 : n * 5 + 1]
    other = task.load_partition(1, 2).train.x
    assert "".join(characters[code] for code in other.ravel()) == "Speak, spe"
    with pytest.raises(DataError, match="3 partitions, but only 2 roles"):
        task.load_partition(0, 3)
    with pytest.raises(DataError, match="partition_id=2"):
        task.load_partition(2, 2)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"context": 0}, ConfigError, "context=0 must be >= 1"),
        ({"depth": 1.5}, ConfigTypeError, "depth=1.5 must be an int"),
        ({"heads": 3}, ConfigError, "heads=3 must divide width=64"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, ConfigError, "together below 1"),
        ({"min_examples": 1000}, DataError, "no role in .* has min_examples=1000"),
        ({"path": "/no/such/file"}, DataError, "there is nothing at /no/such/file"),
    ],
)
def test_bad_parameters_of_shakespeare_are_refused_at_construction(play, parameters, error, message):
    with pytest.raises(error, match=message):
        shakespeare(**{"path": play, **parameters})


def test_a_file_that_is_no_play_is_refused(tmp_path, monkeypatch):
    (tmp_path / "prose.txt").write_text("Call me Ishmael.")
    with pytest.raises(DataError, match="no line 'Role:'"):
        shakespeare(path=str(tmp_path / "prose.txt"))
    monkeypatch.delenv("FL_PLUGINS_DATA", raising=False)
    for task in (shakespeare, mnist10k):
        with pytest.raises(DataError, match=r"\$FL_PLUGINS_DATA is not set"):
            task()


@pytest.mark.skipif(not (DATA / "shakespeare").is_dir(), reason=f"no Shakespeare in {DATA}")
def test_tiny_shakespeare_has_its_roles_and_characters(monkeypatch):
    monkeypatch.setenv("FL_PLUGINS_DATA", str(DATA))
    task = shakespeare()
    sizes = [len(task.load_partition(i, 100).train) for i in range(100)]
    assert sizes[0] > 2 * sizes[20] > 0
    # Roles come by all their windows; two held-out parts are rounded down.
    assert all(after <= before + 2 for before, after in pairwise(sizes))
    speeches = read_speeches(DATA / "shakespeare" / "tinyshakespeare.txt")
    assert {"ROMEO", "KING RICHARD III", "First Citizen"} <= speeches.keys()
    assert not any(":\n" in text and "\n\nROMEO:\n" in text for text in speeches.values())
    assert 60 <= len(set().union(*speeches.values())) <= 65


# -- The networks -----------------------------------------------------------------------------------------


def test_the_transformer_does_not_see_the_future_and_sees_the_past():
    model = Transformer(11, context=8, width=16, heads=2, rngs=nnx.Rngs(0))
    text = jnp.array([[1, 2, 3, 4, 5, 6, 7, 8]])
    logits = model(text)
    assert logits.shape == (1, 8, 11)
    changed = model(text.at[0, 4].set(9))
    np.testing.assert_array_equal(logits[:, :4], changed[:, :4])
    assert (jnp.abs(logits[:, 4:] - changed[:, 4:]).max(axis=(0, 2)) > 1e-4).all()
    assert softmax_cross_entropy(logits, text).shape == (1,)


def test_lenet_is_the_tutorials_size():
    sizes = jax.tree.map(
        lambda leaf: leaf.size,
        nnx.state(nnx.eval_shape(lambda: LeNet((32, 32, 3), 10, rngs=nnx.Rngs(0))), nnx.Param),
    )
    # 5*5*3*6+6, 5*5*6*16+16, 400*120+120, 120*84+84, 84*10+10
    assert sum(jax.tree.leaves(sizes)) == 456 + 2416 + 48120 + 10164 + 850 == 62006
    assert LeNet((32, 32, 3), 10, rngs=nnx.Rngs(0))(jnp.ones((2, 32, 32, 3))).shape == (2, 10)


# -- MNIST and idx ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "code"), [(">u1", 0x08), (">i2", 0x0B), (">f4", 0x0D)])
def test_idx_files_are_read_back(tmp_path, packed, dtype, code):
    array = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    file = tmp_path / ("a.gz" if packed else "a")
    file.write_bytes(gzip.compress(idx(array, code)) if packed else idx(array, code))
    read = read_idx(file)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as an idx file"),
        (b"\0\0\x07\x01\0\0\0\x01x", "does not begin as an idx file"),
        (idx(np.zeros(5, np.uint8))[:-1], r"4 bytes of data but its header says \(5,\)"),
        (idx(np.zeros((2, 2), np.uint8))[:9], "does not begin as an idx file"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path, content, message):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "broken")
    (tmp_path / "broken.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "broken.gz")


@pytest.mark.parametrize(("model", "size"), [("mlp", 159_010), ("2nn", 199_210)])
def test_mnist10k_is_dealt_by_label_and_scaled(tmp_path, model, size):
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28)).astype(np.uint8)
    labels = (np.arange(200) % 10).astype(np.uint8)
    for name, array in (("t10k-images-idx3-ubyte.gz", images), ("t10k-labels-idx1-ubyte.gz", labels)):
        (tmp_path / name).write_bytes(gzip.compress(idx(array)))
    task = mnist10k(path=str(tmp_path), model=model, partition="by_label")
    part = task.load_partition(0, 5).train
    assert part.x.shape[1:] == (28, 28, 1)
    assert part.x.dtype == np.float32
    assert part.x.max() <= 1
    assert len(set(part.y)) <= 2
    assert len(task.load_test()) == 40
    variables = jax.eval_shape(task.model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == size  # McMahan et al., §3: 199,210


def test_an_unknown_model_is_refused():
    with pytest.raises(ConfigError, match="model='lenet' must be one of cnn, mlp, 2nn"):
        mnist10k(model="lenet")
