"""The clipped sum against a slow loop over examples, and the bound that privacy hangs on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from clients.dp_sgd.clipping import ClippedBatch
from clients.dp_sgd.products import is_direct
from clients.dp_sgd.steps import trace_model
from clients.losses import softmax_cross_entropy
from clients.models import linen_model, nnx_model
from clients.networks import CNN, MLP, LeNet, Transformer
from fl_plugins.errors import ConfigError
from fl_plugins.training import Model

SIZE = 6
IMAGE, TOKENS = (16, 16, 1), 12


class Linen(linen.Module):
    """Strided, dilated and grouped convolutions, three normalisations, attention, dropout."""

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.relu(linen.GroupNorm(4)(linen.Conv(8, (5, 5), strides=(2, 2))(x)))
        x = linen.Conv(8, (3, 3), feature_group_count=4, kernel_dilation=(2, 2))(x)
        x = linen.max_pool(linen.LayerNorm()(x), (2, 2))
        x = linen.Dropout(0.3, deterministic=not train)(x)
        x = linen.RMSNorm()(linen.MultiHeadDotProductAttention(2)(x.reshape(x.shape[0], -1, 8)))
        return linen.Dense(10)(x.mean(1))


class Tied(nnx.Module):
    """The embedding is the output layer too: used twice."""

    def __init__(self, rngs):
        self.tokens = nnx.Embed(TOKENS, 5, rngs=rngs)
        self.inner = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, x):
        return self.tokens.attend(nnx.tanh(self.inner(self.tokens(x))))


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(SIZE, *IMAGE)).astype(np.float32), rng.integers(0, 10, SIZE)


def sentences(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, TOKENS, (SIZE, 8)), rng.integers(0, TOKENS, (SIZE, 8))


MODELS = {
    "mlp": (lambda: nnx_model(lambda rngs: MLP(256, 10, hidden=(24,), rngs=rngs)), images),
    "cnn": (lambda: nnx_model(lambda rngs: CNN(IMAGE, 10, rngs=rngs)), images),
    "lenet": (lambda: nnx_model(lambda rngs: LeNet(IMAGE, 10, rngs=rngs)), images),
    "transformer": (
        lambda: nnx_model(lambda rngs: Transformer(TOKENS, context=8, width=16, rngs=rngs)),
        sentences,
    ),
    "tied": (lambda: nnx_model(Tied), sentences),
    "linen": (lambda: linen_model(Linen(), np.zeros((1, *IMAGE), np.float32)), images),
}


def clipped(model, loss, x, y, *, clip_norm, mask=None, params=None):
    """Return (variables, trace, keys, clipped sum)."""
    variables = model.init(jax.random.key(0))
    like = jax.eval_shape(model.init, jax.random.key(0))
    shapes = [jax.ShapeDtypeStruct(a.shape[1:], jax.dtypes.canonicalize_dtype(a.dtype)) for a in (x, y)]
    traced = trace_model(model, loss, like, *shapes)
    keys = jax.random.split(jax.random.key(1), len(x))
    mask = np.ones(len(x), bool) if mask is None else np.asarray(mask)
    batch = jax.jit(ClippedBatch(traced=traced, clip_norm=clip_norm))
    params = variables["params"] if params is None else params
    return params, traced, keys, batch(params, {}, x, y, keys, mask)


def example_gradients(model, loss, params, x, y, keys):
    """Return every example's gradient by a loop, in float64 once it is known."""

    def value(params, x, y, key):
        outputs, _ = model.apply({"params": params}, x[None], train=True, key=key)
        return loss(outputs, y[None])[0]

    gradient = jax.jit(jax.grad(value))
    loop = [gradient(params, *row) for row in zip(x, y, keys, strict=True)]
    return [[np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(one)] for one in loop]


def norm_of(leaves):
    return np.sqrt(sum(float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in leaves))


