"""Unmodified Flax modules get fast convolution gradients, and the same ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.extend import core

from clients.fast_convolutions import fast_convolutions
from clients.models import linen_model, nnx_model

from .test_layers import arrays

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.second = nnx.Conv(8, 9, (3, 3), padding="VALID", rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.norm(self.first(x))), (2, 2), (1, 1))
        return self.second(x).mean((1, 2))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.max_pool(linen.relu(linen.Conv(8, (5, 5))(x)), (2, 2), (2, 2))
        return linen.remat(linen.Conv)(9, (3, 3), strides=(2, 1), padding="VALID")(x).mean((1, 2))


MODELS = {
    "nnx": lambda: nnx_model(Nnx),
    "linen": lambda: linen_model(Linen(), jnp.ones((1, 12, 12, 2))),
}


def convolutions(jaxpr):
    """Every convolution of a jaxpr, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.params
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple) else (parameter,):
                if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                    yield from convolutions(getattr(inner, "jaxpr", inner))


def is_plain(parameters):
    numbers = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), LAYOUT)
    dilations = (*parameters["lhs_dilation"], *parameters["rhs_dilation"])
    return parameters["dimension_numbers"] == numbers and set(dilations) == {1}


def gradient_convolutions(function, *arguments):
    found = list(convolutions(jax.make_jaxpr(jax.grad(function))(*arguments).jaxpr))
    assert len(found) >= 2, "there are none to look at"
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_module_as_the_user_wrote_it_trains_on_plain_convolutions_with_the_same_gradients(
    name, monkeypatch
):
    model = MODELS[name]()
    (x,) = arrays((3, 12, 12, 2))
    variables = model.init(jax.random.key(0))
    state = {key: tree for key, tree in variables.items() if key != "params"}

    def loss(params):
        outputs, _ = model.apply({"params": params, **state}, x, train=True, key=jax.random.key(1))
        return jnp.sum(jnp.square(outputs))

    fast = gradient_convolutions(loss, variables["params"])
    gradients = jax.grad(loss)(variables["params"])
    assert all(map(is_plain, fast))
    monkeypatch.setattr("clients.models.fast_convolutions", lambda function: function)
    assert not all(map(is_plain, gradient_convolutions(loss, variables["params"])))
    expected = jax.grad(loss)(variables["params"])
    for gradient, reference in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        # Sums of some hundred float32 products in another order.
        np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-4)


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


def nested(wrap):
    return lambda kernel, x: jnp.sum(jnp.square(wrap(kernel, x)))


NESTINGS = {
    "jit": lambda kernel, x: jax.jit(conv)(x, kernel),
    "scan": lambda kernel, x: lax.scan(lambda c, _: (conv(c, kernel), None), x, None, length=3)[0],
    "checkpoint": lambda kernel, x: jax.checkpoint(conv)(x, kernel),
    "cond": lambda kernel, x: lax.cond(x[0, 0, 0, 0] < 9, conv, lambda x, kernel: x, x, kernel),
    "vmap": lambda kernel, x: jax.vmap(lambda row: conv(row[None], kernel))(x),
    "jit in scan in checkpoint": jax.checkpoint(
        lambda kernel, x: lax.scan(lambda c, _: (jax.jit(conv)(c, kernel), None), x, None, length=2)[0]
    ),
}


@pytest.mark.parametrize("name", NESTINGS)
def test_convolutions_are_found_in_whatever_they_are_nested(name):
    kernel, x = arrays((3, 3, 8, 8), (2, 6, 6, 8))
    function = nested(NESTINGS[name])
    value, gradient = jax.jit(jax.value_and_grad(fast_convolutions(function)))(kernel, x)
    expected, reference = jax.value_and_grad(function)(kernel, x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-3 * float(abs(reference).max()))
    assert all(map(is_plain, gradient_convolutions(fast_convolutions(function), kernel, x)))


def test_a_function_with_its_own_derivative_keeps_it():
    @jax.custom_vjp
    def own(x, kernel):
        return conv(x, kernel)

    own.defvjp(lambda x, kernel: (conv(x, kernel), None), lambda _, g: (g * 7, jnp.zeros((3, 3, 8, 8))))
    kernel, x = arrays((3, 3, 8, 8), (2, 6, 6, 8))
    gradient = jax.grad(fast_convolutions(lambda x: jnp.sum(own(x, kernel))))(x)
    np.testing.assert_array_equal(gradient, np.full_like(x, 7))


def test_without_convolutions_and_elsewhere_nothing_changes(monkeypatch):
    (x,) = arrays((4, 3))
    tree = fast_convolutions(lambda x, none: {"a": x * 2, "b": (none, x.sum())})(x, None)
    np.testing.assert_array_equal(tree["a"], x * 2)
    assert tree["b"][0] is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kernel, images = arrays((3, 3, 8, 8), (2, 6, 6, 8))
    function = nested(NESTINGS["jit"])
    found = gradient_convolutions(fast_convolutions(function), kernel, images)
    assert not all(map(is_plain, found))
