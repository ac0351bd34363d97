"""From a name to a plugin: what is known, who owns it, and the import of exactly that one module."""

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from fl_plugins.errors import DuplicatePluginError, PluginLoadError, UnknownPluginError

from ._entries import Entry, entry_points
from ._kinds import Kind, normalize_owner, split_qualified
from ._origin import check_origin
from ._plugin import Plugin
from ._registrations import Registration, all_registered, forget_unimported, registered, same_definition

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class _Claim:
    """One owner's claim to a name: announced by an entry point, registered by a decorator, or both."""

    entry: Entry
    registration: Registration | None


def available(kind: Kind | None = None) -> list[Entry]:
    """Return every known plugin (of ``kind``) without importing any: announced ones and registered ones.

    A name with two owners appears twice. Sorted by kind, name and owner.
    """
    announced = entry_points()
    found = {(entry.kind, entry.name, normalize_owner(entry.owner)): entry for entry in reversed(announced)}
    for registration in all_registered():
        entry = _registered_entry(registration, announced)
        if not any(_is_announced_as(registration, other) for other in announced):
            found.setdefault((entry.kind, entry.name, normalize_owner(entry.owner)), entry)
    order = list(Kind)
    chosen = [entry for entry in found.values() if kind is None or entry.kind is kind]
    return sorted(chosen, key=lambda entry: (order.index(entry.kind), entry.name, entry.owner))


def load(kind: Kind, name: str) -> Plugin:
    """Import and return the plugin called ``name`` (or ``owner:name``; hyphens count as underscores).

    Raises
    ------
    UnknownPluginError
        If nobody has a plugin of that kind and name; lists the nearest names and all available ones.
    DuplicatePluginError
        If two owners have one and ``name`` does not say whose.
    ShadowedPackageError
        If a file on ``sys.path`` hides the package that the plugin's distribution installed.
    PluginLoadError
        If the plugin's module cannot be imported, or lacks the object.
    """
    kind = Kind(kind)
    owner, bare = split_qualified(name)
    announced = entry_points()
    entries = [entry for entry in announced if entry.kind is kind and entry.name == bare]
    claims = [_Claim(_registered_entry(known, announced), known) for known in registered(kind, bare)]
    claims = [claim for claim in claims if not any(_is_announced_as(claim.registration, e) for e in entries)]
    claims = [*(_Claim(entry, None) for entry in entries), *claims]
    if owner is not None:
        claims = [claim for claim in claims if normalize_owner(claim.entry.owner) == owner]
    if not claims:
        raise UnknownPluginError(_unknown(kind, name, owner))
    if len({normalize_owner(claim.entry.owner) for claim in claims}) > 1:
        raise DuplicatePluginError(_duplicate(kind, bare, claims))
    return _load_claims(kind, bare, claims)


def load_modules(modules: str | Iterable[str]) -> None:
    """Import modules so that their ``@register`` decorators run: ``"my_app.my_krum, my_app.tasks"``.

    This is the way for code inside a FAB, where entry points are invisible.

    Raises
    ------
    PluginLoadError
        If a name is not a module's, or its import fails.
    """
    names = modules.split(",") if isinstance(modules, str) else list(modules)
    for name in filter(None, (name.strip() for name in names)):
        if not _MODULE.fullmatch(name):
            raise PluginLoadError(
                f"plugins: {name!r} is not the dotted name of a module; give for example "
                "plugins = 'my_app.my_krum, my_app.my_task'."
            )
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a plugin's code may raise anything
            forget_unimported()
            raise PluginLoadError(
                f"plugins: the module {name!r} cannot be imported: {_cause(error)}; correct it, or "
                "the run config's 'plugins'."
            ) from error


def _load_claims(kind: Kind, name: str, claims: Sequence[_Claim]) -> Plugin:
    """Return the plugin of one owner; several claims must turn out to be the same definition."""
    plugins = [_load_claim(claim) for claim in claims]
    first = plugins[0]
    for claim, plugin in zip(claims[1:], plugins[1:], strict=True):
        if plugin.factory is not first.factory:
            known = claim.registration
            if known is None or not same_definition(known, first.factory):
                raise DuplicatePluginError(_duplicate(kind, name, claims))
    return first


