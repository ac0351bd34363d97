"""A round with helpers in one process: real sessions, helpers saved and restored between their stages."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl_plugins.secagg import (
    AdditiveServerSession,
    ClientPolicy,
    HelperSession,
    Identity,
    Reply,
    RoundParameters,
    SecureSum,
    Stage,
    Tier,
    mask_for_helpers,
)

from .federation import LAYOUT, MODEL, parameters


@dataclass
class HelpedFederation:
    """Clients with random vectors, helpers, and one server."""

    clients: tuple[int, ...] = (1, 2, 3, 4, 5)
    helpers: tuple[int, ...] = (90, 91)
    tier: Tier = Tier.HONEST_BUT_CURIOUS
    changes: Mapping[str, Any] = field(default_factory=dict)
    vectors: dict[int, Any] = field(default_factory=dict)
    identities: dict[int, Identity] = field(default_factory=dict)
    policies: dict[int, ClientPolicy] = field(default_factory=dict)
    saved: dict[int, bytes] = field(default_factory=dict)
    sent: dict[int, Reply] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters: RoundParameters = parameters(len(self.clients), tier=self.tier, **self.changes)
        rng, num_bits = np.random.default_rng(len(self.clients)), self.parameters.num_bits
        for node in self.clients:
            words = rng.integers(0, 2**num_bits, self.parameters.length, np.uint64)
            self.vectors.setdefault(node, words.astype(f"<u{num_bits // 8}"))
        if self.tier is Tier.MALICIOUS:
            for node in (*self.clients, *self.helpers):
                self.identities.setdefault(node, Identity.generate())
        least = self.parameters.min_clients
        for nodes, peers in ((self.clients, self.helpers), (self.helpers, self.clients)):
            roster = frozenset(self.identities[node].public for node in peers if self.identities)
            for node in nodes:
                self.policies.setdefault(node, ClientPolicy(min_clients=least, roster=roster))
        self.server = AdditiveServerSession(self.parameters, self.clients, self.helpers)

    def begin_helper(self, node: int, request: bytes, **changes: Any) -> Reply:
        """Let a helper make its key, and save its session."""
        given = {"run_id": self.parameters.run_id, "policy": self.policies[node], **changes}
        session, reply = HelperSession.begin(request, node=node, identity=self.identities.get(node), **given)
        self.saved[node] = session.to_bytes()
        return reply

    def helper(self, node: int) -> HelperSession:
        """Return a helper's session as a fresh process finds it."""
        return HelperSession.from_bytes(self.saved[node], policy=self.policies[node])

    def client(self, node: int, request: bytes, **changes: Any) -> Reply:
        """Let a client answer."""
        given: dict[str, Any] = {
            "node": node,
            "run_id": self.parameters.run_id,
            "model": MODEL,
            "layout": LAYOUT,
            "policy": self.policies[node],
            "num_helpers": len(self.helpers),
            "identity": self.identities.get(node),
        }
        return mask_for_helpers(request, self.vectors[node], **{**given, **changes})

    def take_keys(self) -> Mapping[int, bytes]:
        """Play the first stage; return what clients are sent."""
        for node, request in self.server.requests().items():
            self.server.receive(node, self.begin_helper(node, request).body)
        self.server.advance()
        return self.server.requests()

    def take_vectors(self, silent: Iterable[int] = ()) -> Mapping[int, bytes]:
        """Play the first two stages; return what helpers are sent."""
        for node, request in self.take_keys().items():
            if node not in set(silent):
                self.sent[node] = self.client(node, request)
                self.server.receive(node, self.sent[node].body, self.sent[node].vector)
        self.server.advance()
        return self.server.requests()

    def open(self, node: int, request: bytes) -> Reply:
        """Let a helper open a set."""
        return self.helper(node).answer(Stage.UNMASK, request)

    def run(self, silent: Iterable[int] = ()) -> SecureSum:
        """Play all stages."""
        for node, request in self.take_vectors(silent).items():
            reply = self.open(node, request)
            self.server.receive(node, reply.body, reply.vector)
        self.server.advance()
        return self.server.result

    def expected(self, survivors: Iterable[int]) -> Any:
        """Return the plain sum in the ring."""
        total = np.zeros_like(self.vectors[self.clients[0]])
        for node in survivors:
            total += self.vectors[node]
        return total
