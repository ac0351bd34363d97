"""The folder of the ready-made app, written anew for a run: works from an installed wheel, with no checkout.

Its ``pyproject.toml`` names components of the installed packages and declares every run-config key with its
default; a Flower App needs no code of its own.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from fl_plugins import __version__
from fl_plugins.apps.config import RunConfig

Value = bool | int | float | str

SERVER_APP = "fl_plugins.apps.server_app:app"
CLIENT_APP = "fl_plugins.apps.client_app:app"


def write_app(folder: Path) -> Path:
    """Write the ready-made app into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Mapping[str, Value]] = {
        "project": {
            "name": "fl-plugins-app",
            "version": _numeric(__version__),
            "description": "The ready-made app of fl-plugins",
            "license": "Apache-2.0",
        },
        "tool.flwr.app": {"publisher": "fl-plugins"},
        "tool.flwr.app.components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
        "tool.flwr.app.config": RunConfig.defaults(),
    }
    (folder / "pyproject.toml").write_text(to_toml(tables), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    return folder


def to_toml(tables: Mapping[str, Mapping[str, Value]]) -> str:
    """Return flat tables as TOML; the text of every value reads back as that value.

    >>> print(to_toml({"run": {"name": "a", "rounds": 3, "scale": 1e3, "resume": False}}))
    [run]
    name = "a"
    rounds = 3
    scale = 1000.0
    resume = false
    <BLANKLINE>
    """
    blocks = []
    for name, table in tables.items():
        lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items()]
        blocks.append("\n".join([f"[{name}]", *lines, ""]))
    return "\n".join(blocks)


def _key(key: str) -> str:
    """Return a key, quoted if it is not bare."""
    bare = key.replace("-", "").replace("_", "")
    return key if bare.isascii() and bare.isalnum() else _value(key)


def _value(value: Value) -> str:
    """Return one value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"{value:f}"
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    plain = (escapes.get(c, c if c.isprintable() or ord(c) > 0x9F else f"\\u{ord(c):04x}") for c in value)
    return f'"{"".join(plain)}"'


def _numeric(version: str) -> str:
    """Return a version that Flower accepts as an app's: the numbers only."""
    return version.split("+")[0].split(".dev")[0]
