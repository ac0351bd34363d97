"""The grammar, the checks and the calls."""

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypedDict, Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import ConfigError, ConfigTypeError, SpecError, UnknownPluginError
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.spec import Spec, build, parse

# -- grammar ---------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name not in {"if", "in", "is", "or", "as", "and", "def", "del", "for", "not", "try", "from"}
)
OWNERS = st.none() | st.from_regex(r"[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True).filter(
    lambda owner: "--" not in owner
)
LITERALS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)


def specs_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Spec]:
    args = st.lists(values, max_size=3).map(tuple)
    return st.builds(Spec, NAMES, OWNERS, args, st.dictionaries(NAMES, values, max_size=3))


VALUES = st.recursive(
    LITERALS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | specs_of(inner),
    max_leaves=8,
)
SPECS = specs_of(VALUES)


@given(SPECS)
def test_the_canonical_text_reads_back_as_the_same_spec(spec):
    again = parse(str(spec))
    assert again == spec
    assert hash(again) == hash(spec)
    assert str(again) == str(spec)
    assert (again.name, again.owner) == (spec.name, spec.owner)
    assert repr((again.args, again.kwargs)) == repr((spec.args, spec.kwargs))


@given(st.text(alphabet="kf1.-_:'\"\\()[]=, \n#*é{}lambdif0x", max_size=40))
def test_any_text_is_a_spec_or_a_spec_error(text):
    try:
        spec = parse(text)
    except SpecError:
        return
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("krum", "krum"),
        ("krum()", "krum"),
        ("  krum ( num_byzantine = 2 ) ", "krum(num_byzantine=2)"),
        ("trimmed-mean(fraction=0.2)", "trimmed_mean(fraction=0.2)"),
        ("f(a=-1)", "f(a=-1)"),
        ("f(a=-1e-3, b=1e-3, c=.5)", "f(a=-0.001, b=0.001, c=0.5)"),
        ("f(-1, - 2.0)", "f(-1, -2.0)"),
        ("krum(num-byzantine=2)", "krum(num_byzantine=2)"),
        ("my-dist:my-rule(x=1)", "my-dist:my_rule(x=1)"),
        ("My.Dist:my_rule", "my-dist:my_rule"),
        ("3d-plugins:rule", "3d-plugins:rule"),
        ("f(b=1, a=2)", "f(a=2, b=1)"),
        ("f([1, (2,), []])", "f((1, (2,), ()))"),
        ("chain(arc(), trimmed_mean(f=2))", "chain(arc, trimmed_mean(f=2))"),
        ("f(x='a-b:c(d)')", "f(x='a-b:c(d)')"),
        ("f('é', y=a-b:c(d=1))", "f('é', y=a-b:c(d=1))"),
        (r"f('it\'s \\ \n')", r'f("it\'s \\ \n")'.replace(r"\'", "'")),
        ("f(1e999, -1e999)", "f(1e999, -1e999)"),
        ("f(\n  a=1,\n  b=g(\n    2),\n)\n", "f(a=1, b=g(2))"),
        ("f(0x10, 1_000)", "f(16, 1000)"),
        ("f(True, False, None)", "f(True, False, None)"),
    ],
)
def test_the_grammar_accepts(text, canonical):
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("os.system('x')", 3, r"'\.' has no meaning"),
        ("f(a.b)", 4, r"'\.' has no meaning"),
        ("f'{x}'", 1, "only plain"),
        ("f(a=f'{x}')", 5, "only plain"),
        ("f(a=b'x')", 5, "only plain"),
        ("f(a='''x''')", 5, "only plain"),
        ("f([x for x in y])", 3, "nothing to compute"),
        ("f(x for x in y)", 2, "nothing to compute"),
        ("f(1 + 2)", 3, "nothing to compute"),
        ("f(a - b)", 3, "nothing to compute"),
        ("f(a=not True)", 5, "nothing to compute"),
        ("f(a=1 if b else 2)", 5, "nothing to compute"),
        ("f(a=-True)", 5, "nothing to compute"),
        ("f(a=--1)", 5, "nothing to compute"),
        ("f(a=-'x')", 5, "nothing to compute"),
        ("f(a=b[0])", 5, "nothing to compute"),
        ("f(*a)", 3, "no meaning"),
        ("f(**a)", 3, "no meaning"),
        ("f({1: 2})", 3, "no meaning"),
        ("f(a:=1)", 4, "no meaning"),
        ("f(lambda: 1)", 9, "no meaning"),
        ("f(1) # why", 6, "no meaning"),
        ("f; g", 2, "no meaning"),
        ("f(@x)", 3, "no meaning"),
        ("f(`x`)", 3, "no meaning"),
        ("f(ｆ=1)", 3, "no meaning"),
        ("f('x', é=1)", 8, "no meaning"),
        ("f(a=1j)", 5, "not a literal"),
        ("f(a=...)", 5, "no meaning"),
        ("f(a=1, a=2)", 8, "'a' is given twice"),
        ("f(a-b=1, a_b=2)", 10, "'a_b' is given twice"),
        ("f(d:a=1)", 3, "has no owner"),
        ("f(a=1, 2)", 9, "positional argument follows keyword"),
        ("f(1 2)", 3, "comma"),
        ("f(1", 2, "never closed"),
        ("f 1", 3, "invalid syntax"),
        ("f(a='x)", 5, "not closed"),
        (r"f(a='\d')", 5, "unknown backslash"),
        ("f()()", 1, "only a plugin's name can be called"),
        ("'f'()", 1, "only a plugin's name can be called"),
        ("1", 1, "a plugin's name is needed"),
        ("'krum'", 1, "a plugin's name is needed"),
        ("(f, g)", 1, "a plugin's name is needed"),
        ("None", 1, "a plugin's name is needed"),
        ("f(a=123456789012345678901234567890)", 5, "at most 64 bits"),
        ("f(" * 21 + ")" * 21, 42, "more than 20 brackets"),
        ("f('é', g.h)", 9, r"'\.' has no meaning"),
        ("f('é', 1 + 2)", 8, "nothing to compute"),
        ("  f(1 + 2)", 5, "nothing to compute"),
    ],
)
def test_the_grammar_refuses_and_says_where(text, position, reason):
    with pytest.raises(SpecError, match=f"character {position} .*{reason}"):
        parse(text)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_text_is_refused_with_an_example(text):
    with pytest.raises(SpecError, match=r"empty; write for example 'krum\(num_byzantine=2\)'"):
        parse(text)


