"""An optax transformation applied at the server to the aggregated update (Reddi et al. 2021, Algorithm 2).

The *pseudo-gradient* is minus the aggregated update. ``sgd(learning_rate=1.0, momentum=0.9)`` is FedAvgM,
``adam`` FedAdam, ``yogi`` FedYogi, ``adagrad`` FedAdagrad. Only trainable arrays go through it: running
statistics (``batch_stats/...``, ``state/...``) take the aggregated value as it is, because momentum
would push a variance below zero.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from fl_plugins.pytrees import flatten_named, unflatten_named
from fl_plugins.training import NamedArrays

if TYPE_CHECKING:
    import optax

_CARRIED = ("batch_stats/", "state/")


class ServerOptimizer:
    """Holds the transformation and its state; the state is created by the first update.

    Computes in the dtype of each array (float16 and bfloat16 in float32).
    """

    def __init__(self, transformation: "optax.GradientTransformation") -> None:
        self._transformation = transformation
        self._state: Any = None

    def step(self, parameters: NamedArrays, update: NamedArrays) -> NamedArrays:
        """Return the new parameters for float arrays ``parameters`` and their aggregated ``update``."""
        import jax
        import optax

        trained = {key: _wide(value) for key, value in parameters.items() if not key.startswith(_CARRIED)}
        with jax.enable_x64(True):
            if self._state is None:
                self._state = self._transformation.init(trained)
            pseudo_gradient = {key: -_wide(update[key]) for key in trained}
            steps, self._state = self._transformation.update(pseudo_gradient, self._state, trained)
            stepped = optax.apply_updates(trained, steps)
        moved = {key: np.asarray(value) for key, value in stepped.items()}
        return {key: moved.get(key, _wide(value) + _wide(update[key])) for key, value in parameters.items()}

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
        trained = {key: _wide(value) for key, value in parameters.items() if not key.startswith(_CARRIED)}
        with jax.enable_x64(True):
            self._state = unflatten_named(state, self._transformation.init(trained))


def _wide(array: Any) -> Any:
    """Return ``array`` in float64 if it is float64, else in float32."""
    return np.asarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)
