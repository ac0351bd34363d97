"""What a plugin's signature, typed dicts and docstrings say of its parameters."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack, get_args

from fl_plugins.registry import Kind, Plugin, PluginKind, explains

if TYPE_CHECKING:
    import optax


class Shared(TypedDict, total=False):
    retries: int
    codec: Annotated["optax.GradientTransformation | None", PluginKind(Kind.CODEC)]


class Strict(Shared):
    """Options.

    Parameters
    ----------
    retries : int
        How often.
    """

    limit: "float"


@explains(Strict)
@dataclass
class StrictDefaults:
    """What the factory does with the options.

    Parameters
    ----------
    limit : float
        How far.
    """

    limit: float = 2.5
    retries: int = 7


class Base:
    """Base.

    Parameters
    ----------
    **options
        Forwarded.
    """

    def __init__(self, size: int, /, *more: str, flag: bool = False, **options: Unpack[Strict]) -> None:
        self.options = options


class Derived(Base):
    """Derived.

    Parameters
    ----------
    size : int
        How large,
        in total.

    Raises
    ------
    Nothing
        At all.
    """


def plugin(factory: Any) -> Plugin:
    return Plugin(kind=Kind.CODEC, name="p", factory=factory, owner="test", module=__name__)


def test_parameters_come_from_the_signature_the_typed_dict_and_the_docstrings():
    parameters = {parameter.name: parameter for parameter in plugin(Derived).parameters}
    assert list(parameters) == ["size", "more", "flag", "retries", "codec", "limit"]
    size, more, flag = (parameters[name] for name in ("size", "more", "flag"))
    assert (size.annotation, size.required, size.positional, size.doc) == (
        int,
        True,
        True,
        "How large, in total.",
    )
    assert (more.variadic, more.required, more.annotation) == (True, False, str)
    assert (flag.default, flag.required, flag.positional) == (False, False, False)
    assert (parameters["limit"].required, parameters["limit"].annotation) == (True, float)
    assert (parameters["limit"].default, parameters["limit"].doc) == (2.5, "How far.")
    assert (parameters["retries"].required, parameters["retries"].doc) == (False, "How often.")
    assert parameters["retries"].default == 7
    assert not plugin(Derived).accepts_any_keyword


def test_a_type_that_only_the_type_checker_knows_keeps_what_is_around_it():
    hint = {p.name: p.annotation for p in plugin(Derived).parameters}["codec"]
    union, mark = get_args(hint)
    assert mark == PluginKind(Kind.CODEC)
    assert type(None) in get_args(union)


def test_one_annotation_that_cannot_be_evaluated_spoils_no_other():
    def factory(good: "int", bad: "1 + None") -> None:  # type: ignore[valid-type]
        """Do nothing."""

    assert [p.annotation for p in plugin(factory).parameters] == [int, Any]


def test_a_partial_shows_the_documentation_of_its_function():
    def factory(a: int, b: int = 2) -> None:
        """Do nothing."""

    made = plugin(partial(factory, b=5))
    assert made.summary == "Do nothing."
    assert {p.name: p.default for p in made.parameters}["b"] == 5


def test_a_dataclass_without_a_docstring_has_no_summary():
    @dataclass
    class Config:
        x: int = 0

    assert plugin(Config).summary == ""
    assert [p.name for p in plugin(Config).parameters] == ["x"]
