"""The one door to flwr's non-public modules: an upgrade of flwr breaks here and nowhere else.

What concerns a SuperNode's own process is in :mod:`fl_plugins._flower_node`.

Checked against flwr 1.41; ``tests/fl_plugins/test_flower_door.py`` names what each piece must still do.
"""

import hashlib
import importlib
import os
import ssl
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Context as ContextProto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from .errors import PolicyError

_BUNDLE_LOCK = threading.Lock()

CLIENT_APP_ERROR: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Error code of a reply that says that the ClientApp could not do what was asked."""

LOST_MESSAGE_ERRORS = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
"""Error codes of replies for nodes that have not answered, and may if they are asked again."""

_PULLS = {
    "flwr.superlink.grid.http_grid": "pull_objects",
    "flwr.supernode.start_client_internal": "pull_objects",
    "flwr.supernode.runtime.run_clientapp": "pull_and_inflate_object_from_tree",
}
_FIRST_PULL_PAUSE_S = 0.02
_LONGEST_PULL_PAUSE_S = 0.32


def through_the_wire(message: Message) -> Message:
    """Return ``message`` serialised and read back, as a network would deliver it."""
    return message_from_proto(message_to_proto(message))


def message_to_bytes(message: Message) -> bytes:
    """Return a message as bytes, whole."""
    return _serialised(message_to_proto(message))


def message_from_bytes(data: bytes) -> Message:
    """Return the message that :func:`message_to_bytes` was given."""
    return message_from_proto(MessageProto.FromString(data))


def records_to_bytes(records: RecordDict) -> bytes:
    """Return records as bytes."""
    return _serialised(recorddict_to_proto(records))


def records_from_bytes(data: bytes) -> RecordDict:
    """Return the records that :func:`records_to_bytes` was given."""
    return recorddict_from_proto(RecordDictProto.FromString(data))


def context_to_bytes(context: Context) -> bytes:
    """Return a context as bytes, without its state."""
    return _serialised(context_to_proto(replace(context, state=RecordDict())))


def context_from_bytes(data: bytes) -> Context:
    """Return the context that :func:`context_to_bytes` was given; its state is empty."""
    return context_from_proto(ContextProto.FromString(data))


def _serialised(proto: Any) -> bytes:
    """Return a protobuf message as bytes; one above 2 GiB, which it cannot say, is a ``ValueError``."""
    try:
        return bytes(proto.SerializeToString())
    except EncodeError as error:
        raise ValueError(f"protobuf: {error}") from error


@contextmanager
def server_identity(*, run_id: int = 1, task_id: int = 1, node_id: int = 1) -> Iterator[None]:
    """Let ``Message(...)`` be created outside a Flower run, as a ServerApp would create it."""
    names = {"_run_id": run_id, "_task_id": task_id, "_node_id": node_id}
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name, value in names.items():
        setattr(TaskIdentity, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


BUNDLE_CHECKED = "FL_PLUGINS_BUNDLE_CHECKED"
"""Environment variable with the pid of a ClientApp process that starts listed bundles only."""


def run_client_app_process(check_bundle: Callable[[bytes], None] | None) -> None:
    """Run ``flwr-clientapp`` in this process, with ``check_bundle`` before a bundle is unpacked.

    What it raises becomes the error reply, and nothing of the bundle has been written or imported. With
    ``None``, any bundle may start.
    """
    from flwr.supernode.cli import flwr_clientapp

    os.environ.pop(BUNDLE_CHECKED, None)
    if check_bundle is not None:
        start_checked_bundles_only(
            importlib.import_module("flwr.supernode.runtime.run_clientapp"), check_bundle
        )
        os.environ[BUNDLE_CHECKED] = str(os.getpid())
    flwr_clientapp()


def start_checked_bundles_only(runner: Any, check_bundle: Callable[[bytes], None]) -> None:
    """Let Flower's runner module install what passes ``check_bundle``, and start nothing else.

    The runner starts the app in the folder that the *message* names by id, version and hash, which need not
    be those of the content that came with it: any bundle that was ever unpacked here could be meant. So the
    folder must be the one that the checked content was installed into.
    """
    install, locate = runner.install_from_fab, runner.get_project_dir
    installed: list[Any] = []

    def checked(content: bytes, *args: Any, **kwargs: Any) -> Any:
        check_bundle(content)
        installed.append(install(content, *args, **kwargs))
        return installed[-1]

    def located(*args: Any, **kwargs: Any) -> Any:
        folder = locate(*args, **kwargs)
        if [folder] != installed[-1:]:
            raise PolicyError(
                f"policy: the message names the app {folder.name}, but what was checked is another bundle; "
                "nothing was started."
            )
        return folder

    runner.install_from_fab, runner.get_project_dir = checked, located


def deliver_now(nodes: Iterable[int]) -> None:
    """Let the simulation engine in this process take the messages that were just pushed to ``nodes``.

    The engine sweeps over all nodes and then pauses for 0.1 s, whatever there is to do
    (``vce_api.add_messages_to_queue``), which is longer than many rounds take. Here its step is made at once,
    for these nodes, with its own state and queue; whatever is not taken now, its next sweep takes. Outside
    the engine's process, nothing happens.
    """
    vce_api = sys.modules.get("flwr.server.superlink.fleet.vce.vce_api")
    if vce_api is None:
        return
    for thread in threading.enumerate():
        # Both attributes are gone as soon as the thread ends.
        if getattr(thread, "_target", None) is vce_api.add_messages_to_queue:
            state, queue, nodes_mapping, stopped = thread._args  # type: ignore[attr-defined]
            for node in nodes:
                if node in nodes_mapping and not stopped.is_set():
                    for message in state.get_message_ins(node_id=node, limit=1):
                        queue.put(message)


def moves_objects(grid: object) -> bool:
    """Whether a Grid moves each array of a message on its own: that of a deployment does."""
    module = sys.modules.get("flwr.superlink.grid.http_grid")
    return module is not None and isinstance(grid, module.HttpGrid)


def pull_promptly() -> None:
    """Let this process, a ServerApp, SuperNode or ClientApp, have a message once its last object is there.

    A SuperLink shows a reply, and a SuperNode a message, when its upload begins. Flower then asks for each
    object, and if it is not there yet, waits 1 s before it asks again, then 2 s, up to 10 s
    (``PULL_INITIAL_BACKOFF``); a Grid fetches no other reply meanwhile. Here the pauses are shorter; how long
    it asks in all stays as it is.
    """
    for where, name in _PULLS.items():
        module = sys.modules.get(where)
        if module is not None and not isinstance(getattr(module, name), partial):
            prompt = partial(
                getattr(module, name),
                initial_backoff=_FIRST_PULL_PAUSE_S,
                backoff_cap=_LONGEST_PULL_PAUSE_S,
                max_tries_per_object=None,  # 500 short pauses would be less than an upload may take
            )
            setattr(module, name, prompt)


@dataclass(frozen=True)
class NodeStatus:
    """What a SuperLink says of a SuperNode: id, public key (PEM), ``online`` or not, and since when."""

    node_id: int
    public_key: bytes
    status: str


@dataclass(frozen=True)
class RunStatus:
    """What a SuperLink says of a run: ``finished`` with ``completed`` is the one good end."""

    status: str
    sub_status: str
    details: str

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, well or badly."""
        return self.status == "finished"

    @property
    def is_completed(self) -> bool:
        """Whether the run has ended well."""
        return self.is_finished and self.sub_status == "completed"


