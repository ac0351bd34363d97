"""Who is there: clients by their stable names, the nodes that they are on, and the sampling of a cohort.

Flower draws a new random id for every node of every simulation. Sampling and summation that go by those
ids are not reproducible, so nodes are asked once for their stable name (the partition id); a node that
does not understand the question keeps its node id as its name. A cohort node answers with the names of all
the virtual clients that it hosts.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins.errors import CheckpointError, ConfigError, QuorumError

from .roll_call import RollCall

_PAUSE_S = 0.2
_SAY_EVERY_S = 10.0
_MAX_NAMED = 12

UNNAMED = "node-"
"""Before the node id, the name of a node that says none; another id is another name."""

logger = logging.getLogger("flwr.fl_plugins")


@dataclass
class Roster:
    """Clients of the nodes seen so far; ``roll_call=False`` makes every node a client named after its id.

    Parameters
    ----------
    roll_call : bool
        Whether to ask nodes for their names.
    virtual_clients : int
        Number of virtual clients in all, named ``0 .. virtual_clients - 1``; with 0 no node may host any.
    partitions : frozenset[int]
        Among how many clients the data were dealt when the run began, if it is resumed; empty: anything goes.

    Guarantees
    ----------
    A virtual client is on one node. Once a connected node hosts it, no other can take it over: the claim is
    refused and logged. If two nodes that are asked at the same time claim it, nobody can tell who is right,
    and that is an error. A node that does not answer is left out of a run with virtual clients.

    A node that says that its data were dealt among another number of clients is left out of a run that is
    resumed: its examples are others' too. If no node says what was said when the run began, that is an error.

    A node that comes back under another node id, since it has no key of its own, gets its name back if its
    predecessor is gone by then.

    A node that is silent when it is asked is named after its id, and gets its own name when it answers,
    before a later exchange; nobody waits for that. :meth:`take_renamed` says which names are the same client.
    """

    roll_call: bool = False
    virtual_clients: int = 0
    partitions: frozenset[int] = frozenset()
    _dealt: dict[int, int] = field(default_factory=dict)
    """Node → among how many clients it says that its data were dealt."""
    _names: dict[int, str] = field(default_factory=dict)
    """Node → its one name, for nodes that are a client themselves."""
    _claims: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Node → the virtual clients that it says it hosts."""
    _held: dict[int, int] = field(default_factory=dict)
    """Virtual client → the connected node that hosts it."""
    _roll_call: RollCall = field(default_factory=RollCall)
    _renamed: dict[str, str] = field(default_factory=dict)
    """Name → the one that the same node has been given since."""
    _connected: tuple[int, ...] = ()
    _clients: dict[str, int] = field(default_factory=dict)

    def is_host(self, node: int) -> bool:
        """Whether a node hosts virtual clients, rather than being one client."""
        return node in self._claims

    def wait_for(self, grid: Grid, num_clients: int, *, timeout_s: float) -> dict[str, int]:
        """Return client → node of all that are connected, in :func:`name_order`, once there are enough.

        Raises
        ------
        QuorumError
            If there are fewer than ``num_clients`` when ``timeout_s`` has passed.
        ConfigError
            If two nodes that appear together claim the same virtual client.
        CheckpointError
            If all nodes say that their data were dealt in another way than when the run began.
        """
        deadline = time.monotonic() + timeout_s
        said = 0.0
        while len(clients := self._look(grid, timeout_s)) < num_clients:
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                logger.info("waiting for nodes: %d clients connected, %d needed", len(clients), num_clients)
            if time.monotonic() >= deadline:
                raise QuorumError(
                    f"roster: {len(self._connected)} nodes are connected after {timeout_s:g} s with "
                    f"{len(clients)} clients, but {num_clients} are needed; start more SuperNodes "
                    "(simulation: num-supernodes), raise virtual-clients, or lower min_available_nodes."
                )
            time.sleep(_PAUSE_S)
        return clients

    def _look(self, grid: Grid, timeout_s: float) -> dict[str, int]:
        """Return the clients of the nodes that are connected now; the same object while nothing changes."""
        connected = tuple(sorted(grid.get_node_ids()))
        changed = self._hear_late(grid, connected, timeout_s)
        if connected == self._connected and not changed:
            return self._clients
        new = [node for node in connected if node not in self._names and node not in self._claims]
        self._learn(grid, new, timeout_s, connected=connected)
        self._connected = connected
        self._settle(connected)
        clients = {str(client): node for client, node in self._held.items()}
        for node in connected:
            if node in self._names:
                clients[self._names[node]] = node
        ordered = sorted(clients.items(), key=lambda item: name_order(item[0]))
        self._clients = dict(ordered)
        return self._clients

    def _learn(self, grid: Grid, nodes: Sequence[int], timeout_s: float, *, connected: Sequence[int]) -> None:
        """Ask ``nodes`` who they are; a name that another node or a virtual client has gets the node id."""
        fresh = {node: f"{UNNAMED}{node}" for node in nodes}
        answered: set[int] = set()
        asked = [node for node in nodes if self.roll_call and not self._roll_call.awaits(node)]
        if asked:
            for node, reply in self._roll_call.ask(grid, asked, timeout_s=timeout_s):
                if not reply.has_error():
                    answered.add(node)
                    self._note(node, reply, fresh)
        if self.virtual_clients and (silent := sorted(fresh.keys() - answered)):
            logger.warning(
                "%d nodes (the first is %d) do not say which virtual clients they host, and are left out "
                "until they do",
                len(silent),
                silent[0],
            )
            fresh = {node: name for node, name in fresh.items() if node in answered}
        self._give(fresh, connected)

    def _hear_late(self, grid: Grid, connected: Sequence[int], timeout_s: float) -> bool:
        """Take answers to earlier questions; return whether there were any that say something."""
        answers = [
            (node, reply)
            for node, reply in self._roll_call.late(grid, connected, timeout_s=timeout_s)
            if self._may_be_client(node) and not reply.has_error()
        ]
        before = {node: self._names.pop(node) for node, _ in answers if node in self._names}
        fresh = {node: f"{UNNAMED}{node}" for node, _ in answers}
        for node, reply in answers:
            self._note(node, reply, fresh)
        self._give(fresh, connected)
        for node, name in before.items():
            if (now := self._names.get(node, name)) != name:
                logger.info("node %d answers late: it is client %s", node, now)
                self._renamed[name] = said_name(now, node)
        return bool(answers)

    def _may_be_client(self, node: int) -> bool:  # noqa: ARG002  for rosters with other nodes
        """Whether what a node answers late is of interest."""
        return True

    def take_renamed(self) -> dict[str, str]:
        """Return name → the name that the same client has been given since this was last asked."""
        renamed, self._renamed = self._renamed, {}
        return renamed

    def _note(self, node: int, reply: Message, fresh: dict[int, str]) -> None:
        """Take what a node says of itself; a host of virtual clients has no name, so it is not ``fresh``."""
        if isinstance(dealt := _find(reply, wire.PARTITIONS), int):
            self._dealt[node] = dealt
        hosted = _find(reply, wire.CLIENT_IDS)
        if hosted is not None:
            self._claims[node] = self._checked(node, hosted)
            del fresh[node]
            return
        name = _find(reply, wire.CLIENT_ID)
        if isinstance(name, str) and 0 < len(name) <= 200:
            fresh[node] = name

    def _give(self, fresh: dict[int, str], connected: Sequence[int]) -> None:
        """Give nodes the names that they say, as far as those are free."""
        self._leave_out_redealt(fresh)
        for node in self._names.keys() - set(connected):
            if self._names[node] in fresh.values():  # it has come back under another node id
                self._names[node] += f"@{node}"
        taken = set(self._names.values())
        for node, name in sorted(fresh.items()):
            is_virtual = name.isdecimal() and int(name) < self.virtual_clients
            unique = f"{name}@{node}" if is_virtual or name in taken else name
            taken.add(unique)
            self._names[node] = unique

    def dealt(self) -> list[int]:
        """Return among how many clients the nodes that take part say that their data were dealt."""
        return sorted({self._dealt[node] for node in self._names if node in self._dealt} | self.partitions)

    def _leave_out_redealt(self, fresh: dict[int, str]) -> None:
        """Take nodes out of ``fresh`` whose data were dealt in another way than when the run began."""
        if not self.partitions:
            return
        others = sorted(node for node in fresh if self._dealt.get(node, 0) not in self.partitions | {0})
        for node in others:
            del fresh[node]
        if not others:
            return
        was, now = sorted(self.partitions), self._dealt[others[0]]
        if not fresh and not self._names:
            raise CheckpointError(
                f"resume: the run began with data dealt among {was} clients, but the nodes now say "
                f"num-partitions={now}; start them with the num-partitions that they had, or start anew in "
                "another folder."
            )
        logger.warning(
            "%d nodes (the first is %d, num-partitions=%d) have data that were dealt in another way than "
            "when the run began (num-partitions=%s), and are left out",
            len(others),
            others[0],
            now,
            was,
        )

    def _checked(self, node: int, hosted: object) -> tuple[int, ...]:
        """Return what a node says it hosts; what cannot be true is refused whole."""
        ids = hosted if isinstance(hosted, list) else []
        plausible = (
            isinstance(hosted, list)
            and all(type(client) is int and 0 <= client < self.virtual_clients for client in ids)
            and len(set(ids)) == len(ids)
        )
        if not plausible:
            logger.warning(
                "node %d announces virtual clients, but not each once and from 0 to %d, which is "
                "virtual-clients - 1; it is left out",
                node,
                self.virtual_clients - 1,
            )
            return ()
        return tuple(int(client) for client in ids)

    def _settle(self, connected: Sequence[int]) -> None:
        """Decide which connected node hosts each virtual client."""
        present = set(connected)
        self._held = {client: node for client, node in self._held.items() if node in present}
        holders = set(self._held.values())
        asked = [node for node in connected if node in self._claims and node not in holders]
        claims = Counter(client for node in asked for client in self._claims[node])
        for node in asked:
            ids = self._claims[node]
            free = [client for client in ids if client not in self._held]
            if disputed := [client for client in free if claims[client] > 1]:
                others = [other for other in asked if other != node and disputed[0] in self._claims[other]]
                raise ConfigError(
                    f"roster: nodes {node} and {others[0]} both claim to host virtual client {disputed[0]} "
                    f"(of {len(disputed)} that are claimed twice), and nobody can tell who is right; give "
                    "every SuperNode its own partition-id and all the same num-partitions."
                )
            if len(free) < len(ids):
                refused = [str(client) for client in ids if client in self._held]
                logger.warning(
                    "node %d claims to host %s, which other nodes have had before; it keeps the others",
                    node,
                    name_some(refused),
                )
        for node in asked:
            for client in self._claims[node]:
                self._held.setdefault(client, node)


