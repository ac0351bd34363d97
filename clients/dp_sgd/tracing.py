"""Find, in a traced loss of one example, where every parameter enters and what it is multiplied with.

The loss of *one* example is traced, never that of a batch: examples then cannot influence each other,
whatever the model does with its batch axis, and a batch is the ``vmap`` of the trace.

A parameter is *book-kept* if it is used exactly once, by a product that :mod:`.products` knows, at most
reshaped or transposed before. Its gradient for one example is then a function of two arrays that one
backward pass gives for all examples: what the parameter is multiplied with, and the derivative with respect
to the product's result. Everything else is *materialised*: differentiated example by example.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from fl_plugins.training import PyTree

from ..layers import plain_convolutions
from .convolving import convolve
from .products import Product, recognise

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr"}
"""Primitives that only call what is in this parameter: their equations are written out in place."""

_VIEWS = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy"})
"""What keeps a gradient's norm: every number of the parameter stays, once."""


@dataclass(frozen=True, eq=False)
class BookKept:
    """A parameter whose per-example gradients are never needed as such."""

    leaf: int
    equation: int
    product: Product
    views: tuple[int, ...]
    """The equations from the parameter to the product's operand, in order."""


@dataclass(frozen=True, eq=False)
class TracedLoss:
    """``loss(params, *arguments) -> (loss, extra)`` of one example as a list of equations.

    Parameters
    ----------
    book_kept, materialised
        Every parameter that is used is in one of the two; the reason for the latter is given by leaf number.
    """

    closed: core.ClosedJaxpr
    num_leaves: int
    outputs: Any
    book_kept: tuple[BookKept, ...]
    materialised: dict[int, str]

    @property
    def num_inputs(self) -> int:
        """Number of arrays in the parameters and the arguments."""
        return len(self.closed.jaxpr.invars)

    def depends_on(self, sources: Sequence[int]) -> list[bool]:
        """Return, for every array in (loss, extra), whether it depends on one of these inputs."""
        jaxpr = self.closed.jaxpr
        tainted = {jaxpr.invars[number] for number in sources}

        def is_tainted(atom: Any) -> bool:
            return not isinstance(atom, core.Literal) and atom in tainted

        for equation in jaxpr.eqns:
            if any(map(is_tainted, equation.invars)):
                tainted.update(equation.outvars)
        return [is_tainted(atom) for atom in jaxpr.outvars]

    def result_shape(self, kept: BookKept) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of the product's result."""
        aval = self.closed.jaxpr.eqns[kept.equation].outvars[0].aval
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype)  # type: ignore[no-untyped-call]

    def evaluate(
        self, leaves: Sequence[Any], arguments: PyTree, shifts: Sequence[jax.Array]
    ) -> tuple[Any, list[jax.Array]]:
        """Return (loss, extra) with ``shifts`` added to the products' results, and the products' factors."""
        taps = {kept.equation: number for number, kept in enumerate(self.book_kept)}
        factors: list[Any] = [None] * len(taps)

        def run(number: int, equation: Any, operands: list[Any]) -> Sequence[Any]:
            if equation.primitive.name == "conv_general_dilated":
                results: Sequence[Any] = [convolve(operands[0], operands[1], equation.params)]
            else:
                results = _bind(equation, operands)
            if number not in taps:
                return results
            tap = taps[number]
            factors[tap] = operands[1 - self.book_kept[tap].product.position]
            return [results[0] + shifts[tap]]

        results = _run(self.closed, [*leaves, *jax.tree.leaves(arguments)], run)
        return jax.tree.unflatten(self.outputs, results), factors

    def state_after(self, params: PyTree, arguments: PyTree) -> PyTree:
        """Return what the function returns beside the loss."""
        leaves = [*jax.tree.leaves(params), *jax.tree.leaves(arguments)]
        results = _run(self.closed, leaves, lambda _, equation, operands: _bind(equation, operands))
        return jax.tree.unflatten(self.outputs, results)[1]

    def back(self, kept: BookKept, gradient: jax.Array) -> jax.Array:
        """Return a gradient for the product's operand in the parameter's shape; the dtype stays."""
        equations = [self.closed.jaxpr.eqns[number] for number in kept.views]

        def view(leaf: jax.Array) -> jax.Array:
            for equation in equations:
                if equation.primitive.name != "convert_element_type":
                    (leaf,) = _bind(equation, [leaf])
            return leaf

        shape = self.closed.jaxpr.invars[kept.leaf].aval.shape
        like = jax.ShapeDtypeStruct(shape, gradient.dtype)  # type: ignore[no-untyped-call]
        result: jax.Array = jax.linear_transpose(view, like)(gradient)[0]
        return result


