"""Nobody waits for a deadline: the clock of exchanges jumps when all that is outstanding is lost."""

import pytest

from strategies import exchange

from .federation import CLOCK


@pytest.fixture(autouse=True)
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "time", CLOCK)
