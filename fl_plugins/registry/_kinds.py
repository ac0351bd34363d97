"""The kinds of plugins, their entry-point groups, and the rules for names."""

import re
from dataclasses import dataclass
from enum import StrEnum

from fl_plugins.errors import ConfigError

GROUP_PREFIX = "fl_plugins."
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Kind(StrEnum):
    """What a plugin is; ``group`` is the entry-point group that announces it."""

    STRATEGY = "strategy"
    AGGREGATOR = "aggregator"
    PREAGGREGATOR = "preaggregator"
    CLIENT = "client"
    TASK = "task"
    ATTACK = "attack"
    OPTIMIZER = "optimizer"
    MOD = "mod"
    STOPPER = "stopper"
    CODEC = "codec"
    REPORTER = "reporter"

    @property
    def group(self) -> str:
        """Return the entry-point group of this kind.

        >>> Kind.STRATEGY.group, Kind.TASK.group
        ('fl_plugins.strategies', 'fl_plugins.tasks')
        """
        plural = "strategies" if self is Kind.STRATEGY else f"{self.value}s"
        return GROUP_PREFIX + plural


@dataclass(frozen=True)
class PluginKind:
    """Marks a factory's parameter as a plugin: ``Annotated[Optimizer, PluginKind(Kind.OPTIMIZER)]``.

    The text of a spec may then give it as a nested call, ``optimizer=sgd(momentum=0.9)``. What is handed to
    the factory depends on the annotated type: ``str`` takes the checked spec's canonical text and
    :class:`fl_plugins.spec.Spec` the checked spec, both for the factory to build later; any other type
    takes the plugin itself. Works inside unions, ``tuple[...]``, ``list[...]`` and on ``*args``.
    """

    kind: Kind


def normalize_name(name: str) -> str:
    """Return ``name`` with underscores for hyphens.

    >>> normalize_name("trimmed-mean")
    'trimmed_mean'
    """
    return name.replace("-", "_")


def normalize_owner(owner: str) -> str:
    """Return a distribution's or module's name as PEP 503 compares it.

    >>> normalize_owner("My_Dist")
    'my-dist'
    """
    return re.sub(r"[-_.]+", "-", owner).lower()


def split_qualified(name: str) -> tuple[str | None, str]:
    """Split ``"dist:name"`` into owner (``None`` if there is none) and name, both normalized.

    >>> split_qualified("My_Dist:trimmed-mean"), split_qualified("krum")
    (('my-dist', 'trimmed_mean'), (None, 'krum'))
    """
    owner, colon, bare = name.strip().rpartition(":")
    return (normalize_owner(owner) if colon else None), normalize_name(bare)


def check_name(kind: Kind, name: str) -> str:
    """Return ``name`` if it is snake_case.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"register: {kind.value} name {name!r} is not snake_case; use lower-case letters, digits and "
            "underscores, beginning with a letter."
        )
    return name
