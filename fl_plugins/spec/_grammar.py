"""The grammar of specs: text to :class:`Spec` and back, by way of ``ast``, with everything else refused."""

import ast
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

from fl_plugins.errors import SpecError
from fl_plugins.registry import normalize_name, normalize_owner

MAX_LENGTH = 4096
MAX_NESTING = 20
MAX_INTEGER_BITS = 64

_EXAMPLE = "write for example 'krum(num_byzantine=2)'"
_NAME = r"[A-Za-z_]\w*(?:-\w+)*"
_ESCAPE = r"\\(?:[\\'\"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
_TOKEN = re.compile(
    rf"""
    (?P<triple>  '''|\"\"\" )
  | (?P<string>  '(?:[^'\\\n\r]|{_ESCAPE})*' | "(?:[^"\\\n\r]|{_ESCAPE})*" )
  | (?P<prefix>  [A-Za-z]+ (?=['"]) )
  | (?P<owned>   [A-Za-z0-9](?:[\w.-]*\w)? : {_NAME} )
  | (?P<number>  0[xXoObB]\w+ | (?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d[\d_]*)? )
  | (?P<name>    {_NAME} )
  | (?P<open>    [(\[] )
  | (?P<close>   [)\]] )
  | (?P<other>   [\s,=+-] )
    """,
    re.VERBOSE | re.ASCII,
)
_OWNER = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, eq=False)
class Spec:
    """A plugin's name with its arguments, as a text gives them; nothing is looked up yet.

    Two specs are equal if their canonical texts are: ``f(a=1)`` differs from ``f(a=True)``, the order of the
    keyword arguments does not count, and a list counts as a tuple.

    Parameters
    ----------
    name : str
        The plugin's name; hyphens become underscores.
    owner : str, optional
        The distribution (or top-level module) that is meant.
    args : tuple
        Positional arguments: bool, int, float, str, ``None``, specs, and tuples of these.
    kwargs : tuple of (str, value)
        Keyword arguments, sorted by name; a mapping is accepted.

    Raises
    ------
    SpecError
        If a name or a value is not one that a text can give, or the text would be too long or too nested.
    """

    name: str
    owner: str | None = None
    args: tuple[object, ...] = ()
    kwargs: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        pairs = self.kwargs.items() if isinstance(self.kwargs, Mapping) else self.kwargs
        named = sorted(((_check_name(name), _freeze(value)) for name, value in pairs), key=itemgetter(0))
        for (name, _), (following, _) in pairwise(named):
            if name == following:
                raise SpecError(f"spec {self.name!r}: the argument {name!r} is given twice; give it once.")
        object.__setattr__(self, "name", _check_name(self.name))
        object.__setattr__(self, "owner", None if self.owner is None else _check_owner(self.owner))
        object.__setattr__(self, "args", tuple(_freeze(value) for value in self.args))
        object.__setattr__(self, "kwargs", tuple(named))
        if _nesting(self) > MAX_NESTING:
            raise SpecError(f"spec {self.name!r}: more than {MAX_NESTING} brackets in one another.")
        if len(str(self)) > MAX_LENGTH:
            raise SpecError(f"spec {self.name!r}: its canonical text has more than {MAX_LENGTH} characters.")

    def __str__(self) -> str:
        """Return the canonical text: ``parse(str(spec)) == spec``."""
        arguments = [*map(to_text, self.args), *(f"{name}={to_text(value)}" for name, value in self.kwargs)]
        owner = "" if self.owner is None else f"{self.owner}:"
        return f"{owner}{self.name}" + (f"({', '.join(arguments)})" if arguments else "")

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Spec) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


def parse(text: str) -> Spec:
    """Return the spec that ``text`` writes.

    >>> str(parse("My_Dist:trimmed-mean( fraction = 0.2 )"))
    'my-dist:trimmed_mean(fraction=0.2)'
    >>> parse("chain(clip(1.0), krum)").args[1]
    Spec(name='krum', owner=None, args=(), kwargs=())

    Raises
    ------
    SpecError
        If the text is anything but plugin names called with literals and other plugins; says where.
    """
    if not isinstance(text, str):
        raise SpecError(f"spec: {text!r} is not a text; {_EXAMPLE}.")
    if len(text) > MAX_LENGTH:
        raise SpecError(f"spec: {len(text)} characters, but at most {MAX_LENGTH} are allowed.")
    if not text.strip():
        raise SpecError(f"spec: the text is empty; {_EXAMPLE}.")
    return _Reader(text).read()


