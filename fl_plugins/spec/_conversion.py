"""Values of a spec, checked against the annotation of the parameter they are meant for."""

import enum
import types
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any, Literal, NewType, Union

from fl_plugins.errors import UnknownPluginError
from fl_plugins.registry import Kind, PluginKind, Unresolved

from ._grammar import Spec

MakePlugin = Callable[[Kind, "str | Spec", Any], Any]
"""``(kind, spec, form)``: the nested plugin; its checked text or spec if ``form`` says so."""

_MANY = (list, tuple, Sequence, Collection, Iterable)
_PLAIN = (bool, int, float, str)


class Mismatch(Exception):  # noqa: N818  caught inside this package
    """A value that does not fit.

    Parameters
    ----------
    allowed : str
        What would.
    wrong_type : bool
        Whether its type is wrong, rather than its value.
    """

    def __init__(self, allowed: str, *, wrong_type: bool = True) -> None:
        super().__init__(allowed)
        self.allowed = allowed
        self.wrong_type = wrong_type


def convert(value: Any, hint: Any, make: MakePlugin, kind: Kind | None = None) -> Any:
    """Return ``value`` as a parameter annotated ``hint`` takes it.

    =================  ============================================================================
    annotation         takes
    =================  ============================================================================
    bool, str, None    exactly that
    int                int, not bool
    float              float or int (made a float), not bool
    Literal, Enum      one of the values
    X | Y              what X or Y takes; a member of the value's own type comes first
    list, tuple        a tuple or list whose items fit
    with PluginKind    a nested spec, or its text, where a type other than those above stands
    anything else      every literal
    =================  ============================================================================

    Raises
    ------
    Mismatch
        If it does not fit.
    """
    hint, marked = _unwrap(hint)
    kind = marked or kind
    if _is_union(hint):
        return _convert_union(value, hint, make, kind)
    if kind is not None and isinstance(value, str | Spec) and _may_be_plugin(hint):
        return make(kind, value, hint if hint in (str, Spec) else object)
    if _origin(hint) in _MANY and isinstance(value, tuple):
        return _convert_items(value, hint, make, kind)
    if isinstance(value, Spec) and hint is not Spec:
        raise Mismatch(describe(hint, kind))
    choices = _choices(hint)
    for choice, result in choices:
        if type(value) is type(choice) and value == choice:
            return result
    if choices:
        raise Mismatch(describe(hint), wrong_type=type(value) not in {type(choice) for choice, _ in choices})
    if not _fits(value, hint, is_plugin=kind is not None):
        raise Mismatch(describe(hint, kind))
    return float(value) if hint is float else value


def describe(hint: Any, kind: Kind | None = None) -> str:
    """Return in words what an annotation takes."""
    hint, marked = _unwrap(hint)
    kind = marked or kind
    members = typing.get_args(hint)
    if _is_union(hint):
        return " or ".join(dict.fromkeys(describe(member, kind) for member in members))
    if choices := _choices(hint):
        return f"one of {', '.join(repr(choice) for choice, _ in choices)}"
    if _origin(hint) in _MANY:
        items = ", ".join(describe(member, kind) for member in members if member is not Ellipsis)
        return f"a list of {items}" if items else "a list"
    if kind is not None and _may_be_plugin(hint):
        return f"a plugin of kind {kind.value!r}"
    if hint is None or hint is type(None):
        return "None"
    return (
        str(hint.__name__)
        if isinstance(hint, type) and hint not in (object, Any, Unresolved)
        else "any literal"
    )


def takes_plugin(hint: Any) -> bool:
    """Whether ``PluginKind`` stands anywhere in an annotation."""
    hint, kind = _unwrap(hint)
    return kind is not None or any(map(takes_plugin, typing.get_args(hint)))


def _unwrap(hint: Any) -> tuple[Any, Kind | None]:
    """Return the type inside ``Annotated`` and ``NewType``, and the kind of plugin it is marked with."""
    kind: Kind | None = None
    while True:
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
            kind = next((mark.kind for mark in marks if isinstance(mark, PluginKind)), kind)
        elif isinstance(hint, NewType):
            hint = hint.__supertype__
        else:
            return hint, kind


def _origin(hint: Any) -> Any:
    """Return ``list`` for ``list[int]``, the hint itself for a plain type."""
    return typing.get_origin(hint) or hint


def _is_union(hint: Any) -> bool:
    """Whether ``hint`` is ``X | Y``."""
    return typing.get_origin(hint) in (Union, types.UnionType)


def _may_be_plugin(hint: Any) -> bool:
    """Whether a type that is marked with ``PluginKind`` stands for the plugin, its text or its spec."""
    closed = hint in (bool, int, float, None, type(None)) or _origin(hint) in _MANY
    return not closed and not _choices(hint)


def _choices(hint: Any) -> list[tuple[Any, Any]]:
    """Return the values that ``Literal[...]`` or an ``Enum`` allows, each with what the factory gets."""
    if typing.get_origin(hint) is Literal:
        return [(choice, choice) for choice in typing.get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [(getattr(member.value, "value", member.value), member) for member in hint]
    return []


def _convert_union(value: Any, hint: Any, make: MakePlugin, kind: Kind | None) -> Any:
    """Return ``value`` as the first member that takes it, those of its own type before the others.

    Members may be plugins of several kinds: a name that one kind does not know may be another's.
    """
    members = sorted(typing.get_args(hint), key=lambda member: _unwrap(member)[0] is not type(value))
    mismatches: list[Mismatch] = []
    unknown: UnknownPluginError | None = None
    for member in members:
        try:
            return convert(value, member, make, kind)
        except Mismatch as mismatch:
            mismatches.append(mismatch)
        except UnknownPluginError as error:
            unknown = error
    if unknown is not None:
        raise unknown
    raise Mismatch(describe(hint, kind), wrong_type=all(mismatch.wrong_type for mismatch in mismatches))


def _convert_items(value: tuple[Any, ...], hint: Any, make: MakePlugin, kind: Kind | None) -> Any:
    """Return a tuple (a list where the annotation says so) whose items are converted one by one."""
    members = typing.get_args(hint) or (Any, Ellipsis)
    if _origin(hint) is tuple and members[-1] is not Ellipsis:
        if len(members) != len(value):
            raise Mismatch(f"{describe(hint, kind)} ({len(members)} of them)")
    else:
        members = (members[0],) * len(value)
    try:
        items = [convert(item, member, make, kind) for item, member in zip(value, members, strict=True)]
    except Mismatch as mismatch:
        raise Mismatch(describe(hint, kind), wrong_type=mismatch.wrong_type) from None
    return items if _origin(hint) is list else tuple(items)


def _fits(value: Any, hint: Any, *, is_plugin: bool) -> bool:
    """Whether a literal (or spec) fits a type that is no union, no list and no choice."""
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    if hint in (*_PLAIN, Spec):
        return type(value) is hint
    return not is_plugin and _origin(hint) not in _MANY and not has_spec(value)


def has_spec(value: Any) -> bool:
    """Whether there is a nested plugin anywhere in ``value``."""
    return isinstance(value, Spec) or (isinstance(value, tuple) and any(map(has_spec, value)))
