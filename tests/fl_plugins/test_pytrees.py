from collections import namedtuple
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_plugins.errors import StructureError
from fl_plugins.pytrees import flatten_named, unflatten_named

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int8", "uint16", "bool"]
Pair = namedtuple("Pair", "left right")


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    kernel: np.ndarray
    bias: np.ndarray


def array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 5).astype(np.dtype(dtype))


leaves = st.builds(
    array,
    st.sampled_from(DTYPES),
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
    st.integers(0, 9),
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(st.text("ab/~01", max_size=3), inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Layer, inner, inner)
    ),
    max_leaves=8,
)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@given(trees, st.sampled_from(["", "params"]))
def test_every_tree_round_trips_exactly(tree, prefix):
    named = flatten_named(tree, prefix)
    assert len(named) == len(jax.tree.leaves(tree))
    shuffled = dict(sorted(named.items(), reverse=True))
    assert_same(unflatten_named(shuffled, tree, prefix), tree)


def test_keys_are_paths_of_dict_keys_indexes_and_attribute_names():
    tree = {"net": [Layer(np.zeros(2), np.zeros(1)), Pair(np.zeros(3), np.zeros(4))], "scale": np.array(1.0)}
    assert list(flatten_named(tree, "params")) == [
        "params/net/0/kernel",
        "params/net/0/bias",
        "params/net/1/left",
        "params/net/1/right",
        "params/scale",
    ]


def test_a_slash_in_a_key_is_escaped_so_that_paths_stay_distinct():
    named = flatten_named({"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "a~1b": np.zeros(1)})
    assert list(named) == ["a/b", "a~1b", "a~01b"]
    assert named["a/b"][0] == 1


def test_a_reordered_dict_gives_equal_keys_in_equal_order():
    a, b = np.zeros(2), np.ones(3)
    assert list(flatten_named({"x": a, "y": b})) == list(flatten_named({"y": b, "x": a}))


def test_b3_names_decide_and_not_positions():
    like = {"a": np.zeros(2), "b": np.zeros(2)}
    tree = unflatten_named({"b": np.full(2, 10.0), "a": np.ones(2)}, like)
    assert tree["a"][0] == 1
    assert tree["b"][0] == 10


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"dense/kernel": np.zeros(2)}, "array 'dense/bias' is missing;"),
        (
            {"dense/bias": np.zeros(1), "dens/kernel": np.zeros(2)},
            "'dense/kernel' is missing and array 'dens/kernel' is",
        ),
        (
            {"dense/bias": np.zeros(1), "dense/kernel": np.zeros(2), "more": np.zeros(1)},
            "array 'more' is not in the model",
        ),
        (
            {"dense/bias": np.zeros(2), "dense/kernel": np.zeros(2)},
            r"'dense/bias' is float64\[2\] but the model's",
        ),
        ({"dense/bias": np.zeros(1, "f4"), "dense/kernel": np.zeros(2)}, r"'dense/bias' is float32\[1\]"),
    ],
)
def test_another_layer_shape_or_dtype_is_refused_by_name(named, message):
    with pytest.raises(StructureError, match=message):
        unflatten_named(named, {"dense": {"kernel": np.zeros(2), "bias": np.zeros(1)}})


def test_jax_leaves_and_abstract_shapes_work():
    tree = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    named = flatten_named(tree)
    assert isinstance(named["w"], np.ndarray)
    abstract = jax.eval_shape(lambda: tree)
    assert unflatten_named(named, abstract)["w"].dtype == jnp.bfloat16


def test_numpy_leaves_are_not_copied():
    leaf = np.zeros(5)
    assert flatten_named([leaf])["0"] is leaf


def test_two_leaves_with_one_path_are_refused():
    @jax.tree_util.register_pytree_with_keys_class
    class Twins:
        def tree_flatten_with_keys(self):
            key = jax.tree_util.DictKey("same")
            return [(key, np.zeros(1)), (key, np.ones(1))], None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls()

    with pytest.raises(StructureError, match="two leaves of the tree have this path"):
        flatten_named({"layer": Twins()})
