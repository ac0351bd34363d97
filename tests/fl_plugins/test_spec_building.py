"""From a spec to calls: what fits a parameter, what is refused, and that all is checked before any call."""

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypedDict, Unpack

import pytest

from fl_plugins.errors import ConfigError, ConfigTypeError, SpecError, UnknownPluginError
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.spec import Spec, build, parse

CALLS: list[str] = []


class Shrinker(Protocol):
    def shrink(self) -> None: ...


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


Meters = NewType("Meters", float)
Nested = Annotated[Shrinker | None, PluginKind(Kind.CODEC)]


class Common(TypedDict, total=False):
    retries: int
    backup: Nested


@dataclass(frozen=True, kw_only=True)
class Everything:
    flag: bool = False
    count: int = 0
    ratio: float = 0.0
    text: str = ""
    mode: Literal["max", "min", 3] = "max"
    colour: Colour = Colour.RED
    maybe: int | None = 5
    either: float | int | str = 0
    old: Optional[float] = None  # noqa: UP045  third parties still write it
    length: Meters = Meters(0.0)
    items: list[int] = field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    many: Sequence[float] = ()
    bare: tuple = ()  # type: ignore[type-arg]
    anything: Any = None
    unknown: Shrinker | None = None
    codec: Nested = None
    codecs: tuple[Annotated[Shrinker, PluginKind(Kind.CODEC)], ...] = ()
    all_codecs: Annotated[list[Shrinker], PluginKind(Kind.CODEC)] = field(default_factory=list)
    codec_or_level: Annotated[Shrinker | float, PluginKind(Kind.CODEC)] = 0.0
    codec_text: Annotated[str | Shrinker, PluginKind(Kind.CODEC)] = "inner"
    codec_spec: Annotated[Spec | None, PluginKind(Kind.CODEC)] = None


@pytest.fixture(autouse=True)
def plugins(install) -> Iterator[None]:
    CALLS.clear()
    register(Kind.CODEC, "everything")(Everything)

    @register(Kind.CODEC, "inner")
    def inner(level: int = 1, *, task: str = "none") -> tuple[str, int, str]:
        CALLS.append(f"inner {level}")
        return ("inner", level, task)

    @register(Kind.CODEC, "needs_rate")
    def needs_rate(rate: float, power: int = 2) -> tuple[float, int]:
        CALLS.append("needs_rate")
        return (rate, power)

    @register(Kind.CODEC, "chain")
    def chain(*stages: Annotated[Shrinker, PluginKind(Kind.CODEC)], repeat: int = 1) -> tuple[Any, ...]:
        CALLS.append("chain")
        return (*stages, repeat)

    @register(Kind.CODEC, "options")
    def options(first: int, second: int = 2, **common: Unpack[Common]) -> tuple[Any, ...]:
        return (first, second, common)

    @register(Kind.CODEC, "open")
    def open_(first: int, /, last: int = 3, **anything: Any) -> tuple[Any, ...]:
        return (first, last, anything)

    @register(Kind.CODEC, "picky")
    def picky(level: int) -> None:
        raise ConfigError(f"picky: level={level}, but I like no number.")


def make(text: str, **provided: Any) -> Any:
    return build(Kind.CODEC, text, **provided)


