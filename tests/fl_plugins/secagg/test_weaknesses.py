"""The 18 weaknesses of Flower's SecAgg+ that we know of: each is refused here, or absent.

Tests carry their numbers. Where Flower's functions run without a federation they are the control: the same
test shows the weakness in them.
"""

from typing import Any

import numpy as np
import pytest
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from fl_plugins.errors import (
    EncodingError,
    MessageFormatError,
    PolicyViolationError,
    RoundAbortedError,
    SecureAggregationError,
    SignatureError,
    StageError,
    SurvivorError,
)
from fl_plugins.secagg import ClientPolicy, FixedPoint, Stage, Tier
from fl_plugins.secagg.messages import Advert, UnmaskReply, UnmaskRequest

from .federation import STAGES, Federation, parameters, until
from .masks import mask_words

NODES = (1, 2, 3, 4, 5, 6, 7)


def _folded(seed: bytes) -> bytes:
    """Return the eight 32-bit words of a seed, exclusive-ored: all that Flower's masks depend on."""
    return np.bitwise_xor.reduce(np.frombuffer(seed, "<u4")).tobytes()


def _flower_mask(seed: bytes, length: int) -> Any:
    return pseudo_rand_gen(seed, 2**32, [(length,)])[0]


def _same_fold(seed: bytes, number: int) -> bytes:
    """Return another seed with the same fold."""
    words = np.frombuffer(seed, "<u4").copy()
    words[:2] ^= np.uint32(number)
    return words.tobytes()


def test_1_masks_depend_on_all_256_bits_of_their_key() -> None:
    """The published break tries all 2^32 folded seeds. Here a fold tells nothing about the mask."""
    seed = np.random.default_rng(0).bytes(32)
    flower = _flower_mask(seed, 50)
    ours = mask_words(seed, 50, 32)
    for number in range(1, 200):
        other = _same_fold(seed, number)
        assert _folded(other) == _folded(seed)
        np.testing.assert_array_equal(_flower_mask(other, 50), flower)  # the control
        assert np.count_nonzero(mask_words(other, 50, 32) == ours) <= 2


def _break_by_folding(masked: Any, mask_of: Any, known_entries: int, space: int) -> int | None:
    """Try every folded seed below ``space``; the update's first entries are known to be zero."""
    for folded in range(space):
        mask = mask_of(folded.to_bytes(4, "little") + bytes(28))
        if not (masked[:known_entries] - mask[:known_entries]).any():
            return folded
    return None


def test_1_the_break_of_a_late_reply_recovers_flowers_update_and_not_ours() -> None:
    """The script of the break, with a seed whose fold is below 2^11 so that it ends in a second."""
    update = np.array([0, 0, 0, 0, 11, 22, 33, 44], np.int64)
    seed = np.random.default_rng(1).bytes(28)
    fold = np.frombuffer(_folded(seed + bytes(4)), "<u4")[0] ^ np.uint32(1_234)
    seed += fold.tobytes()
    masked = update + _flower_mask(seed, 8)
    found = _break_by_folding(masked, lambda s: _flower_mask(s, 8), 4, 2_048)
    assert found == 1_234
    np.testing.assert_array_equal(masked - _flower_mask(found.to_bytes(4, "little") + bytes(28), 8), update)
    ours = update.astype("<u4") + mask_words(seed, 8, 32)
    assert _break_by_folding(ours, lambda s: mask_words(s, 8, 32), 4, 2_048) is None


def test_2_a_server_cannot_ask_for_so_few_masks_that_they_can_be_searched() -> None:
    """Three shares meant two 28-bit masks. The degree is a public function, each mask's key has 256 bits."""
    federation = until(Federation(parameters(100), tuple(range(1, 101))), Stage.SHARE)
    body = federation.server.requests()[1]
    with pytest.raises(PolicyViolationError, match="degree 3 and threshold 6, but 100 nodes have degree 11"):
        federation.restore(1).answer(Stage.SHARE, (3).to_bytes(4, "big") + body[4:])


def _linear_complexity(bits: list[int]) -> int:
    """Return the length of the shortest linear recurrence (Berlekamp and Massey, over GF(2))."""
    current, previous, length, shift, window = 1, 1, 0, 1, 0
    for at, bit in enumerate(bits):
        window = window << 1 | bit  # bit i is the i-th last one
        if (current & window).bit_count() % 2:
            changed = current ^ previous << shift
            if 2 * length <= at:
                previous, length, shift = current, at + 1 - length, 0
            current = changed
        shift += 1
    return length


def test_3_lowest_bits_of_masks_satisfy_no_short_linear_recurrence() -> None:
    """Mersenne Twister's do, of order 19937, however many masks are added; then one part gives the rest."""
    length = 41_000
    seeds = [bytes([i]) * 31 + bytes([7 * i]) for i in range(1, 4)]
    flower = sum(_flower_mask(seed, length) for seed in seeds) & 1
    ours = sum(mask_words(seed, length, 32) for seed in seeds) & 1
    assert _linear_complexity(flower.tolist()) <= 19_937  # the control
    assert abs(_linear_complexity(ours.tolist()) - length / 2) < 50


