"""The tests that the documentation names for weaknesses and attacks are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WRITTEN = (
    (ROOT / "docs" / "secure-aggregation.md").read_text(encoding="utf-8").partition("## What must not")[2]
)
DEFINED = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
}


def rows() -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in WRITTEN.splitlines() if re.match(r"\| [^-]", line)]


@pytest.mark.parametrize(
    "cells", [row for row in rows() if "test" not in row], ids=lambda cells: cells[0][:30]
)
def test_every_weakness_and_every_attack_has_tests_that_exist(cells: list[str]) -> None:
    named = re.findall(r"`(\w+)`", cells[-1])
    assert named
    assert set(named) <= DEFINED


def test_all_eighteen_weaknesses_are_there() -> None:
    assert [row[0] for row in rows() if row[0].isdecimal()] == [str(number) for number in range(1, 19)]
