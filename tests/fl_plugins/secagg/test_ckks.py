"""Encrypted summing: the sum is exact, and what is no sum of the clients' vectors is refused."""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fl_plugins.errors import (
    ConfigError,
    EncodingError,
    MessageFormatError,
    RoundAbortedError,
    SecureAggregationError,
    StageError,
    SurvivorError,
)
from fl_plugins.secagg import ClientPolicy, FixedPoint, RoundParameters, SecureSum, Stage
from fl_plugins.secagg.ckks import EncryptedSum, SumKey, tenseal
from fl_plugins.secagg.ckks_session import EncryptedClientSession, EncryptedServerSession
from fl_plugins.secagg.codec import Writer

from .federation import parameters

pytest.importorskip("tenseal", reason="the extra he is not installed")


@pytest.fixture(scope="module")
def key() -> SumKey:
    return SumKey.generate()


def random_words(n: int, length: int, num_bits: int) -> list[Any]:
    """Return vectors of the largest values whose sum does not wrap."""
    levels = ((1 << (num_bits - 1)) - 1) // n - 1
    rng, signed = np.random.default_rng(n), np.dtype(f"<i{num_bits // 8}")
    vectors = [rng.integers(-levels, levels, length, endpoint=True).astype(signed) for _ in range(n)]
    for vector in vectors:
        vector[:2] = levels, -levels
    return [vector.view(f"<u{num_bits // 8}") for vector in vectors]


@pytest.mark.parametrize("num_bits", [16, 32])
@pytest.mark.parametrize(("n", "length"), [(2, 2), (3, 2048), (5, 2049), (40, 5000)])
def test_the_decrypted_sum_is_exact(key: SumKey, n: int, length: int, num_bits: int) -> None:
    vectors, total = random_words(n, length, num_bits), EncryptedSum(length)
    for vector in vectors:
        total.add(key.encrypt(vector).tobytes())
    words = key.decrypt(total.to_bytes(), length, num_bits)
    assert np.array_equal(words, np.sum(vectors, axis=0, dtype=vectors[0].dtype))


def test_two_encryptions_of_one_vector_have_nothing_in_common(key: SumKey) -> None:
    vector = random_words(3, 2048, 32)[0]
    first, second = key.encrypt(vector), key.encrypt(vector)
    size = min(first.size, second.size)
    # Random bytes agree in one place of 256; some of a ciphertext are its header.
    assert (first[:size] == second[:size]).mean() < 0.05


def test_another_key_reads_nothing_and_shows_that_it_does_not(key: SumKey) -> None:
    vector = random_words(3, 4000, 32)[0]
    other = SumKey.generate()
    assert other.fingerprint != key.fingerprint
    with pytest.raises(EncodingError, match="not of whole numbers"):
        other.decrypt(key.encrypt(vector).tobytes(), 4000, 32)
    assert SumKey(key.to_bytes()).fingerprint == key.fingerprint
    assert repr(key) == f"SumKey({key.fingerprint[:16]}…)"


def test_a_server_adds_without_a_key(key: SumKey) -> None:
    total = EncryptedSum(10)
    total.add(key.encrypt(random_words(3, 10, 32)[0]).tobytes())
    assert not total._context.has_secret_key()
    with pytest.raises(ConfigError, match="no secret key"):
        SumKey(total._context.serialize(save_public_key=False, save_galois_keys=False, save_relin_keys=False))


def test_bytes_that_are_no_ciphertexts_of_the_round_are_refused(key: SumKey) -> None:
    vector = random_words(3, 10, 32)[0]
    good = key.encrypt(vector).tobytes()
    total = EncryptedSum(10)
    total.add(good)
    other_length = key.encrypt(random_words(3, 11, 32)[0]).tobytes()
    other_scale = key.encrypt(vector.astype("<u2")).tobytes()
    writer = Writer()
    nonsense = writer.list([b"nonsense"], writer.sized).done()
    for bad in (b"", good[:-1], good + b"\0", other_length, other_scale, nonsense):
        with pytest.raises(SecureAggregationError):
            total.add(bad)
    assert key.decrypt(total.to_bytes(), 10, 32).tolist() == vector.tolist()
    for data in (b"", b"nonsense"):
        with pytest.raises(ConfigError):
            SumKey(data)


def test_a_sum_that_no_message_can_carry_is_refused_before_anyone_encrypts(key: SumKey) -> None:
    with pytest.raises(EncodingError, match="at most 66635776; use secure_aggregation"):
        EncryptedServerSession(parameters(5, length=66_635_777), range(1, 6))
    # The limit reckons with more than a ciphertext takes.
    for num_bits in (16, 32):
        largest = random_words(2, 2048, num_bits)[0]
        assert key.encrypt(largest).size < 66_000


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match=r"fl-plugins\[he\]"):
        tenseal()


# -- The two stages ------------------------------------------------------------------------------------


