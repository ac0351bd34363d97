"""What :func:`register` has been told, by kind and name."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fl_plugins.contracts import Contract
from fl_plugins.errors import ConfigTypeError

from ._kinds import Kind, check_name

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A factory with what its decorator says; ``file`` is where it was defined, if it is known."""

    kind: Kind
    name: str
    factory: Callable[..., Any]
    module: str
    qualname: str
    file: str | None
    paper: str
    contract: Contract | None

    @property
    def target(self) -> str:
        """Return ``module:qualified_name``."""
        return f"{self.module}:{self.qualname}"


_registrations: dict[tuple[Kind, str], list[Registration]] = {}


def register(
    kind: Kind, name: str, *, paper: str = "", contract: Contract | None = None
) -> Callable[[Factory], Factory]:
    """Make the decorated class or function a plugin; it is returned unchanged.

    Registering the same definition again (the module is imported under two names, or reloaded) replaces the
    first. Another definition of the same kind and name is refused when that name is asked for, not here:
    an import must not fail because of somebody else's package.

    Parameters
    ----------
    kind : Kind
        What it is.
    name : str
        Its snake_case name in specs.
    paper : str
        Where the method is published, with its section or algorithm.
    contract : Contract, optional
        What it needs and how it weights.

    Raises
    ------
    ConfigError
        If the name is not snake_case.
    ConfigTypeError
        If what is decorated cannot be called.
    """
    check_name(Kind(kind), name)

    def decorate(factory: Factory) -> Factory:
        if not callable(factory):
            raise ConfigTypeError(f"register: {kind.value} {name!r} is {factory!r}, which cannot be called.")
        module, qualname, file = definition(factory)
        registration = Registration(
            kind=Kind(kind),
            name=name,
            factory=factory,
            module=module,
            qualname=qualname,
            file=file,
            paper=paper,
            contract=contract,
        )
        known = registered(registration.kind, name)
        _registrations[registration.kind, name] = [
            *(other for other in known if not same_definition(other, factory)),
            registration,
        ]
        return factory

    return decorate


def registered(kind: Kind, name: str) -> tuple[Registration, ...]:
    """Return what was registered under ``kind`` and ``name``."""
    return tuple(_registrations.get((kind, name), ()))


def all_registered() -> tuple[Registration, ...]:
    """Return everything that was registered."""
    return tuple(registration for known in list(_registrations.values()) for registration in known)


def forget_unimported() -> None:
    """Drop what modules registered that are no longer imported: their import failed half-way."""
    for key, known in list(_registrations.items()):
        _registrations[key] = [registration for registration in known if registration.module in sys.modules]


def same_definition(registration: Registration, factory: Callable[..., Any]) -> bool:
    """Whether ``factory`` is the registered object, or the same definition imported another time."""
    if registration.factory is factory:
        return True
    module, qualname, file = definition(factory)
    if qualname != registration.qualname:
        return False
    return module == registration.module or (file is not None and file == registration.file)


def definition(factory: Callable[..., Any]) -> tuple[str, str, str | None]:
    """Return the module, the qualified name and the source file of ``factory``."""
    while isinstance(factory, partial):
        factory = factory.func
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    module = str(named.__module__)
    code = getattr(inspect.unwrap(named), "__code__", None)
    file = code.co_filename if code is not None else getattr(sys.modules.get(module), "__file__", None)
    return module, named.__qualname__, file
