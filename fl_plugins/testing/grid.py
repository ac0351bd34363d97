"""A Grid that serves real Messages to a ClientApp in this process: for tests and audits only.

It stands in for Flower's engines where only the conversation matters: no Ray, no SuperLink, no
parallelism, no network. Every message is serialised and read back on its way to the node and on its way
home, and each node keeps its own ``Context``, so that nothing is shared by accident.
"""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from .._flower import CLIENT_APP_ERROR, Run, server_identity, through_the_wire
from ..wire import NUM_PARTITIONS, PARTITION_ID

ClientFn = Callable[[Message, Context], Message]


class InProcessGrid(Grid):
    """Serve messages to ``client_app``, one node after the other, when their replies are pulled.

    Use it as a context manager: inside, ``Message(...)`` can be created as in a ServerApp.

    Parameters
    ----------
    client_app : ClientApp or callable
        Serves every node.
    num_nodes : int
        Nodes have the ids ``1 .. num_nodes`` and the partitions ``0 .. num_nodes - 1``.
    run_config : Mapping, optional
        The run config in every node's context.
    overrides : Mapping[int, callable], optional
        Node id → the app that this node runs instead (a hostile or broken client).
    silent : Iterable[int]
        Nodes that never answer.
    node_configs : Mapping[int, Mapping], optional
        Node id → what this node's operator has put into its own config, beside the partition.
    """

    def __init__(
        self,
        client_app: ClientApp | ClientFn,
        num_nodes: int,
        *,
        run_config: Mapping[str, Any] | None = None,
        overrides: Mapping[int, ClientFn] | None = None,
        silent: Iterable[int] = (),
        node_configs: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        self._apps: dict[int, ClientFn] = dict.fromkeys(range(1, num_nodes + 1), client_app)
        self._apps.update(overrides or {})
        self._silent = frozenset(silent)
        own = node_configs or {}
        self._contexts = {
            node: self._context(node, num_nodes, dict(run_config or {}), own.get(node, {}))
            for node in self._apps
        }
        self._waiting: dict[str, Message] = {}
        self._identity = server_identity()
        self.sent: list[Message] = []

    def __enter__(self) -> Self:
        self._identity.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._identity.__exit__(kind, error, trace)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """Not available in this process."""
        raise RuntimeError("InProcessGrid: there is no Flower run behind this grid; it is for tests only.")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message, as Flower's deprecated method does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all node ids."""
        return list(self._apps)

    def replace_node(self, node: int, successor: int) -> None:
        """Let a node vanish and come back under another id, with its own app and context."""
        self._apps[successor] = self._apps.pop(node)
        self._contexts[successor] = self._contexts.pop(node)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; they are served when their replies are pulled."""
        identifiers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = identifier = str(uuid4())
            self._waiting[identifier] = message
            self.sent.append(message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Serve one of the waiting messages and return its reply."""
        for identifier in list(message_ids):
            message = self._waiting.get(identifier)
            if message is not None and message.metadata.dst_node_id not in self._silent:
                del self._waiting[identifier]
                # Not before: all messages of a round read back at once would be a model for each node.
                return [through_the_wire(self._serve(through_the_wire(message)))]
        return []

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - nobody is waited for
    ) -> Iterable[Message]:
        """Serve all messages; silent nodes are left out at once."""
        identifiers = set(self.push_messages(messages))
        replies: list[Message] = []
        while new := list(self.pull_messages(identifiers)):
            replies.extend(new)
        return replies

    def _serve(self, message: Message) -> Message:
        """Run the node's app; an exception becomes an error reply, as in Flower's engines."""
        node = message.metadata.dst_node_id
        try:
            return self._apps[node](message, self._contexts[node])
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(CLIENT_APP_ERROR, reason), reply_to=message)

    @staticmethod
    def _context(node: int, num_nodes: int, run_config: UserConfig, own: Mapping[str, Any]) -> Context:
        """Return a fresh context of one node."""
        node_config: UserConfig = {PARTITION_ID: node - 1, NUM_PARTITIONS: num_nodes, **own}
        return Context(
            run_id=1, node_id=node, node_config=node_config, state=RecordDict(), run_config=run_config
        )