class ControlError(Exception):
    """The SuperLink refused a request, or did not answer it; the message says which."""


class Control:
    """What ``flwr run``, ``flwr ls`` and ``flwr log`` do, without starting a ``flwr`` process for each.

    Parameters
    ----------
    address : str
        ``host:port`` of a SuperLink; proxies are not used.
    root_certificates : Path, optional
        The certificate to verify it by; ``None`` for a SuperLink without TLS on this machine.
    """

    def __init__(self, address: str, *, root_certificates: Path | None = None) -> None:
        from flwr.supercore.control import ControlHttpClient

        insecure = root_certificates is None
        self._client = ControlHttpClient.from_server_address(
            server_address=address, insecure=insecure, root_certificates=None, interceptors=[]
        )
        self._client._client.close()
        verify = False if insecure else ssl.create_default_context(cafile=str(root_certificates))
        self._client._client = httpx.Client(timeout=60.0, trust_env=False, verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def start_run(
        self, bundle: bytes, run_config: Mapping[str, Any], simulation: Mapping[str, Any] | None
    ) -> int:
        """Start a run of the app in ``bundle`` and return its id.

        Parameters
        ----------
        run_config : Mapping[str, bool | int | float | str]
            Overrides of what the app's ``[tool.flwr.app.config]`` declares; values are sent as they are.
        simulation : Mapping[str, bool | int | float | str], optional
            Keys of ``--federation-config``, with underscores; ``None`` for a federation of real SuperNodes.
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.federation_config_pb2 import SimulationConfig
        from flwr.supercore.fab import Fab

        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(dict(run_config)),
            override_federation_config=None if simulation is None else SimulationConfig(**simulation),
        )
        with _control_errors():
            response = self._client.StartRun(request)
        if not response.HasField("run_id"):
            raise ControlError("the SuperLink did not accept the app; see its log.")
        return int(response.run_id)

    def run_status(self, run_id: int) -> RunStatus:
        """Return the status of a run."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with _control_errors():
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        status = runs[run_id].status
        return RunStatus(status.status, status.sub_status, status.details)

    def unfinished_runs(self) -> dict[int, dict[str, Any]]:
        """Return the run-config overrides of those of the newest 100 runs that have not ended."""
        from flwr.common.serde import user_config_from_proto
        from flwr.proto.control_pb2 import ListRunsRequest

        with _control_errors():
            runs = self._client.ListRuns(ListRunsRequest(limit=100)).run_dict
        return {
            int(run_id): dict(user_config_from_proto(run.override_config))
            for run_id, run in runs.items()
            if run.status.status != "finished"
        }

    def stop_run(self, run_id: int) -> None:
        """Stop a run."""
        from flwr.proto.control_pb2 import StopRunRequest

        with _control_errors():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def register_node(self, public_key: bytes, *, name: str) -> int:
        """Let the SuperNode with that public key (PEM) in, and return its node id."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with _control_errors():
            response = self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        return int(response.node_id)

    def nodes(self) -> list[NodeStatus]:
        """Return all SuperNodes that the SuperLink knows or knew."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with _control_errors():
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [NodeStatus(node.node_id, bytes(node.public_key), node.status) for node in nodes]

    def logs(self, run_id: int) -> Iterator[str]:
        """Give a run's log in pieces as they come, until the run has ended."""
        from flwr.proto.control_pb2 import StreamLogsRequest

        with _control_errors():
            for piece in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
                yield piece.log_output


def build_bundle(app_dir: Path) -> bytes:
    """Return the app in a folder as a Flower App Bundle.

    Raises
    ------
    ValueError
        With Flower's reason, if the folder holds no app that can be run.
    """
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.config_utils import load_and_validate

    # What is ignored is flwr's own use of pathspec. Filters are the whole process's, and so, in CPython 3.11,
    # is the depth that ast counts (flwr parses the app's modules): hence the lock.
    with _BUNDLE_LOCK, warnings.catch_warnings():
        load_and_validate(app_dir / "pyproject.toml")
        warnings.filterwarnings("ignore", "GitWildMatchPattern", DeprecationWarning)
        return build_fab_from_disk(app_dir)


@contextmanager
def _control_errors() -> Iterator[None]:
    """Turn what can go wrong with a request into a ``ControlError`` with the SuperLink's own words."""
    from flwr.supercore.error import FlowerError

    try:
        yield
    except httpx.HTTPStatusError as error:
        known = FlowerError.from_json(error.response.text)
        words = f"{known.message} {known.public_details or ''}" if known else error.response.text
        raise ControlError(f"the SuperLink refused the request: {words.strip()}") from None
    except httpx.HTTPError as error:
        raise ControlError(f"the SuperLink does not answer: {type(error).__name__}: {error}") from None
