"""All the cores that Flower's simulation engine gave a node, for a node that is many clients.

JAX on a CPU is one device, whose threads share each operation; those of a small model are too small to
share. With a device for each core, a cohort trainer deals the *clients* to the cores.
"""

import os
import sys
from typing import Any

from .._flower_engine import in_actor, in_engine


def one_device_per_core(in_process_cores: int) -> None:
    """Give JAX a CPU device for each core of this node, as Ray or the run config says; elsewhere do nothing.

    Call it before this process computes anything with JAX: afterwards the devices stay as they are. A number
    of devices that the environment sets is kept.
    """
    cores = in_process_cores if in_process_cores and in_engine() else _cores_of_actor()
    if cores < 2 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    config: Any = jax.config
    if config.jax_num_cpu_devices >= 0:
        return
    try:
        config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        return  # the devices are there already


def _cores_of_actor() -> int:
    """Return how many cores Ray assigned to this actor; 0 where there is none."""
    if not in_actor():
        return 0
    return int(sys.modules["ray"].get_runtime_context().get_assigned_resources().get("CPU", 0))
