"""``fl-plugins list`` and ``fl-plugins show``: which plugins there are, and what one of them takes."""

import argparse
import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from fl_plugins.errors import PluginError, UnknownPluginError
from fl_plugins.registry import (
    Entry,
    Kind,
    Parameter,
    Plugin,
    available,
    load,
    load_modules,
    normalize_name,
    normalize_owner,
)
from fl_plugins.spec import describe

from ._text import print_table


def add_parser(subparsers: Any) -> None:
    """Add both subcommands."""
    listing = subparsers.add_parser("list", help="list the plugins that are installed")
    listing.add_argument("kind", nargs="?", choices=[kind.value for kind in Kind], help="only this kind")
    _add_plugins(listing)
    listing.set_defaults(run=run_list)
    showing = subparsers.add_parser("show", help="show the parameters and the documentation of a plugin")
    showing.add_argument("name", help="its name, such as krum or my-dist:my-rule")
    showing.add_argument("--kind", choices=[kind.value for kind in Kind], help="only this kind")
    _add_plugins(showing)
    showing.set_defaults(run=run_show)


def _add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add the option that corresponds to ``plugins`` in a run config."""
    parser.add_argument(
        "--plugins", default="", metavar="MODULES", help="modules to import first: my_app.my_krum"
    )


def run_list(arguments: argparse.Namespace) -> int:
    """Print one line per plugin; a plugin that cannot be loaded is listed with the reason."""
    load_modules(arguments.plugins)
    entries = available(Kind(arguments.kind) if arguments.kind else None)
    rows = [(entry.kind.value, entry.name, entry.owner, _summary(entry)) for entry in entries]
    print_table(("KIND", "NAME", "OWNER", "SUMMARY"), rows)
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Print everything about the plugins of that name, of every kind and owner."""
    load_modules(arguments.plugins)
    entries = _find(arguments.name, Kind(arguments.kind) if arguments.kind else None)
    failures: list[PluginError] = []
    for entry in entries:
        try:
            plugin = load(entry.kind, entry.qualified)
        except PluginError as error:
            failures.append(error)
        else:
            print("\n".join(_page(plugin)))
    if failures:
        raise failures[0]
    return 0


def _summary(entry: Entry) -> str:
    """Return the first line of a plugin's documentation, or why there is none."""
    try:
        return load(entry.kind, entry.qualified).summary
    except PluginError as error:
        return f"BROKEN: {' '.join(str(error).split())}"


def _find(name: str, kind: Kind | None) -> list[Entry]:
    """Return the entries that ``name`` (or ``owner:name``) may mean.

    Raises
    ------
    UnknownPluginError
        If there are none; names the nearest ones.
    """
    owner, _, bare = name.rpartition(":")
    entries = [
        entry
        for entry in available(kind)
        if entry.name == normalize_name(bare)
        and (not owner or normalize_owner(entry.owner) == normalize_owner(owner))
    ]
    if not entries:
        if kind is not None:
            load(kind, name)  # raises, with the nearest names
        known = sorted({entry.name for entry in available()})
        near = difflib.get_close_matches(normalize_name(bare).lower(), known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?; " if near else ""
        raise UnknownPluginError(f"no plugin is called {name!r}; {hint}available: {', '.join(known)}.")
    return entries


def _page(plugin: Plugin) -> Iterable[str]:
    """Yield the lines that describe one plugin."""
    yield f"{plugin.kind.value} {plugin.name} ({plugin.owner}, {plugin.module})"
    yield from (f"  {line}".rstrip() for line in plugin.description.splitlines())
    if plugin.paper:
        yield f"  paper: {plugin.paper}"
    if plugin.contract is not None:
        yield f"  needs: {plugin.contract.access.value}"
        yield f"  weights: {plugin.contract.weighting.value}"
    yield "  parameters:" if plugin.parameters else "  parameters: none"
    for parameter in plugin.parameters:
        name = f"*{parameter.name}" if parameter.variadic else parameter.name
        yield f"    {name}: {describe(parameter.annotation)}{_default(parameter)}"
        if parameter.doc:
            yield f"        {parameter.doc}"
    yield ""


def _default(parameter: Parameter) -> str:
    """Return what happens if a parameter is not given."""
    if parameter.default is not inspect.Parameter.empty:
        return f" = {parameter.default!r}"
    return " (required)" if parameter.required else ""
