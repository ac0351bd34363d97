"""The annotations of a factory's parameters, resolved as far as they can be.

Types that are imported for the type checker only cannot be looked up at run time. Such a name stands for
:class:`Unresolved` and the rest of its annotation (``| None``, ``Annotated[..., PluginKind(...)]``) counts.
"""

import builtins
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import InitVar
from types import SimpleNamespace
from typing import Any


class _Anything(type):
    """Metaclass: every attribute of the class is the class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Unresolved(metaclass=_Anything):
    """Stands for a type that is not known at run time; every value is accepted for it."""

    def __class_getitem__(cls, _: Any) -> type["Unresolved"]:
        return cls


class _Names(dict[str, Any]):
    """A namespace in which every name is known."""

    def __missing__(self, _: str) -> Any:
        return Unresolved


def parameter_hints(factory: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotation of every annotated parameter of ``factory`` (of ``__init__`` for a class)."""
    function = factory
    if inspect.isclass(factory):
        function = factory.__init__ if "__init__" in _defined(factory) else factory.__new__
    elif not inspect.isroutine(factory):
        function = getattr(factory, "func", None) or type(factory).__call__
    return _resolve(function, getattr(inspect.unwrap(function), "__globals__", {}))


def typed_dict_hints(options: type) -> tuple[Mapping[str, Any], frozenset[str]]:
    """Return the annotation of every key of a ``TypedDict``, and the keys that are required."""
    names: dict[str, Any] = {}
    for base in reversed(options.__mro__):
        names.update(vars(inspect.getmodule(base) or builtins))
    hints = {key: _unqualified(hint) for key, hint in _resolve(options, names).items()}
    return hints, frozenset(getattr(options, "__required_keys__", frozenset()))


def strip_init_var(hint: Any) -> Any:
    """Return the type inside ``dataclasses.InitVar``."""
    return hint.type if isinstance(hint, InitVar) else hint


def _defined(factory: type) -> set[str]:
    """Return the names that ``factory`` or a base other than ``object`` defines."""
    return {name for base in factory.__mro__[:-1] for name in vars(base)}


def _resolve(holder: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the annotations of ``holder``; a name that is unknown becomes :class:`Unresolved`."""
    try:
        return typing.get_type_hints(holder, include_extras=True)
    except Exception:  # an annotation may be any expression and raise anything; keep the other ones
        return {
            name: _resolve_one(hint, names) for name, hint in getattr(holder, "__annotations__", {}).items()
        }


def _resolve_one(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Evaluate one annotation, first as it is, then with unknown names allowed; ``Any`` if both fail."""
    holder = SimpleNamespace(__annotations__={"it": annotation})
    for known in (dict(names), _Names({**vars(builtins), **names})):
        try:
            return typing.get_type_hints(holder, globalns=dict(names), localns=known, include_extras=True)[
                "it"
            ]
        except Exception:  # noqa: S112  as above
            continue
    return Any


def _unqualified(hint: Any) -> Any:
    """Return ``hint`` without ``Required[...]`` and ``NotRequired[...]``."""
    while typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        hint = typing.get_args(hint)[0]
    return hint
