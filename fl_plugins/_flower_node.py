"""The door to flwr's non-public modules in a SuperNode's own process; see :mod:`fl_plugins._flower`."""

import importlib
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flwr.common.constant import Status

from ._flower import pull_promptly

HOLD_S = 0.5
"""How long a request for a task is held back: SuperExec looks after its ended processes in between."""

_LOOK_EVERY_S = 0.01


def poll_promptly(instead_of: Callable[[float], float]) -> None:
    """Let the SuperNode in this process pause for ``instead_of(seconds)`` where it would for ``seconds``.

    Its main loop sleeps for 3 s whenever there is no message and for 0.5 s while it awaits a reply; neither
    is an option of its command. And it takes any reply for the one that it awaits: if an old message's comes
    first (its ClientApp was given up), the awaited one stays here until the *next* message is pulled, which
    may be never. So whenever there is no message, replies that are left are sent.

    Its SuperExec asks for tasks over HTTP, again and again; here an answer is held back until there is one.
    """
    module: Any = importlib.import_module("flwr.supernode.start_client_internal")
    pull_promptly()
    module.time = SimpleNamespace(sleep=lambda seconds: time.sleep(instead_of(seconds)))
    pull = module._pull_and_store_message

    def pull_or_send(*, state: Any, **given: Any) -> int | None:
        run_id: int | None = pull(state=state, **given)
        # Any number lets the loop go on to send what there is.
        return 0 if run_id is None and _has_reply(state) else run_id

    module._pull_and_store_message = pull_or_send
    handlers: Any = importlib.import_module("flwr.supernode.servicer.runtime.runtime_handlers")
    handlers.acquire_task = _held_back(handlers.acquire_task)


def _held_back(acquire: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a handler of SuperExec's requests for a task that waits for one, ``HOLD_S`` at most.

    Whoever can take no task is answered at once. Looking here costs little beside a request.
    """

    def acquire_or_wait(request: Any, state: Any) -> Any:
        deadline = time.monotonic() + HOLD_S
        able = request.supported_task_types or request.agentapp_fab_hashes
        while able and not state.get_tasks(statuses=[Status.PENDING]) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        return acquire(request, state)

    return acquire_or_wait


def _has_reply(state: Any) -> bool:
    """Whether a SuperNode's state holds a reply that was not sent yet; looking takes none."""
    with state.lock_msg_store:
        return any(
            entry.message.metadata.reply_to_message_id and not entry.is_retrieved
            for entry in state.msg_store.values()
        )


def run_supernode() -> None:
    """Be ``flower-supernode`` with this process's arguments."""
    from flwr.supernode.cli import flower_supernode

    flower_supernode()
