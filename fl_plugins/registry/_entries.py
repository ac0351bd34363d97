"""Which plugins the installed distributions announce, read from their metadata without importing them."""

import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any

from ._kinds import GROUP_PREFIX, Kind, normalize_name, normalize_owner

OWN_DISTRIBUTION = "fl-plugins"
OWN_ROOT = Path(__file__).resolve().parents[2]
"""Folder in which the running copy of ``fl_plugins`` lies, with ``strategies`` and ``clients`` beside it."""

_KINDS_BY_GROUP = {kind.group: kind for kind in Kind}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One plugin that is known by name; ``target`` is ``module:attribute``."""

    kind: Kind
    name: str
    owner: str
    target: str
    distribution: Distribution | None = field(default=None, compare=False, repr=False)

    @property
    def module(self) -> str:
        """Return the module that has to be imported."""
        return self.target.partition(":")[0].strip()

    @property
    def attributes(self) -> tuple[str, ...]:
        """Return the path from the module to the object; empty if the target is not ``module:attribute``."""
        return tuple(part for part in self.target.partition(":")[2].strip().split(".") if part)

    @property
    def top_level(self) -> str:
        """Return the import package that the module belongs to."""
        return self.module.partition(".")[0]

    @property
    def qualified(self) -> str:
        """Return ``owner:name``."""
        return f"{self.owner}:{self.name}"


def entry_points() -> tuple[Entry, ...]:
    """Return every plugin announced by a distribution on ``sys.path``, ours first.

    Ours come from the ``pyproject.toml`` beside the running copy if there is one (a source tree, an editable
    installation, the inside of a FAB): that table belongs to the code that runs, installed metadata may be
    older or absent. Metadata that cannot be read is skipped: it must not hide the other distributions.
    """
    places = (place or os.getcwd() for place in sys.path)
    return _scan(tuple((place, _modified(place)) for place in places))


@lru_cache(maxsize=4)
def _scan(path: tuple[tuple[str, int], ...]) -> tuple[Entry, ...]:
    """Put together what is announced on a path: our own first, then the first distribution of each name."""
    table = own_project()
    entries = [] if table is None else list(_own_entries(table))
    seen = set() if table is None else {OWN_DISTRIBUTION}
    for place, modified in path:
        for name, announced in _announced(place, modified):
            if name not in seen:
                seen.add(name)
                entries += announced
    return tuple(dict.fromkeys(entries))


@lru_cache(maxsize=64)
def _announced(place: str, _: int) -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    """Return each distribution in one folder with its plugins: read once for every state of the folder.

    A process that is forked with all of it read need not read it again for one more folder on ``sys.path``.
    """
    found = []
    for distribution in distributions(path=[place]):
        owner = name_of(distribution)
        entries = tuple(
            Entry(
                kind=_KINDS_BY_GROUP[point.group],
                name=normalize_name(point.name),
                owner=owner or point.value.partition(":")[0].partition(".")[0],
                target=point.value,
                distribution=distribution,
            )
            for point in points_of(distribution)
            if point.group in _KINDS_BY_GROUP
        )
        found.append((normalize_owner(owner or str(id(distribution))), entries))
    return tuple(found)


def _modified(place: str) -> int:
    """Return when a folder's list of files last changed; 0 if there is none."""
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return 0


def installed_distributions() -> Iterator[Distribution]:
    """Yield every distribution once: the first of a name on ``sys.path`` is the one that is in force."""
    seen: set[str] = set()
    for distribution in distributions():
        name = normalize_owner(name_of(distribution) or str(id(distribution)))
        if name not in seen:
            seen.add(name)
            yield distribution


def name_of(distribution: Distribution) -> str | None:
    """Return the distribution's name, ``None`` if its metadata does not say."""
    try:
        return distribution.metadata["Name"] or None
    except Exception:  # a half-removed or hand-made dist-info; importlib.metadata raises what it likes
        return None


def points_of(distribution: Distribution) -> tuple[EntryPoint, ...]:
    """Return all entry points of ``distribution`` in one of our groups; none if the file cannot be read."""
    try:
        return tuple(point for point in distribution.entry_points if point.group.startswith(GROUP_PREFIX))
    except Exception:  # one malformed entry_points.txt would otherwise hide every other plugin
        return ()


def metadata_problems() -> Iterator[str]:
    """Yield what is wrong with the metadata of distributions that have, or seem to have, plugins."""
    for distribution in installed_distributions():
        owner = name_of(distribution) or "a distribution without a name"
        try:
            groups = dict.fromkeys(point.group for point in distribution.entry_points)
        except Exception as error:  # as in points_of
            yield f"{owner}: its entry_points.txt cannot be read ({type(error).__name__}: {error})"
            continue
        for group in groups:
            if group.startswith(GROUP_PREFIX) and group not in _KINDS_BY_GROUP:
                yield f"{owner}: there is no group {group!r}; the groups are {', '.join(_KINDS_BY_GROUP)}"


def own_metadata_is_stale() -> bool:
    """Whether fl-plugins is installed in place and its metadata has other plugins than ``pyproject.toml``."""
    table = own_project()
    installed = [
        d for d in installed_distributions() if normalize_owner(name_of(d) or "") == OWN_DISTRIBUTION
    ]
    if table is None or not installed:
        return False
    announced = {(point.group, point.name, point.value) for point in points_of(installed[0])}
    return announced != {
        (group, name, target)
        for group, points in table.get("entry-points", {}).items()
        if group.startswith(GROUP_PREFIX)
        for name, target in points.items()
    }


@cache
def own_project() -> Mapping[str, Any] | None:
    """Return the ``[project]`` table beside the running copy if it is ours, else ``None``."""
    project = project_table(OWN_ROOT)
    return project if project and normalize_owner(str(project.get("name"))) == OWN_DISTRIBUTION else None


def project_table(folder: Path) -> Mapping[str, Any] | None:
    """Return ``[project]`` of the ``pyproject.toml`` in ``folder``, ``None`` if there is none to read."""
    try:
        document = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    project = document.get("project")
    return project if isinstance(project, dict) else None


def _own_entries(project: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the plugins in a ``[project]`` table of ours."""
    for group, points in project.get("entry-points", {}).items():
        kind = _KINDS_BY_GROUP.get(group)
        if kind is not None:
            for name, target in points.items():
                yield Entry(kind=kind, name=normalize_name(name), owner=OWN_DISTRIBUTION, target=target)
