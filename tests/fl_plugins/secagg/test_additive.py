"""Additive sharing over helpers: the sum is exact, and what anyone but all helpers sees is noise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_plugins.errors import (
    MessageFormatError,
    SecureAggregationError,
)
from fl_plugins.secagg import ClientPolicy, HelperSession, Tier
from fl_plugins.secagg.additive_messages import Attempt, ClientMessage, UnmaskRequest
from fl_plugins.secagg.keys import pair_key

from .helpers import HelpedFederation
from .masks import mask_words

TIERS = list(Tier)
HELPER = 90
Change = Callable[[Any], Any]


# -- The sum -------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    num_clients=st.integers(3, 9),
    num_helpers=st.integers(1, 4),
    tier=st.sampled_from(TIERS),
    num_bits=st.sampled_from([16, 32]),
    data=st.data(),
)
def test_the_sum_is_exact_whoever_drops_out(
    num_clients: int, num_helpers: int, tier: Tier, num_bits: int, data: st.DataObject
) -> None:
    ids = data.draw(
        st.lists(
            st.integers(1, 2**64 - 1),
            min_size=num_clients + num_helpers,
            max_size=num_clients + num_helpers,
            unique=True,
        )
    )
    clients, helpers = tuple(ids[:num_clients]), tuple(ids[num_clients:])
    silent = data.draw(st.sets(st.sampled_from(clients), max_size=num_clients - 3))
    federation = HelpedFederation(
        clients=clients, helpers=helpers, tier=tier, changes={"num_bits": num_bits, "length": 7}
    )
    total = federation.run(silent)
    assert total.survivors == tuple(sorted(set(clients) - silent))
    assert np.array_equal(total.vector, federation.expected(total.survivors))


def test_a_vector_longer_than_a_chunk_of_the_stream_is_summed_exactly() -> None:
    federation = HelpedFederation(changes={"length": 150_001, "num_bits": 16})
    assert np.array_equal(federation.run().vector, federation.expected(federation.clients))


def test_what_the_server_sees_of_one_client_is_uniform_and_the_plain_vector_is_not() -> None:
    length = 200_000
    vector = np.full(length, 3, "<u2")
    federation = HelpedFederation(changes={"length": length, "num_bits": 16}, vectors={1: vector})
    federation.take_vectors()

    def chi_squared(words: Any) -> float:
        counts = np.bincount(words >> 8, minlength=256)
        return float(((counts - length / 256) ** 2 / (length / 256)).sum())

    # 255 degrees of freedom: mean 255, standard deviation 22.6; six of them.
    assert chi_squared(federation.sent[1].vector) < 255 + 6 * 22.6
    assert chi_squared(vector) > 1e6, "the control"


def mask_of(federation: HelpedFederation, helper: int, client: int) -> Any:
    """Return one client's mask as whoever holds the helper's key computes it, from the primitives."""
    request = UnmaskRequest.from_bytes(federation.server.requests()[helper])
    [(advert, packet)] = [item for item in request.packets if item[0].node == client]
    transcript, sid = Attempt.from_bytes(request.attempt).transcript, federation.parameters.sid
    private = X25519PrivateKey.from_private_bytes(federation.helper(helper)._secret)
    shared = private.exchange(X25519PublicKey.from_public_bytes(advert.key))
    key = pair_key(shared, b"additive-seal", sid, (client, helper), transcript)
    bound = transcript + client.to_bytes(8, "big") + helper.to_bytes(8, "big")
    seed = AESGCM(key).decrypt(bytes(11) + bytes([client > helper]), packet, bound)
    assert len(seed) == 32
    mask_key = pair_key(seed, b"additive-mask", sid, (client, helper), transcript)
    return mask_words(mask_key, federation.parameters.length, federation.parameters.num_bits)


def test_the_server_with_all_helpers_but_one_is_left_with_the_honest_ones_mask_on_each_vector() -> None:
    federation = HelpedFederation(helpers=(90, 91, 92), changes={"length": 50_000, "num_bits": 16})
    federation.take_vectors()
    vector = federation.sent[1].vector
    assert vector is not None
    masks = {helper: mask_of(federation, helper, 1) for helper in federation.helpers}
    assert np.array_equal(vector - sum(masks.values()), federation.vectors[1]), "all of them see it"
    left = vector - masks[91] - masks[92] - federation.vectors[1]
    assert np.array_equal(left, masks[90])
    counts = np.bincount(left >> 8, minlength=256)
    assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 255 + 6 * 22.6


def test_every_seed_and_key_is_fresh() -> None:
    federation = HelpedFederation()
    requests = federation.take_keys()
    first, second = (federation.client(1, requests[1]) for _ in range(2))
    assert first.vector is not None
    assert second.vector is not None
    assert not (first.vector == second.vector).any()
    messages = [ClientMessage.from_bytes(reply.body) for reply in (first, second)]
    packets = [packet for message in messages for _, packet in message.packets]
    assert len({message.advert.key for message in messages}) == 2
    assert len(set(packets)) == 4


# -- Bytes ---------------------------------------------------------------------------------------------


def test_bytes_that_are_cut_off_or_too_many_are_refused_everywhere() -> None:
    federation = HelpedFederation()
    requests = federation.take_vectors()
    message = federation.sent[1].body
    readers: list[tuple[Callable[[bytes], Any], bytes]] = [
        (Attempt.from_bytes, UnmaskRequest.from_bytes(requests[90]).attempt),
        (ClientMessage.from_bytes, message),
        (UnmaskRequest.from_bytes, requests[90]),
        (lambda data: HelperSession.from_bytes(data, policy=ClientPolicy()), federation.saved[90]),
    ]
    for read, data in readers:
        read(data)
        for bad in (data[:-1], data + b"\0", b"", data[: len(data) // 2]):
            with pytest.raises(SecureAggregationError):
                read(bad)
    with pytest.raises(MessageFormatError, match="another version"):
        HelperSession.from_bytes(b"\2" + federation.saved[90][1:], policy=ClientPolicy())


def test_a_session_shows_no_secret() -> None:
    federation = HelpedFederation()
    federation.take_keys()
    session = federation.helper(90)
    assert repr(session) == "HelperSession(node=90, round=3, attempt=0, next=unmask)"
    assert session._secret.hex() not in repr(vars(session._attempt))
