"""Plugins by kind and name: found without importing them, loaded one at a time, and only when asked for.

A plugin is any callable with keyword parameters (a class or a function) that has a *kind*, a snake_case
*name* and an *owner*. It becomes known in one of two ways:

- an entry point of an installed distribution (``fl_plugins.strategies``, ``fl_plugins.aggregators``, …),
  which is how the built-ins do it too; the module is imported when that name is asked for, so that one
  broken package never stands in the way of the others;
- :func:`register` in a module that was imported, for code that is not installed: :func:`load_modules`
  imports what the run config names in ``plugins = "my_app.my_krum"``.

Two owners of one kind and name are never resolved by luck: asking for the bare name is an error that names
both, and ``owner:name`` says which one is meant. Hyphens and underscores are the same in a name.
"""

from ._entries import OWN_DISTRIBUTION, Entry, metadata_problems, own_metadata_is_stale, own_project
from ._hints import Unresolved
from ._kinds import Kind, PluginKind, normalize_name, normalize_owner
from ._loading import available, load, load_modules
from ._origin import Shadow, find_shadows
from ._plugin import Parameter, Plugin, explains
from ._registrations import register

__all__ = [
    "OWN_DISTRIBUTION",
    "Entry",
    "Kind",
    "Parameter",
    "Plugin",
    "PluginKind",
    "Shadow",
    "Unresolved",
    "available",
    "explains",
    "find_shadows",
    "load",
    "load_modules",
    "metadata_problems",
    "normalize_name",
    "normalize_owner",
    "own_metadata_is_stale",
    "own_project",
    "register",
]
