"""The grammar of specs: what a text may say, and where it goes wrong."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import SpecError
from fl_plugins.spec import Spec, parse

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
