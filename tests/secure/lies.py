"""How a test's server lies: the victim's message of one stage is changed on its way."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Message

from fl_plugins import wire
from fl_plugins.errors import QuorumError
from fl_plugins.secagg import RoundParameters, Stage
from fl_plugins.secagg.messages import ShareRequest
from fl_plugins.secure_identities import PRIVATE_KEY, make_identity, write_roster
from fl_plugins.spec import Spec, parse

from .federation import WatchedGrid, config_of, run, secure, stage_of

VICTIM = 1
Body = Callable[[bytes], bytes]


def body_of(message: Message) -> bytes:
    return message.content.config_records[wire.SECAGG][wire.SECAGG_BODY]  # type: ignore[return-value]


def with_body(message: Message, change: Body) -> Message:
    message.content.config_records[wire.SECAGG][wire.SECAGG_BODY] = change(body_of(message))
    return message


def attack(
    at: Stage, change: Callable[[Message], Message | None], *, num_nodes: int = 5, **options: Any
) -> tuple[WatchedGrid, dict[Stage, Message]]:
    """Run a round in which the victim's message of one stage is changed; return its replies by stage."""

    def on_request(message: Message) -> Message | None:
        if message.metadata.dst_node_id == VICTIM and stage_of(message) is at:
            return change(message)
        return message

    replies: dict[Stage, Message] = {}

    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == VICTIM:
            replies[stage_of(message)] = reply
        return reply

    strategy = options.pop("strategy", None) or secure()
    grid = WatchedGrid(num_nodes=num_nodes, on_request=on_request, on_reply=on_reply, **options)
    with suppress(QuorumError):
        run(strategy, grid)
    return grid, replies


def assert_refused(grid: WatchedGrid, reply: Message, said: str) -> None:
    assert reply.has_error()
    assert said in reply.error.reason, reply.error.reason
    assert wire.SECAGG not in grid._contexts[VICTIM].state, "nothing is kept"


def lowered(**changes: Any) -> Callable[[Message], Message]:
    """Change parameters of the attempt, not the announcement."""

    def change(message: Message) -> Message:
        parameters = RoundParameters.from_bytes(body_of(message))
        values = {**vars(parameters), **changes}
        return with_body(message, lambda _: RoundParameters(**values).to_bytes())

    return change


def announced(**changes: Any) -> Callable[[Message], Message]:
    """Change the announcement, not the parameters."""

    def change(message: Message) -> Message:
        [text] = config_of(message)[wire.LAYERS]  # type: ignore[misc]
        spec = parse(str(text))
        config_of(message)[wire.LAYERS] = [str(Spec(spec.name, kwargs={**dict(spec.kwargs), **changes}))]  # type: ignore[arg-type]
        return message

    return change


def other_layers(*names: str) -> Callable[[Message], Message]:
    def change(message: Message) -> Message:
        [own] = config_of(message)[wire.LAYERS]  # type: ignore[misc]
        config_of(message)[wire.LAYERS] = [str(own) if name == "own" else name for name in names]
        return message

    return change


def without(key: str) -> Callable[[Message], Message]:
    def change(message: Message) -> Message:
        del config_of(message)[key]
        return message

    return change


def adverts(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Message], Message]:
    def on(body: bytes) -> bytes:
        request = ShareRequest.from_bytes(body)
        topology, items = request.topology, change(list(request.adverts))
        return ShareRequest(topology=topology, adverts=tuple(items)).to_bytes()

    return lambda message: with_body(message, on)


def operators(tmp_path: Path, listed: int, *, num_nodes: int | None = None) -> Mapping[int, dict[str, Any]]:
    """Return the nodes' own configs: an identity each, and one roster of the first ``listed``."""
    nodes = range(1, (num_nodes or listed) + 1)
    keys = {node: make_identity(tmp_path / f"node-{node}") for node in nodes}
    write_roster(tmp_path / "roster.toml", {f"node-{node}": keys[node] for node in range(1, listed + 1)})
    return {
        node: {
            "secagg-identity": str(tmp_path / f"node-{node}" / PRIVATE_KEY),
            "secagg-roster": str(tmp_path / "roster.toml"),
        }
        for node in nodes
    }


def malicious(**options: Any) -> Any:
    return secure(tier="malicious", **options)
