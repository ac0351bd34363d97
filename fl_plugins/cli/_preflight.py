"""What can be known of a run of the ready-made app before a process is started."""

from collections.abc import Mapping
from typing import Any

from fl_plugins.aggregation.core import Aggregator, CohortRule
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.stack import client_stack
from fl_plugins.errors import ConfigError, PreconditionError
from fl_plugins.registry import Kind, load_modules
from fl_plugins.spec import build

from ._run_options import Value


def check_run(run_config: Mapping[str, Value], *, num_supernodes: int) -> None:
    """Build every plugin that the app would build, and ask whether there are nodes enough.

    Raises
    ------
    FLPluginsError
        With what is wrong.
    """
    config = RunConfig.from_run_config(run_config)
    load_modules(config.plugins)
    strategy = build(Kind.STRATEGY, config.strategy)
    if config.stop.strip():
        build(Kind.STOPPER, config.stop)
    if config.virtual_clients and num_supernodes > config.virtual_clients:
        raise ConfigError(
            f"simulate: num_supernodes={num_supernodes}, but virtual-clients={config.virtual_clients} leaves "
            "some of them without any; give fewer --num-supernodes, or leave it out."
        )
    check_cohorts(
        strategy,
        spec=config.strategy,
        num_supernodes=config.virtual_clients or num_supernodes,
        option="--virtual-clients" if config.virtual_clients else "--num-supernodes",
        phases=("train", "evaluate") if config.client_evaluation else ("train",),
    )
    attack = client_stack(config).attack
    clients = config.virtual_clients or num_supernodes
    hostile = getattr(attack, "num_byzantine", 0)
    if hostile > clients:
        raise ConfigError(
            f"simulate: attack={config.attack} makes {hostile} clients hostile, but there are {clients}; "
            "lower its num_byzantine, or give more clients."
        )


def check_cohorts(
    strategy: Any,
    *,
    spec: str,
    num_supernodes: int,
    phases: tuple[str, ...],
    option: str = "--num-supernodes",
) -> None:
    """Refuse clients so few that a round would wait for more, or that the rule cannot work with.

    A strategy that is not built like ours does not say what it needs: nothing is checked.

    Raises
    ------
    ConfigError
        If a cohort needs more nodes than there are.
    PreconditionError
        If the rule needs more updates than a cohort gives.
    """
    name, what = option[2:].replace("-", "_"), "clients" if "clients" in option else "nodes"
    settings = getattr(strategy, "settings", None)
    cohort_size = getattr(settings, "cohort_size", None)
    if not callable(cohort_size):
        return
    sizes = {phase: cohort_size(phase, num_supernodes) for phase in phases}
    for phase, size in sizes.items():
        needed = max(size, getattr(settings, "min_available_nodes", 1))
        if size > 0 and num_supernodes < needed:
            raise ConfigError(
                f"simulate: {name}={num_supernodes}, but {spec} waits for {needed} {what} to {phase}; "
                f"give {option} {needed} or more, or lower min_{phase}_nodes, num_{phase}_nodes or "
                "min_available_nodes in the strategy's spec."
            )
    rule = getattr(strategy, "aggregator", None)
    if sizes["train"] > 0 and isinstance(rule, Aggregator):
        try:
            rule = rule.for_cohort(sizes["train"]) if isinstance(rule, CohortRule) else rule
            rule.check(sizes["train"])
        except PreconditionError as error:
            raise PreconditionError(
                f"simulate: {name}={num_supernodes} gives cohorts of {sizes['train']}. {error} More "
                f"{what} come with {option}."
            ) from None