INNER = ("inner", 1, "none")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("flag=True", True),
        ("count=-3", -3),
        ("ratio=0.5", 0.5),
        ("ratio=2", 2.0),
        ("ratio=1e999", math.inf),
        ("text='2'", "2"),
        ("mode='min'", "min"),
        ("mode=3", 3),
        ("colour='blue'", Colour.BLUE),
        ("maybe=None", None),
        ("maybe=7", 7),
        ("either=3", 3),
        ("either=3.0", 3.0),
        ("either='3'", "3"),
        ("old=3", 3.0),
        ("length=3", 3.0),
        ("items=[1, 2]", [1, 2]),
        ("items=(1,)", [1]),
        ("pair=(1, 'a')", (1, "a")),
        ("many=[1, 2.5]", (1.0, 2.5)),
        ("bare=(1, 'a', [None])", (1, "a", (None,))),
        ("anything=[1, 'x']", (1, "x")),
        ("unknown=3", 3),
        ("codec=None", None),
        ("codec=inner", INNER),
        ("codec=inner(4)", ("inner", 4, "none")),
        ("codec='inner(level=4)'", ("inner", 4, "none")),
        ("codecs=(inner, 'inner')", (INNER, INNER)),
        ("codecs=[]", ()),
        ("all_codecs=[inner]", [INNER]),
        ("codec_or_level=2", 2.0),
        ("codec_or_level=inner", INNER),
        ("codec_text=inner(level=4)", "inner(level=4)"),
        ("codec_text='inner( 4 )'", "inner(4)"),
        ("codec_text=needs-rate", "needs_rate"),
        ("codec_spec=needs_rate(power=3)", parse("needs_rate(power=3)")),
        ("codec_spec='inner'", parse("inner")),
    ],
)
def test_a_value_that_fits_is_handed_over_as_the_annotation_says(argument, expected):
    value = getattr(make(f"everything({argument})"), argument.partition("=")[0])
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("argument", "error", "allowed"),
    [
        ("flag=1", ConfigTypeError, "takes bool"),
        ("count=True", ConfigTypeError, "takes int"),
        ("count=2.0", ConfigTypeError, "takes int"),
        ("count='2'", ConfigTypeError, "takes int"),
        ("count=None", ConfigTypeError, "takes int"),
        ("ratio=True", ConfigTypeError, "takes float"),
        ("ratio='1'", ConfigTypeError, "takes float"),
        ("text=1", ConfigTypeError, "takes str"),
        ("text=('a',)", ConfigTypeError, "takes str"),
        ("text=inner", ConfigTypeError, "not declared as a plugin"),
        ("mode='Max'", ConfigError, "takes one of 'max', 'min', 3"),
        ("mode=True", ConfigTypeError, "takes one of 'max', 'min', 3"),
        ("mode=max", ConfigTypeError, "quote it"),
        ("colour='green'", ConfigError, "takes one of 'red', 'blue'"),
        ("maybe='x'", ConfigTypeError, "takes int or None"),
        ("maybe=True", ConfigTypeError, "takes int or None"),
        ("either=True", ConfigTypeError, "takes float or int or str"),
        ("items=1", ConfigTypeError, "takes a list of int"),
        ("items='12'", ConfigTypeError, "takes a list of int"),
        ("items=[1, 'x']", ConfigTypeError, "takes a list of int"),
        ("items=[True]", ConfigTypeError, "takes a list of int"),
        ("pair=(1,)", ConfigTypeError, "2 of them"),
        ("pair=('a', 1)", ConfigTypeError, "takes a list of int, str"),
        ("many='abc'", ConfigTypeError, "takes a list of float"),
        ("anything=inner", ConfigTypeError, "takes any literal. It is not declared as a plugin"),
        ("anything=(inner,)", ConfigTypeError, "not declared as a plugin"),
        ("unknown=inner", ConfigTypeError, "not declared as a plugin"),
        ("codec=3", ConfigTypeError, "takes a plugin of kind 'codec' or None"),
        ("codecs=inner", ConfigTypeError, "takes a list of a plugin of kind 'codec'."),
        ("codecs=(3,)", ConfigTypeError, "takes a list of a plugin of kind 'codec'"),
        ("codec_or_level=None", ConfigTypeError, "takes a plugin of kind 'codec' or float"),
        ("codec_text=3", ConfigTypeError, "takes a plugin of kind 'codec'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_is_allowed(argument, error, allowed):
    name, _, value = argument.partition("=")
    with pytest.raises(error, match="codec 'everything'") as caught:
        make(f"everything({argument})")
    assert type(caught.value) is error
    assert allowed in str(caught.value)
    assert f"{name}=" in str(caught.value)
    assert value.partition("(")[0].strip("'[]") in str(caught.value)


def test_a_nested_error_names_the_nested_plugin():
    with pytest.raises(ConfigTypeError, match="codec 'inner': level='x'"):
        make("everything(codec=inner(level='x'))")
    with pytest.raises(ConfigTypeError, match="codec 'inner': level='x'"):
        make("everything(codec_text=inner(level='x'))")
    with pytest.raises(UnknownPluginError, match="'inn_er'"):
        make("everything(codec_text='inn-er')")
    with pytest.raises(SpecError):
        make("everything(codec='inner(')")


def test_an_unknown_parameter_lists_the_nearest_and_the_allowed_ones():
    with pytest.raises(ConfigError, match=r"needs_rate'.*did you mean power\? It takes rate, power"):
        make("needs_rate(rate=1, powr=2)")


def test_a_missing_parameter_is_named_with_its_type():
    with pytest.raises(ConfigError, match=r"write needs_rate\(rate=...\), where rate takes float"):
        make("needs_rate(power=3)")


def test_positions_follow_the_signature():
    assert make("needs_rate(1, 3)") == (1.0, 3)
    assert make("needs_rate(1)") == (1.0, 2)
    assert make("chain(inner(1), inner(2), repeat=3)") == (("inner", 1, "none"), ("inner", 2, "none"), 3)
    assert make("chain") == (1,)
    with pytest.raises(ConfigError, match=r"3 arguments without .* at most 2 \(rate, power\)"):
        make("needs_rate(1, 2, 3)")
    with pytest.raises(ConfigError, match="takes none"):
        make("everything(1)")
    with pytest.raises(ConfigError, match="rate is given twice"):
        make("needs_rate(1, rate=2)")
    with pytest.raises(ConfigTypeError, match="'chain': stages="):
        make("chain(3)")
    with pytest.raises(ConfigError, match="no parameter 'stages'"):
        make("chain(stages=(inner,))")


def test_the_keys_of_a_typed_dict_are_parameters_like_any_other():
    assert make("options(1, retries=4, backup=inner)") == (1, 2, {"retries": 4, "backup": INNER})
    assert make("options(second=5, first=1)") == (1, 5, {})
    with pytest.raises(ConfigTypeError, match="retries="):
        make("options(1, retries=0.5)")
    with pytest.raises(ConfigError, match="did you mean retries"):
        make("options(1, retrys=4)")


def test_a_factory_that_takes_any_keyword_gets_it():
    assert make("open(1, more=[2], last=4)") == (1, 4, {"more": (2,)})
    assert make("open(first=1)") == (1, 3, {})
    with pytest.raises(ConfigTypeError, match="more=inner"):
        make("open(1, more=inner)")


def test_the_program_gives_arguments_to_every_plugin_that_has_them_and_to_no_other():
    assert make("inner", task="digits") == ("inner", 1, "digits")
    assert make("chain(inner, needs_rate(1))", task="digits") == (("inner", 1, "digits"), (1.0, 2), 1)
    assert make("open(1)", task="digits") == (1, 3, {})
    with pytest.raises(ConfigError, match="task is given by the program; leave it out"):
        make("chain(inner(task='x'))", task="digits")


def test_defaults_are_for_the_outermost_plugin_and_the_text_overrides_them():
    defaults = {"rate": 0.5, "unheard_of": 1}
    assert make("needs_rate", defaults=defaults) == (0.5, 2)
    assert make("needs_rate(rate=3)", defaults=defaults) == (3.0, 2)
    with pytest.raises(ConfigError, match="rate not given"):
        make("chain(needs_rate)", defaults=defaults)


@pytest.mark.parametrize(
    "text",
    [
        "chain(inner, needs_rate)",
        "chain(inner, inner(level='x'))",
        "chain(inner, no_such_codec)",
        "chain(inner, repeat=0.5)",
        "chain(inner, everything(count='x'))",
    ],
)
def test_nothing_is_called_before_everything_is_checked(text):
    with pytest.raises((ConfigError, UnknownPluginError)):
        make(text)
    assert CALLS == []


def test_every_factory_is_called_once_and_inner_ones_first():
    make("chain(inner(1), inner(2))")
    assert CALLS == ["inner 1", "inner 2", "chain"]
    CALLS.clear()
    make("everything(codec_text=inner(3), codec_spec=inner(4))")
    assert CALLS == []


def test_an_error_of_the_factory_passes_through():
    with pytest.raises(ConfigError, match=r"^picky: level=3, but I like no number\.$"):
        make("picky(3)")


def test_a_spec_object_builds_like_its_text():
    assert build(Kind.CODEC, Spec("needs-rate", args=(1,), kwargs={"power": 4})) == (1.0, 4)
    assert build(Kind.CODEC, parse("inner(2)"))[1] == 2
