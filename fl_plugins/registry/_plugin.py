"""A loaded plugin, and what its factory's signature says about its parameters."""

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fl_plugins.contracts import Contract
from fl_plugins.errors import PluginError

from ._hints import parameter_hints, strip_init_var, typed_dict_hints
from ._kinds import Kind

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_PARAMETER_TITLES = ("Parameters", "Other Parameters")
_UNDERLINE = re.compile(r"-{3,}")


Explanation = TypeVar("Explanation", bound=type)
_explanations: dict[type, type] = {}


def explains(options: type) -> Callable[[Explanation], Explanation]:
    """Let the decorated class, which takes the same arguments, say the defaults and docs of a ``TypedDict``.

    A ``TypedDict`` has neither, and ``**options: Unpack[SomeTypedDict]`` is how factories share options.
    """

    def decorate(explanation: Explanation) -> Explanation:
        _explanations[options] = explanation
        return explanation

    return decorate


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a plugin.

    Parameters
    ----------
    name : str
        Its name in a spec.
    annotation : Any
        Its resolved type; ``Any`` if it has none.
    default : Any
        Its default; ``inspect.Parameter.empty`` if it has none, or if it is an option whose default the
        factory keeps to itself.
    required : bool
        Whether a spec must give it.
    doc : str
        What the docstring's *Parameters* section says.
    positional : bool
        Whether it may be given by position.
    variadic : bool
        Whether it collects all further positional arguments (``*args``).
    """

    name: str
    annotation: Any = Any
    default: Any = inspect.Parameter.empty
    required: bool = True
    doc: str = ""
    positional: bool = False
    variadic: bool = False


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A factory with its name, owner and description.

    Parameters
    ----------
    kind, name : Kind, str
        What it is and what it is called.
    factory : Callable
        The class or function that builds it.
    owner : str
        The distribution that announces it, or the top-level module that registered it.
    module : str
        The module it was loaded from.
    paper : str
        Where the method is published.
    contract : Contract, optional
        What it needs and how it weights, where that is known without its parameters.
    """

    kind: Kind
    name: str
    factory: Callable[..., Any]
    owner: str
    module: str
    paper: str = ""
    contract: Contract | None = None

    @property
    def doc(self) -> str:
        """Return the factory's docstring, empty if it has none of its own."""
        return _docstring(self.factory)

    @property
    def summary(self) -> str:
        """Return the docstring's first line."""
        return self.doc.partition("\n")[0]

    @property
    def description(self) -> str:
        """Return the docstring without its *Parameters* section."""
        sections = (lines for title, lines in _sections(self.doc) if title not in _PARAMETER_TITLES)
        return "\n".join(line for lines in sections for line in lines).strip()

    @property
    def signature(self) -> inspect.Signature:
        """Return the factory's signature.

        Raises
        ------
        PluginError
            If Python cannot tell it (some callables written in C).
        """
        try:
            return inspect.signature(self.factory)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{self.kind.value} {self.name!r} of {self.owner}: {self.factory!r} has no signature to "
                "check arguments against; wrap it in a function with named parameters."
            ) from error

    @property
    def accepts_any_keyword(self) -> bool:
        """Whether the factory has a ``**kwargs`` whose keys are not declared."""
        return any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD and _options_of(hint) is None
            for parameter, hint in self._annotated()
        )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return all parameters; the keys of ``**options: Unpack[SomeTypedDict]`` count as parameters."""
        docs = _parameter_docs(self.factory)
        found: list[Parameter] = []
        for parameter, hint in self._annotated():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                found.extend(_option_parameters(_options_of(hint), docs))
                continue
            variadic = parameter.kind is inspect.Parameter.VAR_POSITIONAL
            found.append(
                Parameter(
                    name=parameter.name,
                    annotation=hint,
                    default=parameter.default,
                    required=parameter.default is inspect.Parameter.empty and not variadic,
                    doc=docs.get(parameter.name, ""),
                    positional=parameter.kind in _POSITIONAL,
                    variadic=variadic,
                )
            )
        return tuple(found)

    def _annotated(self) -> Iterator[tuple[inspect.Parameter, Any]]:
        """Yield every parameter of the signature with its resolved annotation."""
        hints = parameter_hints(self.factory)
        for parameter in self.signature.parameters.values():
            yield parameter, strip_init_var(hints.get(parameter.name, Any))


def _options_of(hint: Any) -> type | None:
    """Return the ``TypedDict`` in ``Unpack[SomeTypedDict]``, ``None`` for anything else."""
    if typing.get_origin(hint) is typing.Unpack:
        inner = typing.get_args(hint)[0]
        return inner if typing.is_typeddict(inner) else None
    return None


def _option_parameters(options: type | None, docs: Mapping[str, str]) -> Iterator[Parameter]:
    """Yield a parameter for each key of ``options``."""
    if options is None:
        return
    hints, required = typed_dict_hints(options)
    explanation = _explanations.get(options)
    defaults: dict[str, Any] = {}
    docs = {**_parameter_docs(options), **docs}
    if explanation is not None:
        docs = {**_parameter_docs(explanation), **docs}
        defaults = {
            name: parameter.default for name, parameter in inspect.signature(explanation).parameters.items()
        }
    for name, hint in hints.items():
        yield Parameter(
            name=name,
            annotation=hint,
            default=defaults.get(name, inspect.Parameter.empty),
            required=name in required,
            doc=docs.get(name, ""),
        )


def _docstring(factory: Callable[..., Any]) -> str:
    """Return the docstring that was written for ``factory``."""
    while isinstance(factory, partial):
        factory = factory.func
    own = getattr(factory, "__doc__", None) or ""
    if inspect.isclass(factory) and own.startswith(f"{factory.__name__}("):
        return ""  # dataclasses write the signature there when a class has no docstring
    return inspect.cleandoc(own)


def _parameter_docs(factory: Callable[..., Any]) -> dict[str, str]:
    """Return what numpy-style *Parameters* sections say, by name; a subclass overrides its bases."""
    holders = reversed(factory.__mro__[:-1]) if inspect.isclass(factory) else (factory,)
    docs: dict[str, str] = {}
    for holder in holders:
        docs.update(_parameters_section(_docstring(holder)))
    return docs


def _parameters_section(docstring: str) -> dict[str, str]:
    r"""Return the texts of the *Parameters* section of one docstring.

    >>> _parameters_section("X.\n\nParameters\n----------\na, b : int\n    Two\n    numbers.\n")
    {'a': 'Two numbers.', 'b': 'Two numbers.'}
    """
    docs: dict[str, str] = {}
    for title, lines in _sections(docstring):
        names: list[str] = []
        for line in lines[2:] if title in _PARAMETER_TITLES else []:
            if line and not line[0].isspace():
                names = [name.strip().lstrip("*") for name in line.partition(" : ")[0].split(",")]
                docs.update(dict.fromkeys(names, ""))
            elif line.strip():
                docs.update({name: f"{docs[name]} {line.strip()}".lstrip() for name in names})
    return docs


def _sections(docstring: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the sections of a numpy-style docstring: title (empty for the beginning) and all its lines."""
    lines = docstring.splitlines()
    underlines = [i for i, line in enumerate(lines) if i and _UNDERLINE.fullmatch(line.strip())]
    starts = [0, *(i - 1 for i in underlines)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield ("" if start == 0 else lines[start].strip()), lines[start:end]
