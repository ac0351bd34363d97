"""The door to flwr's simulation engine, in the engine's own process; see :mod:`fl_plugins._flower`.

The engine has every message handled by an actor of Ray, a process of its own: for one node that hosts all
clients that is a second interpreter that imports, traces and compiles everything once more, and for every
round two trips of the parameters through Ray's object store. Here such a node is served where the engine is.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from queue import Queue
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException

ENGINE = "flwr.server.superlink.fleet.vce.vce_api"
PROCESS = "flwr.simulation.app"
CORES = "in-process-cores"
"""Run-config key: how many cores the nodes have that the engine serves itself; 0: Ray serves them."""

_LONGEST_WAIT_S = 0.1

_arrived = threading.Event()
"""Set when the engine has stored a reply; only in an engine that says so (:data:`_telling`)."""

_telling = threading.Event()


class InProcessBackend:
    """Serves one message at a time, in the process of the simulation engine; a ``Backend`` in all but name.

    To derive it from Flower's class would load the engine in every process that imports this.

    Guarantees
    ----------
    The ClientApp is given copies of message and context, as in an actor of Ray: what it changes in place is
    its own, and a context that it changed before it raised stays as it was. Only the bytes of arrays, which
    nobody can change, are not copied.
    """

    def __init__(self) -> None:
        self._app: ClientApp | None = None

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Keep the app."""
        self._app = app_fn()

    @property
    def num_workers(self) -> int:
        """Return one: the app's trainer uses all cores by itself."""
        return 1

    def is_worker_idle(self) -> bool:
        """Return whether a message could be served; the engine does not ask."""
        return self._app is not None

    def terminate(self) -> None:
        """Do nothing: there is nothing of ours to end."""

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Return the app's reply and the context as it left it.

        Raises
        ------
        ClientAppException
            If the app raises, with its words: the engine answers with an error.
        """
        assert self._app is not None
        context = deepcopy(context)
        try:
            return self._app(deepcopy(message), context), context
        except Exception as error:
            raise ClientAppException(str(error)) from error


class _PromptQueue(Queue[Any]):
    """A queue whose reader looks sooner whether it is over: the engine's does so once in a second."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next item, as a Queue does."""
        return super().get(block, None if timeout is None else min(timeout, _LONGEST_WAIT_S))


def in_engine() -> bool:
    """Whether this is the process of a simulation engine."""
    return ENGINE in sys.modules


def in_actor() -> bool:
    """Whether this is a process of Ray, in which a simulation engine has its nodes served."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def tells_of_replies() -> bool:
    """Whether :func:`pause` ends when a reply has come, so that it may be long."""
    return _telling.is_set()


def pause(seconds: float) -> None:
    """Wait for so long, or in an engine until a reply has come since the last pause."""
    if not tells_of_replies():
        time.sleep(seconds)
    elif _arrived.wait(seconds):
        _arrived.clear()  # before the caller looks: what comes from here on ends the next pause


def prepare_engine() -> None:
    """Let the engine in this process serve its nodes itself if the run config says so, and lose no time.

    Call it while the engine loads its ClientApp, which is before it makes its backend and its threads. It
    then tells of replies (:func:`pause`), notices within 0.1 s, not 1 s, that a run is over, and waits for
    the last upload of its log, not for a second in which that should end. Outside the engine's process,
    nothing happens.
    """
    vce_api: Any = sys.modules.get(ENGINE)
    if vce_api is None or vce_api.Queue is _PromptQueue:
        return
    run_api, store_replies = vce_api.run_api, vce_api.put_message_into_state

    def run(app_fn: Any, backend_fn: Any, nodes: Any, state_factory: Any, stores: Any, *rest: Any) -> None:
        told = any(_cores(store) for store in stores.values())
        run_api(app_fn, InProcessBackend if told else backend_fn, nodes, state_factory, stores, *rest)

    def store_and_tell(state: Any, queue: Any, stopped: Any) -> None:
        _telling.set()
        try:
            store_replies(_TellingState(state), queue, stopped)
        finally:
            _telling.clear()

    vce_api.run_api, vce_api.put_message_into_state = run, store_and_tell
    vce_api.Queue = _PromptQueue
    process: Any = sys.modules.get(PROCESS)
    if process is not None:
        process.flush_logs = partial(_upload_log, process.flush_logs)


def _upload_log(flush: Callable[..., bool], lines: Any, timeout: float = 3.0) -> bool:
    """Have the rest of a log uploaded, and end the thread that does it; by ``flush`` if there is none."""
    for thread in threading.enumerate():
        # Both attributes are gone as soon as the thread ends.
        target, arguments = getattr(thread, "_target", None), getattr(thread, "_args", ())
        if getattr(target, "__name__", "") == "_log_uploader" and arguments and arguments[0] is lines:
            lines.put(None)  # its sign to upload what there is and end
            thread.join(timeout)
            return not thread.is_alive()
    return flush(lines, timeout)


class _TellingState:
    """A LinkState as far as it stores replies."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def store_message_res(self, message: Message) -> Any:
        """Store a reply, and tell."""
        stored = self._state.store_message_res(message)
        _arrived.set()
        return stored


def _cores(store: Any) -> int:
    """Return what the run config of a node's only run says."""
    configs: list[Mapping[str, Any]] = [info.context.run_config for info in store.run_infos.values()]
    return max((int(config.get(CORES, 0)) for config in configs), default=0)
