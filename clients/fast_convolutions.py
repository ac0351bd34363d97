"""Give a function's convolutions gradients that are fast inside loops on a CPU, without rewriting it.

The function is traced, and every ``conv_general_dilated`` in its jaxpr that :mod:`clients.layers` has a fast
form of is evaluated as that, in whatever nesting of ``jit``, ``scan``, ``cond``, ``while`` or ``checkpoint``
it stands. Functions with derivatives of their own (``custom_jvp``, ``custom_vjp``) are left alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from .layers import conv_general_dilated

_OWN_DERIVATIVES = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


def fast_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` of pytrees of arrays with the same values and gradients, the latter fast.

    On GPUs and TPUs it is ``function`` itself. :func:`clients.models.nnx_model` and
    :func:`clients.models.linen_model` apply it to every module; a hand-written ``Model`` may do so too.
    """

    def transformed(*arguments: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*arguments)
        jaxpr, like = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _evaluate(jaxpr, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(like), results)

    return transformed


def _evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr, with the fast form in place of its convolutions."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        results = _apply(equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Return the results of one equation."""
    primitive, parameters = equation.primitive, equation.params
    if primitive.name == "conv_general_dilated":
        # As JAX writes it in a jaxpr: the output's own dtype, which is the default.
        if parameters["preferred_element_type"] == operands[0].dtype:
            parameters = {**parameters, "preferred_element_type": None}
        return [conv_general_dilated(*operands, **parameters)]
    if primitive.name not in _OWN_DERIVATIVES:
        parameters = {name: _transformed(value) for name, value in parameters.items()}
    bound = primitive.get_bind_params(parameters)
    # Early JAX 0.10 gives the functions apart.
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*functions, *operands, **parameters)
    return results if primitive.multiple_results else [results]


def _transformed(parameter: Any) -> Any:
    """Return an equation's parameter with the convolutions of the jaxprs in it replaced."""
    if type(parameter) is tuple:  # the branches of a cond; JAX has named tuples too
        return tuple(map(_transformed, parameter))
    if isinstance(parameter, core.Jaxpr) and not parameter.constvars:
        return _transformed(core.ClosedJaxpr(parameter, [])).jaxpr
    if not isinstance(parameter, core.ClosedJaxpr) or not _has_convolution(parameter.jaxpr):
        return parameter
    return jax.make_jaxpr(lambda *arguments: _evaluate(parameter, arguments))(
        *(variable.aval for variable in parameter.jaxpr.invars)
    )


def _has_convolution(jaxpr: Any) -> bool:
    """Return whether a jaxpr has a convolution, at any depth."""
    return "conv_general_dilated" in str(jaxpr)
