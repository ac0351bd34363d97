"""What a node's operator demands before the node's data are touched; the server cannot override it.

A policy is a TOML file on the node's own disk, named in the node's own config (``--node-config
'policy="/etc/fl/policy.toml"'``), never in a run config::

    tasks = ["heart_disease"]        # the only tasks that this node trains; without it, any
    min_cohort = 3                   # refuse an exchange that fewer clients take part in
    max_rounds = 200                 # training messages that this node answers, over all runs, ever
    dataset = "/srv/heart.csv"       # where the task finds this node's data
    fab_hashes = ["9f86d081..."]     # the only app bundles that may be started here (SHA-256)
    state = "policy-state.json"      # where rounds are counted; beside the policy by default
    roster = "roster.toml"           # the other nodes' public identities, for secure aggregation

    [layers.secure_aggregation]      # what this node must do itself: it knows that it is done
    tier = "malicious"

    [promises.central_dp]            # what the server must say that it does: a node cannot see whether it is
    unit = "client"
    min_noise_multiplier = 1.0

A task, layer or promise of another distribution is named ``owner:name``, as in a spec; the bare name is never
met by it. In a demand, ``name = value`` wants that very value among what is announced, ``min_name`` and
``max_name`` a number that is no smaller, or no larger; what is not announced meets none.
"""

import fcntl
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from . import wire
from .checks import check_int
from .errors import ConfigError, ConfigTypeError, PolicyError, SpecError
from .spec import Spec, parse

POLICY = "policy"
"""Key of the node's own config: the path of its policy file."""

_OWN = "fl-plugins"
"""Our distribution, whose plugins have no need of an owner in a policy."""

_INCLUDED = {"distributed_dp": "secure_aggregation"}
"""A layer that is another one and more: it announces all that the other does, and meets demands for it."""

Demand = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, kw_only=True)
class NodePolicy:
    """What one node demands; the module's docstring explains every field.

    Guarantees
    ----------
    A train or evaluate message that :meth:`check` lets through announces every demanded layer and promise,
    for a cohort that is large enough and a task that is allowed. Demands on ``layers`` are kept by this node
    itself, those on ``promises`` and ``min_cohort`` are only as true as the server.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a field or a demand is not one that can be checked.
    """

    path: Path
    tasks: tuple[str, ...] = ()
    min_cohort: int = 1
    max_rounds: int | None = None
    dataset: str | None = None
    fab_hashes: tuple[str, ...] = ()
    state: Path | None = None
    roster: Path | None = None
    layers: Mapping[str, Demand] = field(default_factory=dict)
    promises: Mapping[str, Demand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_int(self._owner, "min_cohort", self.min_cohort, minimum=1)
        if self.max_rounds is not None:
            check_int(self._owner, "max_rounds", self.max_rounds, minimum=1)
        for digest in self.fab_hashes:
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ConfigError(
                    f"{self._owner}: fab_hashes has {digest!r}, but a hash is 64 lower-case hexadecimal "
                    "digits; `flwr build` prints it, and `sha256sum` of the .fab file gives it."
                )

    @property
    def _owner(self) -> str:
        """Return how messages name this policy."""
        return f"policy {self.path.name}"

    @classmethod
    def load(cls, path: str | Path) -> "NodePolicy":
        """Read a policy file; paths in it are relative to its folder.

        Raises
        ------
        ConfigError, ConfigTypeError
            If it cannot be read, is no TOML, or says something that is not understood: a policy is never
            taken in part.
        """
        path = Path(path)
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"policy {path}: cannot be read ({error}); mend the file.") from None
        known = {field.name for field in fields(cls)} - {"path"}
        for key in given.keys() - known:
            close = get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}."
            raise ConfigError(f"policy {path.name}: unknown key {key!r}{hint}")
        read: dict[str, Any] = {"path": path}
        for key, value in given.items():
            read[key] = _READERS[key](path, key, value)
        return cls(**read)

    def check(self, config: Mapping[str, Any], *, task: str) -> None:
        """Refuse a train or evaluate message that asks for less protection than this node demands.

        Parameters
        ----------
        config : Mapping
            The message's ``ConfigRecord``.
        task : str
            Spec of the task in the run config.

        Raises
        ------
        PolicyError
            With what is missing; nothing has been read or trained then.
        """
        spec = parse(task)
        if self.tasks and not any(_names(wanted, spec) for wanted in self.tasks):
            raise PolicyError(
                f"{self._owner}: task {_full_name(spec)!r} is not allowed on this node; it runs "
                f"{', '.join(self.tasks)}."
            )
        cohort = config.get(wire.COHORT_SIZE, 0)
        if self.min_cohort > 1 and not (isinstance(cohort, int) and cohort >= self.min_cohort):
            raise PolicyError(
                f"{self._owner}: the exchange has {cohort} clients, but this node takes part only with "
                f"min_cohort={self.min_cohort}; sample more clients."
            )
        for kind, key, demands in (
            ("layer", wire.LAYERS, self.layers),
            ("promise", wire.PROMISES, self.promises),
        ):
            announced = announcement(config, key)
            for wanted, demand in demands.items():
                self._require(kind, wanted, demand, [spec for spec in announced if _names(wanted, spec)])

    def own_task(self, task: str) -> str:
        """Return the task's spec with this node's ``dataset`` as its ``path``.

        Raises
        ------
        PolicyError
            If the run says where the data are: that is for the node's operator to say.
        """
        if self.dataset is None:
            return task
        spec = parse(task)
        if "path" in dict(spec.kwargs):
            raise PolicyError(
                f"{self._owner}: the run's task says path, but this node's operator says where its data are; "
                "leave path out."
            )
        own = (*spec.kwargs, ("path", str(self.path.parent / self.dataset)))
        return str(Spec(spec.name, spec.owner, spec.args, own))

    def _require(self, kind: str, name: str, demand: Demand, announced: Sequence[Spec]) -> None:
        """Refuse unless one of what is announced under that name meets the demand."""
        unmet = [_unmet(demand, dict(spec.kwargs)) for spec in announced]
        if [] in unmet:
            return
        missing = "; ".join(unmet[0]) if unmet else "the message announces none"
        raise PolicyError(
            f"{self._owner}: this node demands the {kind} {name} ({missing}); run a strategy that has it."
        )

    def count_round(self) -> None:
        """Count one training message, on disk before anything is trained.

        Raises
        ------
        PolicyError
            If this node has answered ``max_rounds`` of them; also if the count cannot be read or written.
        """
        if self.max_rounds is None:
            return
        path = self.state or self.path.with_suffix(".state.json")
        try:
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                text = file.read()
                served = int(json.loads(text)["rounds"]) if text else 0
                if served < self.max_rounds:
                    # Over the old count, which is cut only then: the file is never empty, which would mean 0.
                    file.seek(0)
                    file.write(json.dumps({"rounds": served + 1}).encode())
                    file.truncate()
                    os.fsync(file.fileno())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PolicyError(f"{self._owner}: rounds cannot be counted in {path.name}: {error}.") from None
        if served >= self.max_rounds:
            raise PolicyError(
                f"{self._owner}: this node has answered {served} training messages, its max_rounds="
                f"{self.max_rounds}; its operator may raise it."
            )


