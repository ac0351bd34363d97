"""docs/privacy-defects.md: every test that it names is there, and every test that names a defect is in it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "privacy-defects.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| .*\| `(\S+)::(test_\w+)` \|$", PAGE, re.MULTILINE)
OF_PRIVACY = ("strategies", "clients", "secure", "fl_plugins/privacy", "fl_plugins/auditing")
"""Folders of tests in which D… is a number of this list; elsewhere it is one of another."""

# dp.md numbers its defects up to 26, leaves out 14, 20 and 21, and has eight without one; flower.md A twelve.
NUMBERS = {f"D{number}" for number in range(1, 27)} - {"D7", "D14", "D20", "D21"} | {"D7a", "D7b"}
ALIASES = {f"A{number}" for number in range(1, 13)}


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("defect", "path", "name"), ROWS)
def test_the_test_is_there(defect: str, path: str, name: str) -> None:
    assert name in functions_of(ROOT / path), defect


def test_no_defect_is_without_a_test() -> None:
    listed = {number for defect, _, _ in ROWS for number in defect.split(", ")}
    assert listed >= NUMBERS | ALIASES
    assert len(ROWS) == PAGE.count("\n| ") - 1, "a line that is no row"


def test_no_test_of_a_defect_is_missing_in_the_table() -> None:
    named = {(path, name) for _, path, name in ROWS}
    found = {
        (str(path.relative_to(ROOT)), name)
        for folder in OF_PRIVACY
        for path in (ROOT / "tests" / folder).rglob("test_*.py")
        for name in functions_of(path)
        if re.match(r"test_(d\d+|a10)_", name)
    }
    assert len(found) > 20
    assert found <= named
