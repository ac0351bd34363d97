"""From a spec to the object: every argument is matched with a parameter and checked, then comes the call."""

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.registry import Kind, Parameter, Plugin, load

from ._conversion import Mismatch, convert, describe, has_spec, takes_plugin
from ._grammar import Spec, parse, to_text

_SHORT_NAMES = {"f": "num_byzantine"}
"""What papers on robust aggregation write for a parameter, and specs may."""


def build(
    kind: Kind, spec: str | Spec, /, *, defaults: Mapping[str, Any] | None = None, **provided: Any
) -> Any:
    """Load the plugin that ``spec`` names, check every argument, build nested plugins and call the factory.

    Parameters
    ----------
    kind : Kind
        What the outermost plugin is.
    spec : str or Spec
        Its name and arguments.
    defaults : Mapping, optional
        Arguments for the outermost plugin, if it has such parameters and the text does not give them.
    **provided
        Arguments for every plugin in the spec that has such a parameter; the text must not give them. They
        and the defaults are handed over as they are.

    Guarantees
    ----------
    No factory is called before every name and argument of the whole spec has been checked.

    Raises
    ------
    SpecError
        If the text does not parse.
    PluginError
        If a plugin is unknown, ambiguous, shadowed or broken.
    ConfigError
        If an argument is unknown, missing, given twice or not one of the allowed values.
    ConfigTypeError
        If an argument has the wrong type.
    """
    _Builder(provided, dry=True).make(kind, spec, defaults=defaults)
    return _Builder(provided, dry=False).make(kind, spec, defaults=defaults)


@dataclass(frozen=True)
class _Builder:
    """Walks a spec; ``dry`` checks everything and calls nothing."""

    provided: Mapping[str, Any]
    dry: bool

    def make(self, kind: Kind, text: str | Spec, *, defaults: Mapping[str, Any] | None = None) -> Any:
        """Return the plugin (``None`` if dry)."""
        spec = text if isinstance(text, Spec) else parse(text)
        plugin = load(kind, spec.name if spec.owner is None else f"{spec.owner}:{spec.name}")
        arguments = self._arguments(plugin, spec, {**(defaults or {}), **self.provided})
        _require_all(plugin, arguments)
        return None if self.dry else _call(plugin, arguments)

    def _nested(self, kind: Kind, text: str | Spec, form: Any) -> Any:
        """Return a nested plugin; or its checked text or spec, which its owner will complete and build."""
        if form is object:
            return self.make(kind, text)
        spec = text if isinstance(text, Spec) else parse(text)
        plugin = load(kind, spec.name if spec.owner is None else f"{spec.owner}:{spec.name}")
        _Builder(self.provided, dry=True)._arguments(plugin, spec, {})
        return spec if form is Spec else str(spec)

    def _arguments(self, plugin: Plugin, spec: Spec, program: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked arguments of the text and of the program, by parameter."""
        parameters = {parameter.name: parameter for parameter in plugin.parameters}
        given = _match(plugin, spec)
        for name in given:
            if name in self.provided and name in parameters:
                raise ConfigError(
                    f"{_where(plugin)}: {name} is given by the program; leave it out of the spec."
                )
        arguments = {name: value for name, value in program.items() if name in parameters}
        for name, value in given.items():
            parameter = parameters.get(name, Parameter(name=name))
            arguments[name] = self._convert(plugin, parameter, value)
        return arguments

    def _convert(self, plugin: Plugin, parameter: Parameter, value: Any) -> Any:
        """Return one argument as the parameter's annotation wants it."""
        hint = parameter.annotation
        if parameter.variadic:
            hint = GenericAlias(tuple, (hint, ...))
        try:
            return convert(value, hint, self._nested)
        except Mismatch as mismatch:
            remedy = ""
            if has_spec(value) and not takes_plugin(hint):
                remedy = " It is not declared as a plugin (PluginKind); if a text is meant, quote it."
            error = ConfigTypeError if mismatch.wrong_type else ConfigError
            raise error(
                f"{_where(plugin)}: {parameter.name}={to_text(value)} ({_type_name(value)}), but "
                f"{parameter.name} takes {mismatch.allowed}.{remedy}"
            ) from None


def _match(plugin: Plugin, spec: Spec) -> dict[str, Any]:
    """Return the values that the text gives, by parameter.

    Raises
    ------
    ConfigError
        If there are too many, one is given twice, or nobody knows its name.
    """
    parameters = plugin.parameters
    slots = [parameter.name for parameter in parameters if parameter.positional]
    rest = next((parameter.name for parameter in parameters if parameter.variadic), None)
    given: dict[str, Any] = dict(zip(slots, spec.args, strict=False))
    if extra := spec.args[len(slots) :]:
        if rest is None:
            takes = f"at most {len(slots)} ({', '.join(slots)})" if slots else "none"
            raise ConfigError(
                f"{_where(plugin)}: {len(spec.args)} arguments without a name, but it takes {takes}; give "
                "the others as name=value."
            )
        given[rest] = extra
    names = [parameter.name for parameter in parameters if not parameter.variadic]
    for written, value in spec.kwargs:
        long = _SHORT_NAMES.get(written, written)
        name = long if written not in names and long in names else written
        if name in given:
            raise ConfigError(
                f"{_where(plugin)}: {name} is given twice (by position, by name, by its short name); give it "
                "once."
            )
        if name not in names and (name == rest or not plugin.accepts_any_keyword):
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? It takes " if near else "it takes "
            raise ConfigError(
                f"{_where(plugin)}: {name}={to_text(value)}, but it has no parameter {name!r}; {hint}"
                f"{', '.join(names) or 'none'}."
            )
        given[name] = value
    return given


def _require_all(plugin: Plugin, arguments: Mapping[str, Any]) -> None:
    """Do nothing if every required parameter has an argument.

    Raises
    ------
    ConfigError
        If one has none.
    """
    missing = [
        parameter for parameter in plugin.parameters if parameter.required and parameter.name not in arguments
    ]
    if missing:
        example = ", ".join(f"{parameter.name}=..." for parameter in missing)
        takes = "; ".join(f"{parameter.name} takes {describe(parameter.annotation)}" for parameter in missing)
        raise ConfigError(
            f"{_where(plugin)}: {', '.join(parameter.name for parameter in missing)} not given; write "
            f"{plugin.name}({example}), where {takes}."
        )


def _call(plugin: Plugin, arguments: Mapping[str, Any]) -> Any:
    """Call the factory."""
    signature = plugin.signature
    named = {name: value for name, value in arguments.items() if name in signature.parameters}
    options = {name: value for name, value in arguments.items() if name not in named}
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named[parameter.name] = options
    bound = inspect.BoundArguments(signature, OrderedDict(named))
    return plugin.factory(*bound.args, **bound.kwargs)


def _where(plugin: Plugin) -> str:
    """Return the beginning of a message about ``plugin``."""
    return f"{plugin.kind.value} {plugin.name!r}"


def _type_name(value: Any) -> str:
    """Return the type of a value of a spec in words."""
    if isinstance(value, Spec):
        return "a plugin"
    return "a list" if isinstance(value, tuple) else type(value).__name__