def announcement(config: Mapping[str, Any], key: str) -> list[Spec]:
    """Return the specs under ``wire.LAYERS`` or ``wire.PROMISES``.

    Raises
    ------
    PolicyError
        If it is no list of specs with named arguments only.
    """
    texts = config.get(key, [])
    try:
        if not isinstance(texts, list):
            raise SpecError("it is no list")
        specs = [parse(text) for text in texts]
    except (SpecError, TypeError, AttributeError) as error:
        raise PolicyError(f"{key}: {error}; install the same fl-plugins version everywhere.") from None
    for spec in specs:
        if spec.args:
            raise PolicyError(f"{key}: {spec} has unnamed arguments; announce name=value only.")
    return specs


def _full_name(spec: Spec) -> str:
    """Return the name as it is written, with its owner if it has one."""
    return spec.name if spec.owner is None else f"{spec.owner}:{spec.name}"


def _names(wanted: str, spec: Spec) -> bool:
    """Whether a spec is of the plugin that a policy names.

    Another owner's plugin of that name is not: it is anybody's code that happens to be installed.
    """
    ours = spec.owner in (None, _OWN) and wanted in (spec.name, _INCLUDED.get(spec.name))
    return ours or wanted == _full_name(spec)


def _unmet(demand: Demand, announced: Mapping[str, object]) -> list[str]:
    """Return what of a demand is not met."""
    unmet = []
    for key, wanted in demand.items():
        bound, name = _bound(key)
        value = announced.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if bound == "min":
            met, rule = number and value >= wanted, f"{name} >= {wanted}"  # type: ignore[operator]
        elif bound == "max":
            met, rule = number and value <= wanted, f"{name} <= {wanted}"  # type: ignore[operator]
        else:
            met, rule = type(value) is type(wanted) and value == wanted, f"{name} = {wanted!r}"
        if not met:
            unmet.append(f"{rule}, announced is {value!r}")
    return unmet


def _bound(key: str) -> tuple[str | None, str]:
    """Split ``min_x`` into the bound and the parameter."""
    bound, _, name = key.partition("_")
    return (bound, name) if bound in ("min", "max") and name else (None, key)


def _texts(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """Read a list of texts."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ConfigTypeError(f'policy {path.name}: {key}={value!r}; give a list of texts, ["digits"].')
    return tuple(value)


def _plain(_: Path, __: str, value: Any) -> Any:
    """Take a value as it is; the policy checks it."""
    return value


def _text(path: Path, key: str, value: Any) -> str:
    """Read a text."""
    if not isinstance(value, str) or not value:
        raise ConfigTypeError(f"policy {path.name}: {key}={value!r}; give a text.")
    return value


def _path(path: Path, key: str, value: Any) -> Path:
    """Read a path relative to the policy's folder."""
    return path.parent / _text(path, key, value)


def _demands(path: Path, key: str, value: Any) -> dict[str, Demand]:
    """Read the tables below ``layers`` or ``promises``."""
    if not isinstance(value, dict) or not all(isinstance(demand, dict) for demand in value.values()):
        raise ConfigTypeError(f"policy {path.name}: {key}={value!r}; give tables, [{key}.name].")
    for name, demand in value.items():
        for parameter, wanted in demand.items():
            bound, _ = _bound(parameter)
            number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
            if not isinstance(wanted, bool | int | float | str) or (bound and not number):
                rule = "a number" if bound else "a number, a text, true or false"
                raise ConfigTypeError(
                    f"policy {path.name}: [{key}.{name}] {parameter}={wanted!r}, but it is {rule}."
                )
    return value


_READERS = {
    "tasks": _texts,
    "min_cohort": _plain,
    "max_rounds": _plain,
    "dataset": _text,
    "fab_hashes": _texts,
    "state": _path,
    "roster": _path,
    "layers": _demands,
    "promises": _demands,
}
