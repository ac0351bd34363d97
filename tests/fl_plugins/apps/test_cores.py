"""How many JAX devices a cohort node has: one for each core of its actor, or of the engine that serves it."""

import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = textwrap.dedent("""
    import sys
    import types

    cores, first, told, engine = sys.argv[1:]
    if engine:
        sys.modules["flwr.server.superlink.fleet.vce.vce_api"] = types.SimpleNamespace()
    if cores != "no Ray":
        context = types.SimpleNamespace(get_assigned_resources=lambda: {"CPU": float(cores)})
        sys.modules["ray"] = types.SimpleNamespace(
            is_initialized=lambda: True, get_runtime_context=lambda: context
        )
    import jax

    from fl_plugins.apps.cores import one_device_per_core

    if first == "computed":
        jax.numpy.zeros(1)
    one_device_per_core(int(told))
    print(len(jax.local_devices()))
""")


@pytest.mark.parametrize(
    ("cores", "first", "flags", "devices", "told", "engine"),
    [
        ("3", "", "", "3", "0", ""),
        ("1", "", "", "1", "0", ""),
        ("no Ray", "", "", "1", "0", ""),
        ("3", "computed", "", "1", "0", ""),
        ("3", "", "--xla_force_host_platform_device_count=2", "2", "0", ""),
        ("no Ray", "", "", "3", "3", "engine"),
        ("no Ray", "", "", "1", "3", ""),  # a real SuperNode, say
        ("no Ray", "", "", "1", "0", "engine"),
    ],
)
def test_a_cohort_node_has_a_device_for_each_core_it_was_given(cores, first, flags, devices, told, engine):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, cores, first, told, engine],
        env={**environment, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == [devices]
