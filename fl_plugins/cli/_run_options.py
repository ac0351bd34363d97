"""What ``simulate`` and ``compare`` have in common: their options, and from options to a run config."""

import argparse
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_plugins.errors import ConfigError

Value = bool | int | float | str

NUM_SUPERNODES = 10

_OURS = {
    "run-dir": "say where a run is kept with --runs-dir and --name",
    "resume": "continue a run with `fl-plugins simulate --name NAME --resume`",
}
"""Run-config keys that follow from options, and from which."""

_PAIR = re.compile(r"""\s*([A-Za-z0-9_.-]+)=("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']+)(?=\s|$)""")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to run, on how many nodes, and where it is kept."""
    what = add_app_options(parser)
    what.add_argument("--app", type=Path, metavar="PATH", help="run this Flower App, not the ready-made one")
    add_place_options(parser)


def add_app_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that say what to run; return their group."""
    what = parser.add_argument_group("what to run (each one is the run-config key of the same name)")
    what.add_argument("--client", metavar="SPEC", help='trainer, e.g. "supervised(local_epochs=2)"')
    what.add_argument("--task", metavar="SPEC", help="model and data, e.g. \"digits(partition='dirichlet')\"")
    what.add_argument("--attack", metavar="SPEC", help='hostile clients, e.g. "sign_flip(num_byzantine=2)"')
    what.add_argument("--num-rounds", type=int, metavar="N", help="rounds to run")
    what.add_argument(
        "--virtual-clients",
        type=int,
        metavar="N",
        help="clients in all, which the nodes host between them (default 0: every node is one client)",
    )
    what.add_argument("--seed", type=int, metavar="N", help="seed of everything that is drawn")
    what.add_argument(
        "--run-config",
        action="append",
        default=[],
        metavar="'KEY=VALUE …'",
        help="further run-config keys, values as in TOML; or the path of a .toml file; may be repeated",
    )
    return what


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say on how many simulated nodes, and where a run is kept."""
    where = parser.add_argument_group("where")
    where.add_argument(
        "--num-supernodes",
        type=int,
        metavar="N",
        help=f"simulated nodes (default {NUM_SUPERNODES}; with --virtual-clients 1)",
    )
    where.add_argument(
        "--client-cpus",
        type=int,
        metavar="N",
        help="CPU cores of one node (default 1; with --virtual-clients its share of the machine)",
    )
    where.add_argument(
        "--client-gpus", type=float, metavar="X", help="GPUs that one client needs (default 0)"
    )
    where.add_argument("--name", help="the run's folder inside --runs-dir (default: strategy and time)")
    where.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")


def overrides(args: argparse.Namespace) -> dict[str, Value]:
    """Return the run-config keys that the command line gives.

    Raises
    ------
    ConfigError
        If one is given twice or not a run's to choose, or ``--run-config`` does not parse.
    """
    options = {
        key: getattr(args, key.replace("-", "_"), None)
        for key in ("strategy", "client", "task", "attack", "num-rounds", "seed", "virtual-clients")
    }
    given: dict[str, Value] = {key: value for key, value in options.items() if value is not None}
    for key, value in parse_run_config(args.run_config).items():
        if key in given:
            raise ConfigError(f"--run-config: {key} is also given as --{key}; give it once.")
        if key in _OURS:
            raise ConfigError(
                f"--run-config: {key}={value!r}, but {key} is set by this command; {_OURS[key]}."
            )
        given[key] = value
    return given


def parse_run_config(texts: Sequence[str]) -> dict[str, Value]:
    """Read ``key=value`` pairs, or the path of a TOML file; nested tables get keys with dots.

    Unlike Flower's own reader, text that is not understood is an error.

    >>> parse_run_config(["num-rounds=3 resume=true", "stop='target(value=0.9)'"])
    {'num-rounds': 3, 'resume': True, 'stop': 'target(value=0.9)'}

    Raises
    ------
    ConfigError
        If a text does not parse, a value is no bool, int, float or string, or a key comes twice.
    """
    pairs: list[tuple[str, Any]] = []
    for text in texts:
        pairs += _from_file(Path(text)) if text.endswith(".toml") else _from_text(text)
    config: dict[str, Value] = {}
    for key, value in pairs:
        if key in config:
            raise ConfigError(f"--run-config: {key} is given twice; give it once.")
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"--run-config: {key}={value!r}, but a value is a bool, int, float or string.")
        config[key] = value
    return config


def check_keys(given: Iterable[str], known: Mapping[str, Value], *, where: str) -> None:
    """Refuse run-config keys that the app does not declare, naming the nearest one that it does.

    Raises
    ------
    ConfigError
        If there is one.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}? It" if near else "it"
            raise ConfigError(
                f"run config: {key} is not a key of {where}; {hint} declares {', '.join(known) or 'none'}."
            )


def declared_config(app_dir: Path) -> dict[str, Value]:
    """Return the run config that an app's ``pyproject.toml`` declares.

    Raises
    ------
    ConfigError
        If there is no such file, or no Flower App in it.
    """
    path = app_dir / "pyproject.toml"
    try:
        app = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        return dict(_flatten(app.get("config", {})))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"--app {app_dir}: no [tool.flwr.app] in {path} ({type(error).__name__}: {error}); give the "
            "folder of a Flower App."
        ) from None


def _from_text(text: str) -> list[tuple[str, Any]]:
    """Read ``key=value`` pairs."""
    pairs, position = [], 0
    while text[position:].strip():
        match = _PAIR.match(text, position)
        value = _read_value(match[2]) if match else None
        if match is None or value is None:
            raise ConfigError(
                f"--run-config: cannot read {text[position:].strip()!r}; write KEY=VALUE pairs with spaces "
                "between them, a value being true, false, a number or a quoted string, as in "
                "'num-rounds=3 task=\"digits\"'."
            )
        pairs.append((match[1], value))
        position = match.end()
    return pairs


def _read_value(text: str) -> Any:
    """Return one TOML value, or ``None`` if it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None


def _from_file(path: Path) -> list[tuple[str, Any]]:
    """Read a TOML file."""
    try:
        return list(_flatten(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--run-config: cannot read {path}: {error}") from None


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested tables as keys with dots."""
    pairs = []
    for key, value in table.items():
        nested = isinstance(value, dict)
        pairs += _flatten(value, f"{prefix}{key}.") if nested else [(prefix + key, value)]
    return pairs
