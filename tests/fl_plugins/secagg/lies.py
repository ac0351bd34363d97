"""One honest client of seven, to whom a server lies; its requests, and that it refuses and forgets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fl_plugins.errors import SecureAggregationError, StageError
from fl_plugins.secagg import Stage, Tier
from fl_plugins.secagg.messages import Advert, MaskRequest, ShareRequest

from .federation import Federation, parameters

NODES = (1, 2, 3, 4, 5, 6, 7)
VICTIM = 3


def of_seven(tier: Tier = Tier.MALICIOUS, **changes: Any) -> Federation:
    return Federation(parameters(len(NODES), tier=tier, **changes), NODES)


def assert_refused(
    federation: Federation, stage: Stage, request: bytes, error: type[SecureAggregationError], match: str
) -> SecureAggregationError:
    """Send the victim a request; it must refuse, and have forgotten everything."""
    session = federation.restore(VICTIM)
    with pytest.raises(error, match=match) as caught:
        session.answer(stage, request)
    assert session.stage is Stage.CLOSED
    assert session._memory == type(session._memory)()
    with pytest.raises(StageError):
        session.answer(stage, request)
    with pytest.raises(StageError):
        session.to_bytes()
    return caught.value


def share_request(federation: Federation) -> ShareRequest:
    return ShareRequest.from_bytes(federation.server.requests()[VICTIM])


def with_adverts(request: ShareRequest, change: Callable[[list[Advert]], list[Advert]]) -> bytes:
    adverts = change([Advert.from_bytes(item) for item in request.adverts])
    return replace(request, adverts=tuple(advert.to_bytes() for advert in adverts)).to_bytes()


def put_in(node: int, **changes: Any) -> Callable[[list[Advert]], list[Advert]]:
    return lambda adverts: [replace(a, **changes) if a.node == node else a for a in adverts]


def mask_request(federation: Federation) -> MaskRequest:
    return MaskRequest.from_bytes(federation.server.requests()[VICTIM])
