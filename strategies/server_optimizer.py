"""An optax transformation applied at the server to the aggregated update (Reddi et al. 2021, Algorithm 2).

The *pseudo-gradient* is minus the aggregated update. ``sgd(learning_rate=1.0, momentum=0.9)`` is FedAvgM,
``adam`` FedAdam, ``yogi`` FedYogi, ``adagrad`` FedAdagrad. Only trainable arrays go through it: where a model
has a collection ``params/...``, everything beside it (``batch_stats/...``, ``state/...``) takes the
aggregated value as it is, because momentum would push a variance below zero.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_plugins.aggregation.core import Aggregate
from fl_plugins.errors import ConfigTypeError
from fl_plugins.pytrees import flatten_named, unflatten_named
from fl_plugins.records import Layout
from fl_plugins.training import NamedArrays

if TYPE_CHECKING:
    import optax


class ServerOptimizer:
    """Holds the transformation and its state; the state is created by the first update.

    Computes in the dtype of each array (float16 and bfloat16 in float32).
    """

    def __init__(self, transformation: "optax.GradientTransformation") -> None:
        methods = [getattr(transformation, name, None) for name in ("init", "update")]
        if not all(callable(method) for method in methods):
            raise ConfigTypeError(
                f"strategy: server_optimizer={transformation!r} is no optax GradientTransformation; give "
                "one, for example optax.adam(0.01), or in a spec adam(learning_rate=0.01)."
            )
        self._transformation = transformation
        self._state: Any = None

    def step(self, parameters: NamedArrays, update: NamedArrays) -> NamedArrays:
        """Return the new parameters for float arrays ``parameters`` and their aggregated ``update``."""
        import jax
        import optax

        trained = _trained(parameters)
        with jax.enable_x64(True):
            if self._state is None:
                self._state = self._transformation.init(trained)
            # NumPy's minus makes a scalar of an array without axes, which some transformations (yogi) refuse.
            pseudo_gradient = {key: np.asarray(-_wide(update[key])) for key in trained}
            steps, self._state = self._transformation.update(pseudo_gradient, self._state, trained)
            stepped = optax.apply_updates(trained, steps)
        carried = {
            key: _wide(parameters[key]) + _wide(update[key]) for key in parameters.keys() - trained.keys()
        }
        return {key: np.asarray(stepped[key] if key in trained else carried[key]) for key in parameters}

    def fingerprint(self) -> str:
        """Return a hash of what the transformation does to a fixed sequence of gradients.

        An optax transformation is a pair of closures that cannot be compared; two with other
        hyperparameters behave otherwise.
        """
        probe = {"probe": np.linspace(-1.0, 2.0, 7)}
        optimizer = ServerOptimizer(self._transformation)
        for scale in (1.0, -0.5, 2.0):
            probe = optimizer.step(probe, {key: scale * np.cos(value) for key, value in probe.items()})
        return hashlib.sha256(np.concatenate(list(probe.values())).tobytes()).hexdigest()[:16]

    def state(self) -> NamedArrays:
        """Return the optimizer state as named arrays; empty before the first step."""
        return {} if self._state is None else flatten_named(self._state)

    def restore(self, parameters: NamedArrays, state: NamedArrays) -> None:
        """Take up a state that :meth:`state` returned for a model like ``parameters``.

        Raises
        ------
        StructureError
            If it belongs to another model or optimizer.
        """
        import jax

        if not state:
            self._state = None
            return
        with jax.enable_x64(True):
            self._state = unflatten_named(state, self._transformation.init(_trained(parameters)))


def _trained(parameters: NamedArrays) -> NamedArrays:
    """Return the arrays that gradients train."""
    return {key: _wide(parameters[key]) for key in Layout.of(parameters).trained_keys}


def _wide(array: Any) -> Any:
    """Return ``array`` in float64 if it is float64, else in float32."""
    return np.asarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)


def step(
    layout: Layout, base: NamedArrays, aggregate: Aggregate, *, optimizer: ServerOptimizer | None
) -> NamedArrays:
    """Return the new floating-point parameters: ``base`` moved by the aggregated update, or by the optimizer.

    Raises
    ------
    DivergenceError
        If they are not finite.
    """
    update = layout.split(aggregate.value)
    with np.errstate(over="ignore", invalid="ignore"):
        if optimizer is not None:
            moved = optimizer.step(floats_of(base), update)
        elif aggregate.state or not aggregate.value.flags.writeable:  # it may be what a rule remembers
            moved = {key: base[key] + update[key] for key in update}
        else:
            moved = {key: np.add(base[key], update[key], out=update[key]) for key in update}
    return layout.cast(moved, copy=False)


def floats_of(parameters: NamedArrays) -> NamedArrays:
    """Return the floating-point arrays of ``parameters``."""
    return {key: parameters[key] for key in Layout.of(parameters).float_keys}
