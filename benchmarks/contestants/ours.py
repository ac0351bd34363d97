"""The benchmark's models as a task of this project; imported by its apps (run config ``plugins``).

``fl-plugins simulate --task "simulation(model='lenet')" --run-config 'plugins="contestants.ours"'``
"""

import functools

from fl_plugins.registry import Kind, register
from fl_plugins.training import ClientData, Dataset, Model, Task

from . import workload
from .workload import Examples


def _dataset(data: Examples) -> Dataset:
    return Dataset(data.x, data.y)


@register(Kind.TASK, "simulation")
def simulation(*, model: str = "mlp", examples: int = workload.EXAMPLES) -> Task:
    """Return one of the benchmark's models and its data.

    Parameters
    ----------
    model : str
        mlp, lenet or charlm.
    examples : int
        Of each client.
    """
    import jax

    from . import jax_models

    apply = jax_models.make_apply(model, conv=jax_models.own_conv, pool=jax_models.own_pool)

    def init(_: jax.Array) -> dict[str, dict[str, jax.Array]]:
        return {"params": {k: jax.numpy.asarray(v) for k, v in workload.initial_parameters(model).items()}}

    @functools.lru_cache(maxsize=workload.NUM_CLIENTS)
    def partition(number: int) -> ClientData:
        data = _dataset(workload.client_data(model, number, count=examples))
        return ClientData(train=data, validation=Dataset(data.x[:0], data.y[:0]))

    return Task(
        name=f"simulation_{model}",
        model=Model(init=init, apply=lambda variables, x, *, train, key: (apply(variables["params"], x), {})),
        loss=jax_models.per_example_loss,
        load_partition=lambda number, _: partition(number),
        load_test=lambda: _dataset(workload.test_data(model)),
    )