def test_4_masks_take_every_value_and_the_server_does_not_choose_their_range() -> None:
    counts = np.bincount(mask_words(bytes(range(32)), 2_000_000, 16), minlength=2**16)
    assert counts[-1] > 0
    assert counts.min() > 0
    assert pseudo_rand_gen(bytes(32), 2, [(100,)])[0].max() == 0  # the control: mod_range=2 masks nothing
    values = parameters(7).to_bytes().replace(b'"num_bits":32', b'"num_bits":2')
    with pytest.raises(MessageFormatError, match="16 or 32 bits"):
        Federation(parameters(7), NODES).begin(1, values)


def test_5_both_shares_of_a_node_cannot_even_be_asked_for() -> None:
    federation = until(Federation(parameters(7), NODES), Stage.UNMASK)
    session = federation.restore(1)
    reply = UnmaskReply.from_bytes(session.answer(Stage.UNMASK, federation.server.requests()[1]).body)
    assert not set(reply.seed_shares) & set(reply.key_shares)
    with pytest.raises(StageError):
        session.answer(Stage.UNMASK, UnmaskRequest(survivors=(1, 2, 3, 4, 5)).to_bytes())


def test_6_a_lone_victim_or_a_threshold_of_one_is_refused() -> None:
    federation = Federation(parameters(2), (1, 2))
    with pytest.raises(PolicyViolationError, match="min_clients=2, but this node wants >= 3"):
        federation.run()


def test_7_sybils_are_refused_where_a_roster_says_who_may_take_part() -> None:
    federation = Federation(parameters(7, tier=Tier.MALICIOUS), NODES)
    listed = frozenset(federation.identities[node].public for node in (1, 2, 3))
    federation.policy = ClientPolicy(roster=listed)
    requests = federation.server.requests()
    adverts = {node: federation.answer(node, Stage.ADVERTISE, requests[node]).body for node in (1, 2, 3)}
    federation.policy = ClientPolicy(roster=frozenset(i.public for i in federation.identities.values()))
    adverts |= {node: federation.answer(node, Stage.ADVERTISE, requests[node]).body for node in (4, 5, 6, 7)}
    for node, body in adverts.items():
        federation.server.receive(node, body)
    federation.server.advance()
    federation.policy = ClientPolicy(roster=listed)
    with pytest.raises(SignatureError, match="node 4 has an identity that is not in this node's roster"):
        federation.restore(1).answer(Stage.SHARE, federation.server.requests()[1])


def test_8_a_node_named_twice_does_not_count_twice() -> None:
    federation = until(Federation(parameters(7), NODES), Stage.UNMASK)
    request = UnmaskRequest(survivors=(1, 2, 3, 3, 3, 3, 3)).to_bytes()
    with pytest.raises(SurvivorError, match="distinct"):
        federation.restore(1).answer(Stage.UNMASK, request)


def test_9_survivors_are_confirmed_before_anything_is_unmasked() -> None:
    federation = until(Federation(parameters(7, tier=Tier.MALICIOUS), NODES), Stage.CONFIRM)
    with pytest.raises(StageError, match="confirm is what it answers next"):
        federation.restore(1).answer(Stage.UNMASK, UnmaskRequest(survivors=NODES).to_bytes())


def test_10_no_weight_and_no_metric_is_sent_in_clear() -> None:
    """What leaves a client besides the masked vector has the same length whatever it holds."""
    encoding = FixedPoint(
        num_bits=32, cohort=7, clip=1.0, max_weight=2.0**40, num_entries=3, metrics={"loss": 9.0}
    )
    lengths = []
    for weight in (1.0, 2.0**40):
        words = encoding.encode([np.zeros(3)], weight=weight, metrics={"loss": weight / 2**40}).words
        federation = Federation(
            parameters(7, length=encoding.length), NODES, vectors={node: words.copy() for node in NODES}
        )
        sent: list[tuple[int, int]] = []

        def note(node: int, reply: Any, sent: list[tuple[int, int]] = sent) -> Any:
            sent.append((len(reply.body), 0 if reply.vector is None else reply.vector.nbytes))
            return reply

        result = federation.run(tamper=note)
        assert encoding.decode(result.vector, 7).weight == pytest.approx(7 * weight)
        lengths.append(sent)
    assert lengths[0] == lengths[1]


def test_11_secrets_are_gone_when_they_are_no_longer_needed() -> None:
    federation = until(Federation(parameters(7), NODES), Stage.SHARE)
    memory = federation.restore(1)._memory
    secrets = [memory.packet_secret, memory.mask_secret, memory.seed, federation.vectors[1].tobytes()]
    assert all(secret in federation.saved[1] for secret in secrets)  # the control
    federation.play_stage()
    assert secrets[0] not in federation.saved[1]
    federation.play_stage()
    assert not any(secret in federation.saved[1] for secret in secrets)
    session = federation.restore(1)
    session.answer(Stage.UNMASK, federation.server.requests()[1])
    assert session._memory == type(session._memory)()


