"""Flax modules as pure :class:`~fl_plugins.training.Model` pairs.

A hand-written pair needs no adapter: construct ``Model(init=..., apply=...)``. The adapters sort a module's
variables into collections:

=============  ============================================  =======================
collection     what is in it                                 federated as
=============  ============================================  =======================
params         ``nnx.Param``; Linen's ``params``             trained
batch_stats    ``nnx.BatchStat``; Linen's ``batch_stats``    carried along
state          every other ``nnx.Variable``                  carried along
(none)         NNX RNG state, intermediates                  never leaves the client
=============  ============================================  =======================

Linen's other collections keep their own names.

Both adapters give the module's convolutions gradients that are fast inside loops on a CPU, see
:mod:`clients.fast_convolutions`; the module need not be written for it.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from fl_plugins.errors import ConfigError
from fl_plugins.training import Model, PyTree

from .fast_convolutions import fast_convolutions

if TYPE_CHECKING:
    from flax import linen, nnx


def nnx_model(factory: "Callable[[nnx.Rngs], nnx.Module]") -> Model:
    """Return the model of the NNX module that ``factory(rngs)`` builds.

    ``module(x)`` is called in train mode (``module.train()``: dropout on, BatchNorm over the batch) or in
    evaluation mode (``module.eval()``). The RNG streams that the module holds are rebuilt from ``key`` at
    every call of ``apply``, one key per stream.
    """
    from flax import nnx

    def split(module: Any) -> Any:
        return nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, nnx.Intermediate, ...)

    @functools.cache
    def structure() -> Any:
        return split(nnx.eval_shape(lambda: factory(nnx.Rngs(0))))

    def init(key: jax.Array) -> dict[str, PyTree]:
        _, params, batch_stats, _, _, state = split(factory(nnx.Rngs(key)))
        return _collections(params=params, batch_stats=batch_stats, state=state)

    def run(
        train: bool, variables: Mapping[str, PyTree], x: Any, key: jax.Array | None
    ) -> tuple[Any, dict[str, PyTree]]:
        graph, params, batch_stats, rng_state, _, state = structure()
        module = nnx.merge(
            graph,
            _filled(params, variables["params"]),
            _filled(batch_stats, variables.get("batch_stats", {})),
            _keyed(rng_state, jax.random.key(0) if key is None else key),
            _filled(state, variables.get("state", {})),
        )
        if train:
            module.train()
        else:
            module.eval()
        outputs = module(x)
        if not train:
            return outputs, {name: tree for name, tree in variables.items() if name != "params"}
        _, _, batch_stats, _, _, state = split(module)
        return outputs, _collections(batch_stats=batch_stats, state=state)

    return Model(init=init, apply=_with_fast_convolutions(run))


def linen_model(module: "linen.Module", sample_input: Any) -> Model:
    """Return the model of a Linen module, initialised on ``sample_input`` of shape ``(1, ...)``.

    The module's ``__call__`` is told the mode by whichever of the keywords ``train``, ``training`` or
    ``deterministic`` it has. The RNG streams are ``params`` at initialisation and ``dropout`` in training.
    """
    mode = _mode_keyword(module)
    pure: Any = module

    def init(key: jax.Array) -> dict[str, PyTree]:
        params_key, dropout_key = jax.random.split(key)
        return dict(pure.init({"params": params_key, "dropout": dropout_key}, sample_input, **mode(False)))

    def run(
        train: bool, variables: Mapping[str, PyTree], x: Any, key: jax.Array | None
    ) -> tuple[Any, dict[str, PyTree]]:
        state = {name: tree for name, tree in variables.items() if name != "params"}
        if not train:
            return pure.apply(variables, x, **mode(False)), state
        outputs, new_state = pure.apply(
            variables, x, **mode(True), rngs={"dropout": key}, mutable=list(state)
        )
        return outputs, {**state, **new_state}

    return Model(init=init, apply=_with_fast_convolutions(run))


def _with_fast_convolutions(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run(train, variables, x, key)`` as a :class:`Model`'s ``apply``."""

    def apply(
        variables: Mapping[str, PyTree], x: Any, *, train: bool, key: jax.Array | None
    ) -> tuple[Any, dict[str, PyTree]]:
        result: tuple[Any, dict[str, PyTree]] = fast_convolutions(functools.partial(run, train))(
            variables, x, key
        )
        return result

    return apply


def _mode_keyword(module: Any) -> Callable[[bool], dict[str, bool]]:
    """Return the keyword arguments that tell ``module.__call__`` whether it trains."""
    parameters = inspect.signature(module.__call__).parameters
    for name in ("train", "training"):
        if name in parameters:
            return lambda train: {name: train}
    if "deterministic" in parameters:
        return lambda train: {"deterministic": not train}
    return lambda train: {}  # noqa: ARG005


def _collections(**states: Any) -> dict[str, PyTree]:
    """Return each NNX state as a nested dict with string keys; empty ones are left out."""
    return {name: tree for name, state in states.items() if (tree := _nested(state))}


def _nested(state: Any) -> dict[str, Any]:
    """Return an NNX state as a nested dict of arrays; list indices become strings."""
    tree: dict[str, Any] = {}
    for path, variable in _leaves(state):
        *parents, name = map(str, path)
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        if name in branch:
            raise ConfigError(
                f"model: the path {'/'.join(map(str, path))!r} occurs twice once list indices are text; "
                "rename one of the two attributes."
            )
        branch[name] = variable.get_value()
    return tree


def _filled(state: Any, tree: Mapping[str, Any]) -> Any:
    """Return ``state`` with the arrays of ``tree``, the inverse of :func:`_nested`."""

    def value(path: tuple[Any, ...], variable: Any) -> Any:
        return variable.replace(functools.reduce(lambda branch, part: branch[str(part)], path, tree))

    return _map(state, value)


def _keyed(state: Any, key: jax.Array) -> Any:
    """Return RNG ``state`` with one new key per stream and every counter at zero."""
    from flax import nnx

    numbers = {path: number for number, (path, _) in enumerate(_leaves(state))}

    def value(path: tuple[Any, ...], variable: Any) -> Any:
        abstract = variable.get_value()
        if isinstance(variable, nnx.RngKey):
            stream = jax.random.fold_in(key, numbers[path])
            return variable.replace(jax.random.split(stream, abstract.shape) if abstract.shape else stream)
        return variable.replace(jax.numpy.zeros(abstract.shape, abstract.dtype))

    return _map(state, value)


def _leaves(state: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Return the paths and variables of an NNX state."""
    from flax import nnx

    return list(nnx.to_flat_state(state))


def _map(state: Any, function: Callable[[tuple[Any, ...], Any], Any]) -> Any:
    """Return ``state`` with ``function(path, variable)`` in every variable's place."""
    from flax import nnx

    return nnx.map_state(function, state)