@pytest.mark.parametrize("text", ["-" * 4000 + "1", "not " * 1000 + "f", "f(" + "-" * 4000 + "1)"])
def test_a_text_that_python_cannot_nest_is_a_spec_error(text):
    with pytest.raises(SpecError):
        parse(text)


def test_long_and_deep_texts_are_refused_and_the_limits_themselves_accepted():
    assert parse("f('" + "x" * 4091 + "')").name == "f"
    with pytest.raises(SpecError, match="4097 characters, but at most 4096"):
        parse("f('" + "x" * 4092 + "')")
    assert parse("f(" * 20 + "1" + ")" * 20).name == "f"
    with pytest.raises(SpecError, match="canonical text has more than 4096"):
        parse("f(" + "1e20," * 800 + ")")
    deep = Spec("f", args=(1,))
    for _ in range(19):
        deep = Spec("f", args=(deep,))
    with pytest.raises(SpecError, match="more than 20 brackets"):
        Spec("f", args=(deep,))


@pytest.mark.parametrize("value", [math.nan, 1j, b"x", {"a": 1}, {1}, object(), 2**65, [math.nan]])
def test_a_spec_made_in_python_holds_only_what_a_text_can_say(value):
    with pytest.raises(SpecError):
        Spec("f", args=(value,))


@pytest.mark.parametrize("name", ["", "a b", "a.b", "1a", "lambda", "None", "é", "f(1)"])
def test_a_spec_made_in_python_needs_proper_names(name):
    with pytest.raises(SpecError, match="is not a name"):
        Spec(name)
    with pytest.raises(SpecError, match="is not a name"):
        Spec("f", kwargs=((name, 1),))


@pytest.mark.parametrize("text", [None, 3, b"krum", Spec("krum")])
def test_only_text_is_parsed(text):
    with pytest.raises(SpecError, match="is not a text"):
        parse(text)


def test_specs_that_python_would_call_equal_differ():
    assert len({parse("f(a=1)"), parse("f(a=True)"), parse("f(a=1.0)")}) == 3
    assert parse("f(a=1, b=2)") == parse("f(b=2, a=1)")
    assert parse("f([1])") == parse("f((1,))")
    assert parse("f") != "f"


# -- building --------------------------------------------------------------------------------------------

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
