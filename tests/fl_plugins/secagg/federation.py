"""A whole round in one process: real sessions on both sides, clients saved and restored between stages."""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fl_plugins.secagg import (
    ClientPolicy,
    ClientSession,
    Identity,
    Reply,
    RoundParameters,
    SecureSum,
    ServerSession,
    Stage,
    Tier,
)

MODEL = hashlib.sha256(b"model").digest()
LAYOUT = hashlib.sha256(b"layout").digest()
STAGES = (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK)


def parameters(num_clients: int, **changes: Any) -> RoundParameters:
    """Return parameters of a small round."""
    values: dict[str, Any] = {
        "tier": Tier.HONEST_BUT_CURIOUS,
        "run_id": 7,
        "round": 3,
        "attempt": 0,
        "sid": secrets.token_bytes(16),
        "cohort": num_clients,
        "min_clients": min(3, num_clients),
        "corrupt": 0.05,
        "dropout": 0.05,
        "num_bits": 32,
        "clip": 1.0,
        "max_weight": 1.0,
        "length": 5,
        "layout": LAYOUT,
        "model": MODEL,
    }
    return RoundParameters(**{**values, **changes})


@dataclass
class Federation:
    """Clients with random vectors, and what happened to them."""

    parameters: RoundParameters
    nodes: tuple[int, ...]
    policy: ClientPolicy = field(default_factory=ClientPolicy)
    identities: dict[int, Identity] = field(default_factory=dict)
    vectors: dict[int, Any] = field(default_factory=dict)
    saved: dict[int, bytes] = field(default_factory=dict)
    refusals: dict[int, Exception] = field(default_factory=dict)
    server: ServerSession = field(init=False)

    def __post_init__(self) -> None:
        if self.parameters.tier is Tier.MALICIOUS and not self.identities:
            self.identities = {node: Identity.generate() for node in self.nodes}
            self.policy = replace(
                self.policy, roster=frozenset(identity.public for identity in self.identities.values())
            )
        rng = np.random.default_rng(len(self.nodes))
        dtype = np.dtype(f"<u{self.parameters.num_bits // 8}")
        for node in self.nodes:
            self.vectors.setdefault(
                node,
                rng.integers(0, 2**self.parameters.num_bits, self.parameters.length, np.uint64).astype(dtype),
            )
        self.server = ServerSession(self.parameters, self.nodes)

    def begin(self, node: int, request: bytes, **changes: Any) -> tuple[ClientSession, Reply]:
        """Begin a client's session."""
        options: dict[str, Any] = {
            "node": node,
            "run_id": self.parameters.run_id,
            "model": MODEL,
            "layout": LAYOUT,
            "policy": self.policy,
            "identity": self.identities.get(node),
        }
        return ClientSession.begin(request, self.vectors[node], **{**options, **changes})

    def restore(self, node: int) -> ClientSession:
        """Return a client's session as a fresh process finds it."""
        return ClientSession.from_bytes(
            self.saved[node], policy=self.policy, identity=self.identities.get(node)
        )

    def answer(self, node: int, stage: Stage, request: bytes) -> Reply:
        """Let a client answer, in a fresh process."""
        if stage is Stage.ADVERTISE:
            session, reply = self.begin(node, request)
        else:
            session = self.restore(node)
            reply = session.answer(stage, request)
        if session.stage is Stage.CLOSED:
            del self.saved[node]
        else:
            self.saved[node] = session.to_bytes()
        return reply

    def play_stage(self, silent: Iterable[int] = (), *, tamper: Callable[..., Any] | None = None) -> None:
        """Let everyone but the silent nodes answer the present stage, and end it."""
        stage, dead = self.server.stage, set(silent)
        for node, body in self.server.requests().items():
            if node in dead:
                continue
            reply = self.answer(node, stage, body)
            if tamper is not None:
                reply = tamper(node, reply)
            self.server.receive(node, reply.body, reply.vector)
        self.server.advance()

    def run(self, silent: Mapping[Stage, Iterable[int]] | None = None, **options: Any) -> SecureSum:
        """Play all stages; nodes once silent stay so."""
        dead: set[int] = set()
        while self.server.stage is not Stage.CLOSED:
            dead |= set((silent or {}).get(self.server.stage, ()))
            self.play_stage(dead, **options)
        return self.server.result

    def expected(self, survivors: Iterable[int]) -> Any:
        """Return the plain sum in the ring."""
        total = np.zeros_like(next(iter(self.vectors.values())))
        for node in survivors:
            total += self.vectors[node]
        return total


def until(federation: Federation, stage: Stage) -> Federation:
    """Play without dropouts until a stage is to be asked."""
    while federation.server.stage is not stage:
        federation.play_stage()
    return federation