def sample_cohort(clients: Mapping[str, int], size: int, *, rng: np.random.Generator) -> dict[str, int]:
    """Draw ``size`` of ``clients`` without replacement; depends on their names, not on node ids."""
    ordered = sorted(clients.items(), key=lambda item: name_order(item[0]))
    chosen = sorted(rng.choice(len(ordered), size=size, replace=False).tolist())
    return dict(ordered[index] for index in chosen)


def name_order(name: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, then everything else by text."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def said_name(name: str, node: int) -> str:
    """Return the name that ``node`` says, also if another node had it first.

    >>> said_name("0@17", 17), said_name("ward@17", 5)
    ('0', 'ward@17')
    """
    return name.removesuffix(f"@{node}")


def one_node_each(clients: Mapping[str, int]) -> dict[str, int]:
    """Return, by the names that nodes say, one node for each: whoever was given the name first.

    What bounds the influence of a client must not count it twice because it runs two nodes.
    """
    chosen = {name: node for name, node in clients.items() if said_name(name, node) == name}
    for name, node in clients.items():
        chosen.setdefault(said_name(name, node), node)
    if surplus := sorted(set(clients.values()) - set(chosen.values())):
        logger.warning(
            "%d nodes (the first is %d) say the name of a client that another node is, and take no part: "
            "what a client may tell is bounded for one of its nodes; give every client its own partition-id",
            len(surplus),
            surplus[0],
        )
    return chosen


def name_some(names: Sequence[str]) -> str:
    """Return clients in a few words, for a log line; events have all of them.

    >>> name_some(["7"]), name_some(["0", "1"])
    ('client 7', 'clients 0, 1')
    """
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"client{'s' * (len(names) != 1)} {', '.join(names[:_MAX_NAMED])}{more}"


def _find(reply: Message, key: str) -> object:
    """Return a value of any of the reply's config records, or ``None``."""
    for record in reply.content.config_records.values():
        if key in record:
            return record[key]
    return None
