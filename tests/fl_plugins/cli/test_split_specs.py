"""How ``compare`` takes several specs out of one text."""

import pytest

from fl_plugins.cli.compare import split_specs
from fl_plugins.errors import SpecError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fedavg", ["fedavg"]),
        (" a ;b;; c(x=1; y)", ["a", "b", "c(x=1; y)"]),
        ("a(n='x;\\';') ; b(n=\"';\")", ["a(n='x;\\';')", 'b(n="\';")']),
        ("a(b(c=[1;2]);3);d", ["a(b(c=[1;2]);3)", "d"]),
    ],
)
def test_specs_are_split_at_semicolons_outside_brackets_and_quotes(text, expected):
    assert split_specs(text) == expected


@pytest.mark.parametrize("text", ["", "  ", ";;"])
def test_no_spec_at_all_is_an_error(text):
    with pytest.raises(SpecError, match="names none"):
        split_specs(text)