def _load_claim(claim: _Claim) -> Plugin:
    """Return the plugin of one claim, importing its module if it is an entry point."""
    entry, registration = claim.entry, claim.registration
    factory = _import(entry) if registration is None else registration.factory
    if registration is None:
        matches = [known for known in registered(entry.kind, entry.name) if same_definition(known, factory)]
        registration = matches[-1] if matches else None
    return Plugin(
        kind=entry.kind,
        name=entry.name,
        factory=factory,
        owner=entry.owner,
        module=entry.module,
        paper=registration.paper if registration else "",
        contract=registration.contract if registration else None,
    )


def _import(entry: Entry) -> Callable[..., Any]:
    """Import what an entry point names."""
    what = f"{entry.kind.value} {entry.name!r} of {entry.owner}"
    if not _MODULE.fullmatch(entry.module) or not entry.attributes:
        raise PluginLoadError(
            f"{what}: its entry point {entry.target!r} is not module:object; ask its author."
        )
    check_origin(entry)
    try:
        factory: Callable[..., Any] = _attribute(importlib.import_module(entry.module), entry)
    except (Exception, SystemExit) as error:  # a plugin's code may raise anything
        forget_unimported()
        raise PluginLoadError(
            f"{what}: {entry.target} cannot be imported: {_cause(error)}; reinstall or repair {entry.owner} "
            "(fl-plugins doctor says more)."
        ) from error
    if not callable(factory):
        raise PluginLoadError(
            f"{what}: {entry.target} is {factory!r}, which cannot be called; ask its author."
        )
    return factory


def _attribute(module: object, entry: Entry) -> Any:
    """Return the object that ``entry`` names in its module."""
    return reduce(getattr, entry.attributes, module)


def _is_announced_as(registration: Registration | None, entry: Entry) -> bool:
    """Whether ``entry`` names the registered definition, as far as that is known without an import."""
    if registration is None or (registration.kind, registration.name) != (entry.kind, entry.name):
        return False
    module = sys.modules.get(entry.module)
    try:
        return module is not None and same_definition(registration, _attribute(module, entry))
    except AttributeError:
        return False


def _registered_entry(registration: Registration, announced: Sequence[Entry]) -> Entry:
    """Return a registration as an entry, owned by the distribution that has its package (else by that)."""
    top = registration.module.partition(".")[0]
    owner = next((entry.owner for entry in announced if entry.top_level == top), top)
    return Entry(kind=registration.kind, name=registration.name, owner=owner, target=registration.target)


def _unknown(kind: Kind, name: str, owner: str | None) -> str:
    """Return the message for a name that nobody has."""
    known = available(kind)
    _, bare = split_qualified(name)
    names = sorted({entry.name for entry in known})
    near = difflib.get_close_matches(bare.lower(), names, n=3, cutoff=0.6)
    if owner is not None:
        near = [entry.qualified for entry in known if entry.name == bare] or near
    elsewhere = {entry.kind.value: None for entry in available() if entry.name == bare and entry.kind != kind}
    parts = [f"no {kind.value} is called {name!r}"]
    if near:
        parts.append(f"did you mean {' or '.join(near)}?")
    if elsewhere:
        parts.append(f"{bare!r} exists, but of kind {' and '.join(elsewhere)}")
    parts.append(f"available: {', '.join(names) or 'none'}")
    return "; ".join(parts) + ". Code of your own must be named in plugins = 'module' or installed."


def _duplicate(kind: Kind, name: str, claims: Sequence[_Claim]) -> str:
    """Return the message for a name with two definitions."""
    entries = [claim.entry for claim in claims]
    owners = list(dict.fromkeys(entry.owner for entry in entries))
    whose = " and ".join(f"{entry.owner} ({entry.target})" for entry in entries)
    if len(owners) == 1:
        return (
            f"{kind.value} {name!r} has two definitions in {owners[0]}: {whose}; one of them must be renamed."
        )
    ways = " or ".join(repr(f"{owner}:{name}") for owner in owners)
    return f"{kind.value} {name!r} has {len(owners)} owners: {whose}; write {ways}."


def _cause(error: BaseException) -> str:
    """Return an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