def trace_loss(function: Callable[..., Any], params: PyTree, *arguments: PyTree) -> TracedLoss:
    """Trace ``function(params, *arguments) -> (loss, extra)`` of one example."""
    with plain_convolutions():
        closed, like = jax.make_jaxpr(function, return_shape=True)(params, *arguments)
    flat = jax.make_jaxpr(lambda *values: _inlined(closed, values))(
        *(variable.aval for variable in closed.jaxpr.invars)
    )
    num_leaves = len(jax.tree.leaves(params))
    uses: dict[Any, list[int]] = defaultdict(list)
    for number, equation in enumerate(flat.jaxpr.eqns):
        for atom in equation.invars:
            if not isinstance(atom, core.Literal):
                uses[atom].append(number)
    for atom in flat.jaxpr.outvars:
        if not isinstance(atom, core.Literal):
            uses[atom].append(-1)
    book_kept, materialised = [], {}
    for leaf, variable in enumerate(flat.jaxpr.invars[:num_leaves]):
        found = _follow(flat.jaxpr, uses, leaf, variable)
        if isinstance(found, BookKept):
            book_kept.append(found)
        elif found is not None:
            materialised[leaf] = found
    return TracedLoss(flat, num_leaves, jax.tree.structure(like), tuple(book_kept), materialised)


def _follow(jaxpr: Any, uses: dict[Any, list[int]], leaf: int, variable: Any) -> BookKept | str | None:
    """Return how a parameter is used if book-keeping can do it, else the reason; None if it is not used."""
    views: list[int] = []
    if not uses[variable]:
        return None
    while True:
        if len(uses[variable]) != 1:
            return f"used {len(uses[variable])} times"
        (number,) = uses[variable]
        if number < 0:
            return "returned as it is"
        equation = jaxpr.eqns[number]
        name = equation.primitive.name
        if name not in _VIEWS or not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
            break
        views.append(number)
        (variable,) = equation.outvars
    position = equation.invars.index(variable)
    product = recognise(equation, position)
    return f"used by {name}" if product is None else BookKept(leaf, number, product, tuple(views))


def _run(
    closed: core.ClosedJaxpr,
    arguments: Sequence[Any],
    run: Callable[[int, Any, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Evaluate a jaxpr with ``run(number, equation, operands)`` for each equation."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for number, equation in enumerate(jaxpr.eqns):
        results = run(number, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inlined(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr with the equations of plain calls in place of the calls."""

    def run(_: int, equation: Any, operands: list[Any]) -> Sequence[Any]:
        name = equation.primitive.name
        if name not in _CALLS:
            return _bind(equation, operands)
        inner = equation.params[_CALLS[name]]
        return _inlined(
            inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, []), operands
        )

    return _run(closed, arguments, run)


def _bind(equation: Any, operands: list[Any]) -> Sequence[Any]:
    """Return the results of one equation."""
    primitive, parameters = equation.primitive, equation.params
    bound = primitive.get_bind_params(parameters)
    # Early JAX 0.10 gives the functions apart.
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*functions, *operands, **parameters)
    return results if primitive.multiple_results else [results]
