"""Settings and fixtures that every test shares."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")


@pytest.fixture
def task_identity() -> Iterator[None]:
    """Let ``Message(...)`` be created outside a Flower run."""
    from fl_plugins._flower import server_identity

    with server_identity():
        yield


@pytest.fixture(autouse=True, scope="session")
def own_compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests' compiled programs out of the user's cache."""
    os.environ["FL_PLUGINS_CACHE_DIR"] = str(tmp_path_factory.mktemp("jax-cache"))