@pytest.mark.parametrize("stage", STAGES)
def test_12_a_dropout_in_any_stage_does_not_lose_the_round(stage: Stage) -> None:
    federation = Federation(parameters(10), tuple(range(1, 11)))
    result = federation.run({stage: {4}})
    np.testing.assert_array_equal(result.vector, federation.expected(result.survivors))


@pytest.mark.parametrize("num_clients", [4, 5, 20, 21, 66, 67])
def test_13_odd_and_even_numbers_of_clients_and_neighbors_work(num_clients: int) -> None:
    federation = Federation(parameters(num_clients), tuple(range(1, num_clients + 1)))
    result = federation.run({Stage.MASK: {2}})
    np.testing.assert_array_equal(result.vector, federation.expected(result.survivors))


def test_14_a_reconstructed_secret_that_was_not_advertised_is_not_used() -> None:
    federation = until(Federation(parameters(7), NODES), Stage.MASK)
    federation.play_stage({7})
    for node, body in federation.server.requests().items():
        reply = UnmaskReply.from_bytes(federation.answer(node, Stage.UNMASK, body).body)
        wrong = {7: bytes(1) + bytes([node]) * 32}
        federation.server.receive(
            node, UnmaskReply(seed_shares=reply.seed_shares, key_shares=wrong).to_bytes()
        )
    with pytest.raises(RoundAbortedError, match="node 7's masking key give what it advertised"):
        federation.server.advance()


def test_15_the_ring_is_sized_for_the_cohort() -> None:
    n = 520
    encoding = FixedPoint(num_bits=32, cohort=n, clip=8.0, max_weight=1.0, num_entries=1)
    total = np.zeros(encoding.length, "<u4")
    for _ in range(n):
        total += encoding.encode([np.full(1, 8.0)]).words
    np.testing.assert_allclose(encoding.decode(total, n).update, 8.0, rtol=1e-12)


def test_16_a_small_weight_is_encoded_without_bias() -> None:
    times = 100_000
    encoding = FixedPoint(num_bits=32, cohort=2, clip=8.0, max_weight=1.0, num_entries=times)
    words = encoding.encode([np.full(times, 0.25)], weight=0.01).words
    update = encoding.decode(words, 1).update
    assert abs(update.mean() - 0.25) < 4 * update.std() / np.sqrt(times) + 1e-15
    assert update.std() > 0


def test_17_clipping_is_counted_and_what_is_not_finite_refused() -> None:
    encoding = FixedPoint(num_bits=32, cohort=7, clip=8.0, max_weight=1.0, num_entries=2)
    assert encoding.encode([np.array([50.0, 7.0])]).num_clipped == 1
    with pytest.raises(EncodingError, match="not finite"):
        encoding.encode([np.array([np.nan, 7.0])])


@pytest.mark.parametrize(("num_bits", "bytes_per_entry"), [(16, 2), (32, 4)])
def test_18_the_uplink_is_two_or_four_bytes_per_parameter(num_bits: int, bytes_per_entry: int) -> None:
    d, n = 100_000, 64  # the complete graph's largest number of neighbors
    federation = Federation(parameters(n, num_bits=num_bits, length=d), tuple(range(1, n + 1)))
    sent = dict.fromkeys(federation.nodes, 0)

    def count(node: int, reply: Any) -> Any:
        sent[node] += len(reply.body) + (0 if reply.vector is None else reply.vector.nbytes)
        return reply

    federation.run(tamper=count)
    assert max(sent.values()) <= 1.05 * bytes_per_entry * d


def test_nothing_secret_is_in_a_repr_or_a_message() -> None:
    federation = until(Federation(parameters(7, tier=Tier.MALICIOUS), NODES), Stage.MASK)
    session = federation.restore(1)
    memory = session._memory
    shown = repr(session) + repr(memory) + repr(federation.identities[1]) + repr(federation.policy)
    shown += repr(federation.server)
    request = federation.server.requests()[1]
    with pytest.raises(SecureAggregationError) as caught:
        session.answer(Stage.MASK, request[:-5])
    shown += str(caught.value)
    own = [memory.mask_secret, memory.seed, *(key for key, _ in memory.peers.values())]
    assert all(own)
    for secret in own:
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert "key_shares" not in repr(UnmaskReply(seed_shares={}, key_shares={}))


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK])
def test_a_saved_session_is_read_back_whole_or_refused(stage: Stage) -> None:
    federation = until(Federation(parameters(5, tier=Tier.MALICIOUS), (1, 2, 3, 4, 5)), stage)
    saved = federation.saved[1]
    assert federation.restore(1).to_bytes() == saved
    for bad in (saved[:-1], saved + b"x", b"\x02" + saved[1:], saved.replace(stage.encode(), b"closed", 1)):
        federation.saved[1] = bad
        with pytest.raises(MessageFormatError):
            federation.restore(1)


def test_an_advert_is_read_back_as_it_was() -> None:
    for extra in ({}, {"identity": bytes(range(32)), "signature": bytes(64)}):
        advert = Advert(
            node=2**64 - 1, packet_key=bytes(32), mask_key=b"m" * 32, commitment=b"c" * 32, **extra
        )
        assert Advert.from_bytes(advert.to_bytes()) == advert