@dataclass
class Encrypted:
    """Clients that encode an update of zeros, one key, one server."""

    key: SumKey
    nodes: tuple[int, ...] = (1, 2, 3, 4)
    sid: bytes = bytes(16)
    sessions: dict[int, EncryptedClientSession] = field(default_factory=dict)

    def __post_init__(self) -> None:
        encoding = FixedPoint(num_bits=32, cohort=len(self.nodes), clip=1.0, max_weight=1.0, num_entries=3)
        self.words = {node: encoding.encode([np.full(3, 0.1 * node)]).words for node in self.nodes}
        self.parameters: RoundParameters = parameters(len(self.nodes), length=encoding.length, sid=self.sid)
        self.server = EncryptedServerSession(self.parameters, self.nodes)

    def encrypt_all(self, silent: tuple[int, ...] = ()) -> None:
        """Play the clients' stage."""
        for node, body in self.server.requests().items():
            assert body == self.parameters.to_bytes()
            session = EncryptedClientSession(
                parameters=self.parameters, node=node, key=self.key, policy=ClientPolicy()
            )
            reply = session.begin(self.words[node])
            self.sessions[node] = EncryptedClientSession.from_bytes(
                session.to_bytes(), key=self.key, policy=ClientPolicy()
            )
            if node not in silent:
                self.server.receive(node, reply.body, reply.vector)
        self.server.advance()

    def decrypt(self) -> SecureSum:
        """Play the other one."""
        [(node, body)] = self.server.requests().items()
        reply = self.sessions[node].answer(Stage.UNMASK, body)
        self.server.receive(node, reply.body, reply.vector)
        self.server.advance()
        return self.server.result


def test_a_round_gives_the_sum_of_those_who_answered(key: SumKey) -> None:
    round_ = Encrypted(key)
    round_.encrypt_all(silent=(3,))
    total = round_.decrypt()
    assert total.survivors == (1, 2, 4)
    expected = round_.words[1] + round_.words[2] + round_.words[4]
    assert np.array_equal(total.vector, expected)


def test_whose_turn_it_is_to_decrypt_follows_from_the_session_and_goes_on_when_one_is_silent(
    key: SumKey,
) -> None:
    round_ = Encrypted(key, sid=bytes(15) + b"\x02")
    round_.encrypt_all()
    asked = []
    for _ in range(2):
        asked += list(round_.server.requests())
        round_.server.advance()
    assert asked == [3, 4]
    assert round_.decrypt().survivors == (1, 2, 3, 4)
    round_ = Encrypted(key)
    round_.encrypt_all()
    round_.server.advance()
    round_.server.advance()
    round_.server.refuse(3, "it is busy")
    with pytest.raises(RoundAbortedError, match=r"3 nodes were asked to decrypt .* 3: it is busy"):
        round_.server.advance()


def test_too_few_clients_end_the_attempt(key: SumKey) -> None:
    with pytest.raises(RoundAbortedError, match="2 of 4 nodes sent a masked vector, but 3 are needed"):
        Encrypted(key).encrypt_all(silent=(1, 2))


def refused(round_: Encrypted, nodes: list[int], ciphertexts: bytes) -> Any:
    """Ask a client to decrypt; return the error, after which it answers no more."""
    session = EncryptedClientSession.from_bytes(
        round_.sessions[1].to_bytes(), key=round_.key, policy=ClientPolicy()
    )
    with pytest.raises(SecureAggregationError) as error:
        session.answer(Stage.UNMASK, Writer().ids(nodes).sized(ciphertexts).done())
    with pytest.raises(StageError, match="one sum, once"):
        session.answer(Stage.UNMASK, b"")
    return error


def test_a_client_decrypts_no_single_vector_and_no_sum_of_fewer_than_it_wants(key: SumKey) -> None:
    round_ = Encrypted(key)
    round_.encrypt_all()
    single = key.encrypt(round_.words[2]).tobytes()
    assert refused(round_, [1, 2, 3], single).type is EncodingError, "the check ones count the vectors"
    total = round_.server._sum.to_bytes()
    for nodes in ([1, 2], [1, 1, 2], [2, 3, 4], [3, 2, 1], []):
        assert refused(round_, nodes, total).type is SurvivorError
    assert refused(round_, [1, 2, 3], total).type is EncodingError
    assert refused(round_, [1, 2, 3, 4], b"nonsense").type is MessageFormatError


def test_a_client_answers_no_other_stage_and_nothing_twice(key: SumKey) -> None:
    round_ = Encrypted(key)
    round_.encrypt_all()
    [(node, body)] = round_.server.requests().items()
    for stage in (Stage.ADVERTISE, Stage.MASK, Stage.CLOSED):
        session = EncryptedClientSession.from_bytes(
            round_.sessions[node].to_bytes(), key=key, policy=ClientPolicy()
        )
        with pytest.raises(StageError):
            session.answer(stage, body)
        with pytest.raises(StageError):
            session.answer(Stage.UNMASK, body)


def test_answers_of_another_kind_are_refused(key: SumKey) -> None:
    round_ = Encrypted(key)
    good = key.encrypt(round_.words[1])
    for body, vector in ((b"!", good), (b"", None), (b"", good.astype(np.uint16)), (b"", round_.words[1])):
        with pytest.raises(MessageFormatError):
            round_.server.receive(1, body, vector)
    round_.encrypt_all(silent=())
    [node] = round_.server.requests()
    for vector in (None, round_.words[1][:-1], round_.words[1].astype("<u2")):
        with pytest.raises(MessageFormatError):
            round_.server.receive(node, b"", vector)
    with pytest.raises(StageError, match="no sum"):
        _ = round_.server.result
