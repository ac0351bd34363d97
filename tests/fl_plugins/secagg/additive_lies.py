"""Falsified requests to a helper or a client of additive sharing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fl_plugins.secagg import HelperSession, Stage
from fl_plugins.secagg.additive_messages import Attempt, UnmaskRequest

from .helpers import HelpedFederation

HELPER = 90
LOW_ORDER = bytes(32)
Change = Callable[[Any], Any]


def asked(federation: HelpedFederation, change: Change, *, helper: int = HELPER) -> HelperSession:
    """Ask a helper to open a falsified request; return the session, after the error that must come."""
    request = UnmaskRequest.from_bytes(federation.take_vectors()[helper])
    session = federation.helper(helper)
    try:
        session.answer(Stage.UNMASK, change(request).to_bytes())
    finally:
        assert session.stage is Stage.CLOSED
        assert session._secret == b""
    return session


def packets(change: Change) -> Change:
    return lambda request: replace(request, packets=change(list(request.packets)))


def to_client(change: Change, federation: HelpedFederation | None = None, **given: Any) -> None:
    """Give a client a falsified request."""
    federation = federation or HelpedFederation()
    request = federation.take_keys()[1]
    federation.client(1, change(Attempt.from_bytes(request)).to_bytes(), **given)


def adverts(change: Change) -> Change:
    return lambda a: replace(a, adverts=tuple(change(list(a.adverts))))