@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_that_of_a_loop_over_examples(name):
    make, data = MODELS[name]
    model, (x, y) = make(), data()
    params, traced, keys, probe = clipped(model, softmax_cross_entropy, x, y, clip_norm=1.0)
    clip_norm = float(np.median(np.asarray(probe.norms)))  # half of the examples are clipped
    mask = np.arange(SIZE) != 2
    _, _, _, result = clipped(model, softmax_cross_entropy, x, y, clip_norm=clip_norm, mask=mask)
    gradients = example_gradients(model, softmax_cross_entropy, params, x, y, keys)
    norms = np.array([norm_of(one) for one in gradients])
    # The gram form adds 2^-18 of the terms' magnitudes squared: at most T = 8 positions' worth here.
    np.testing.assert_allclose(result.norms, norms, rtol=5e-5)
    weights = np.minimum(1, clip_norm / norms) * mask
    expected = [
        sum(w * g for w, g in zip(weights, leaf, strict=True)) for leaf in zip(*gradients, strict=True)
    ]
    scale = norm_of(expected)
    for got, want in zip(jax.tree.leaves(result.gradients), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4 * scale)
    used = {kept.leaf for kept in traced.book_kept} | set(traced.materialised)
    assert used == set(range(len(expected)))


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "transformer", "linen"])
def test_every_matrix_kernel_and_table_is_book_kept(name):
    make, data = MODELS[name]
    x, y = data()
    params, traced, _, _ = clipped(make(), softmax_cross_entropy, x, y, clip_norm=1.0)
    names = [
        "/".join(str(p.key) for p in path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    assert {names[leaf].split("/")[-1] for leaf in traced.materialised} <= {"bias", "scale"}


def test_a_parameter_used_twice_is_materialised_and_the_reason_given():
    x, y = sentences()
    _, traced, _, _ = clipped(nnx_model(Tied), softmax_cross_entropy, x, y, clip_norm=1.0)
    assert "used 2 times" in traced.materialised.values()


@pytest.mark.parametrize(
    ("name", "factor"), [("mlp", 1e-3), ("mlp", 1e6), ("cnn", 1.0), ("transformer", 1.0)]
)
def test_leaving_one_example_out_moves_the_sum_by_at_most_the_clip_norm(name, factor):
    make, data = MODELS[name]
    model, (x, y) = make(), data(seed=3)
    if x.dtype == np.float32:
        x[0] *= factor
    sums = [
        clipped(model, softmax_cross_entropy, x, y, clip_norm=0.25, mask=np.arange(SIZE) >= start)[3]
        for start in (0, 1)
    ]
    moved = [np.asarray(a, np.float64) - b for a, b in zip(*map(leaves_of, sums), strict=True)]
    # The sums of SIZE terms are float32: their difference is known to SIZE units in the last place of C.
    assert norm_of(moved) <= 0.25 * (1 + 1e-6)


def leaves_of(result):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result.gradients)]


def test_the_bound_is_reached_by_a_long_gradient():
    x, y = images()
    mask = np.arange(SIZE) == 0
    result = clipped(MODELS["mlp"][0](), softmax_cross_entropy, 10 * x, y, clip_norm=0.25, mask=mask)[3]
    assert norm_of(leaves_of(result)) == pytest.approx(0.25, rel=1e-5)


def linear(length, inner, outer):
    """A matrix over a sequence, whose gradient is Σₜ aₜ cₜᵀ with c given by the data."""

    def init(key):
        return {"params": {"kernel": jnp.zeros((inner, outer))}}

    def apply(variables, x, *, train, key):
        return x @ variables["params"]["kernel"], {}

    return Model(init=init, apply=apply)


def test_cancelling_terms_never_make_a_norm_too_small():
    length, inner, outer = 4, 300, 300
    assert not is_direct(length, inner, outer)  # the gram form, which cancels
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(SIZE, 1, inner)), length, axis=1).astype(np.float32)
    cotangents = rng.normal(size=(SIZE, length, outer)).astype(np.float32)
    cotangents -= cotangents.mean(axis=1, keepdims=True)  # they sum to rounding errors only
    result = clipped(
        linear(length, inner, outer),
        lambda outputs, y: (outputs * y).sum((1, 2)),
        x,
        cotangents,
        clip_norm=1.0,
    )[3]
    exact = np.einsum("btk,bto->bko", x.astype(np.float64), cotangents.astype(np.float64))
    assert (np.asarray(result.norms) >= np.sqrt(np.square(exact).sum((1, 2)))).all()


def test_zero_gradients_stay_zero():
    x, y = np.zeros((SIZE, 3, 4), np.float32), np.zeros((SIZE, 3, 5), np.float32)
    result = clipped(linear(3, 4, 5), lambda outputs, y: (outputs * y).sum((1, 2)), x, y, clip_norm=1.0)[3]
    assert not np.asarray(result.gradients["kernel"]).any()
    assert not np.asarray(result.norms).any()


@pytest.mark.parametrize(("name", "bad"), [("mlp", np.nan), ("mlp", np.inf), ("mlp", 3e38), ("cnn", np.nan)])
def test_an_example_with_a_gradient_that_is_not_finite_contributes_nothing(name, bad):
    x, y = images()
    model = MODELS[name][0]()
    others = clipped(model, softmax_cross_entropy, x, y, clip_norm=0.5, mask=np.arange(SIZE) > 0)[3]
    x[0, 3, 3] = bad
    result = clipped(model, softmax_cross_entropy, x, y, clip_norm=0.5)[3]
    assert not np.isfinite(result.norms[0])
    for a, b in zip(leaves_of(result), leaves_of(others), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masked_rows_contribute_nothing_whatever_is_in_them():
    x, y = images()
    model, mask = MODELS["mlp"][0](), np.arange(SIZE) < 4
    first = clipped(model, softmax_cross_entropy, x, y, clip_norm=0.5, mask=mask)[3]
    x[4:] = np.nan
    second = clipped(model, softmax_cross_entropy, x, y, clip_norm=0.5, mask=mask)[3]
    for a, b in zip(leaves_of(first), leaves_of(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_that_examples_enter_is_refused():
    def init(key):
        return {"params": {"w": jnp.ones(256)}, "state": {"mean": jnp.zeros(())}}

    def apply(variables, x, *, train, key):
        flat = x.reshape(len(x), -1)
        return flat * variables["params"]["w"], {"state": {"mean": flat.mean()}}

    x, y = images()
    with pytest.raises(ConfigError, match=r"computed from the examples.*GroupNorm"):
        clipped(Model(init=init, apply=apply), softmax_cross_entropy, x, y, clip_norm=1.0)