class _Reader:
    """Reads one text; ``names`` has owner and name by offset, for Python cannot write ``my-dist:my-rule``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: dict[int, tuple[str | None, str]] = {}

    def read(self) -> Spec:
        """Return the spec."""
        padded = self._to_python()
        self.source = padded.lstrip()
        self.margin = len(padded) - len(self.source)
        try:
            body = ast.parse(self.source, mode="eval").body
        except SyntaxError as error:
            raise self._error(
                self.margin + max((error.offset or 1) - 1, 0), f"{error.msg}; {_EXAMPLE}"
            ) from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise self._error(0, f"Python cannot read it ({type(error).__name__}); {_EXAMPLE}") from None
        if not isinstance(body, ast.Call | ast.Name):
            raise self._error(self._offset(body), f"a plugin's name is needed here; {_EXAMPLE}")
        return self._spec(body)

    def _to_python(self) -> str:
        """Return the text with every name made a Python name of the same length, and note the names."""
        parts: list[str] = []
        position = depth = 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                raise self._error(position, self._refused(self.text[position]))
            token, sort = match.group(), match.lastgroup
            if sort in ("triple", "prefix"):
                raise self._error(
                    position, "only plain 'text' or \"text\" is allowed, no f'', r'', b'' or triple quotes"
                )
            depth += (sort == "open") - (sort == "close")
            if depth > MAX_NESTING:
                raise self._error(position, f"more than {MAX_NESTING} brackets in one another")
            if sort in ("owned", "name"):
                owner, _, name = token.rpartition(":")
                self.names[position] = (owner or None, name)
                token = re.sub(r"[-.:]", "_", token)
                token = f"_{token[1:]}" if sort == "owned" else token
            parts.append(" " if token.isspace() else token)
            position = match.end()
        return "".join(parts)

    def _spec(self, node: ast.Call | ast.Name) -> Spec:
        """Return the spec of a call or a bare name."""
        function = node.func if isinstance(node, ast.Call) else node
        if not isinstance(function, ast.Name):
            raise self._error(self._offset(function), "only a plugin's name can be called")
        owner, name = self._named(function)
        if isinstance(node, ast.Name):
            return Spec(name, owner)
        kwargs: dict[str, object] = {}
        for argument in node.keywords:
            named = self._named(argument)
            key = normalize_name(named[1])
            if named[0] is not None or key in kwargs:
                rule = "is given twice; give it once" if key in kwargs else "has no owner; leave 'owner:' out"
                raise self._error(self._offset(argument), f"the argument {key!r} {rule}")
            kwargs[key] = self._value(argument.value)
        return Spec(name, owner, tuple(self._value(value) for value in node.args), tuple(kwargs.items()))

    def _value(self, node: ast.expr) -> object:
        """Return a literal, a tuple of values or a nested spec."""
        match node:
            case ast.Call() | ast.Name():
                return self._spec(node)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(self._value(item) for item in items)
            case ast.Constant(value=value):
                return self._literal(node, value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if (
                value is not True and value is not False
            ):
                return self._literal(node, -value)
            case _:
                raise self._error(
                    self._offset(node), "only literals and plugins are allowed here, nothing to compute"
                )

    def _literal(self, node: ast.expr, value: object) -> object:
        """Return ``value`` if a spec may hold it."""
        try:
            return _freeze(value)
        except SpecError as error:
            reason = str(error).removeprefix("spec: ").removesuffix(".")
            raise self._error(self._offset(node), reason) from None

    def _named(self, node: ast.Name | ast.keyword) -> tuple[str | None, str]:
        """Return owner and name as they were written."""
        noted = self.names.get(self._offset(node))
        if noted is None:
            raise self._error(self._offset(node), "a name has ASCII letters, digits, underscores and hyphens")
        return noted

    def _offset(self, node: ast.expr | ast.keyword) -> int:
        """Return where ``node`` begins in the text (ast counts UTF-8 bytes)."""
        return self.margin + len(self.source.encode()[: node.col_offset].decode())

    def _refused(self, character: str) -> str:
        """Return the reason for a character that begins no token."""
        if character in "'\"":
            return "the text that begins here is not closed, or has an unknown backslash"
        return f"{character!r} has no meaning here: a spec has names, literals and nested plugins only"

    def _error(self, offset: int, reason: str) -> SpecError:
        """Return the error with the position, counted from 1, and what stands there."""
        near = self.text[offset : offset + 20]
        return SpecError(f"spec {_shorten(self.text)!r}, character {offset + 1} ({near!r}): {reason}.")


def _freeze(value: object) -> object:
    """Return ``value`` with tuples for lists.

    Raises
    ------
    SpecError
        If it is not a value that a text can give.
    """
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if value is None or isinstance(value, Spec) or type(value) in (bool, str):
        return value
    if isinstance(value, float) and type(value) is float and not math.isnan(value):
        return value
    if type(value) is int:
        if value.bit_length() > MAX_INTEGER_BITS:
            raise SpecError(f"spec: integers have at most {MAX_INTEGER_BITS} bits.")
        return value
    raise SpecError(
        f"spec: {_shorten(repr(value))} ({type(value).__name__}) is not a literal; allowed are numbers (not "
        "nan), texts, True, False, None, tuples and lists of them, and plugins."
    )


def to_text(value: object) -> str:
    """Return a value as text."""
    if isinstance(value, tuple):
        return f"({', '.join(map(to_text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # literals beyond the range of a float are infinite
    return str(value) if isinstance(value, Spec) else repr(value)


def _nesting(value: object) -> int:
    """Return how many brackets stand in one another in the text of ``value``."""
    if isinstance(value, Spec):
        inner = (*value.args, *(item for _, item in value.kwargs))
        return 1 + max(map(_nesting, inner)) if inner else 0
    return 1 + max(map(_nesting, value), default=0) if isinstance(value, tuple) else 0


def _check_name(name: str) -> str:
    """Return a name of a plugin or an argument, normalized."""
    normalized = normalize_name(name)
    if not (normalized.isidentifier() and normalized.isascii()) or keyword.iskeyword(normalized):
        raise SpecError(f"spec: {name!r} is not a name; use letters, digits, underscores and hyphens.")
    return normalized


def _check_owner(owner: str) -> str:
    """Return an owner, normalized."""
    normalized = normalize_owner(owner)
    if not _OWNER.fullmatch(normalized):
        raise SpecError(f"spec: {owner!r} is not the name of a distribution or module.")
    return normalized


def _shorten(text: str) -> str:
    """Return at most 80 characters of ``text``."""
    return text if len(text) <= 80 else f"{text[:77]}..."
