"""Send messages to nodes and hand back their replies as they arrive.

Flower's own ``send_and_receive`` returns only when the last reply is in, and on a deployed SuperLink it
looks every three seconds. Here a reply is yielded when it lands; the pause between two looks is a small part
of the time for which nothing has come, the simulation engine is told at once that there are messages and
tells when there is a reply, and one that is still being uploaded is fetched when it is complete, not a second
later.
"""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from fl_plugins._flower import deliver_now, pull_promptly
from fl_plugins._flower_engine import pause, tells_of_replies

_LATE_S = 300.0
"""How long after the deadline a message expires: more than clocks may differ and pushing may take."""

_SHORTEST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.25
_PAUSE_PART = 0.05
"""Of the time for which nothing has come: what a reply waits for on average is half of that."""

_TIMES_LOOKING = 2.0
"""Pauses are so much longer than looking takes, which a SuperLink, one process, spends on nothing else."""


def post(grid: Grid, messages: Iterable[Message], *, timeout_s: float) -> set[str]:
    """Push ``messages`` and return their ids; nobody is given one that ``timeout_s`` is long over for."""
    pull_promptly()
    sent = list(messages)
    for message in sent:
        message.metadata.ttl = min(message.metadata.ttl, timeout_s + _LATE_S)
    outstanding = {message_id for message_id in grid.push_messages(sent) if message_id}
    deliver_now(message.metadata.dst_node_id for message in sent)
    return outstanding


def exchange(grid: Grid, messages: Iterable[Message], *, timeout_s: float) -> Iterator[Message]:
    """Push ``messages`` and yield each reply once; stop when all are in or ``timeout_s`` has passed.

    Replies come in order of arrival. Nodes that have not answered in time are simply absent. A node that was
    away for long is not given messages that nobody waits for any more: they expire.
    """
    outstanding = post(grid, messages, timeout_s=timeout_s)
    del messages
    last = time.monotonic()
    deadline = last + timeout_s
    while outstanding:
        began = time.monotonic()
        replies = list(reversed(list(grid.pull_messages(outstanding))))
        came = bool(replies)
        looking = 0.0 if came else time.monotonic() - began
        while replies:
            # Out of the list first: a caller that is done with a reply frees its memory before the next.
            reply = replies.pop()
            outstanding.discard(reply.metadata.reply_to_message_id)
            yield reply
            del reply
        now = time.monotonic()
        if not outstanding or now >= deadline:
            return
        if came:
            last = now
        seconds = max(_SHORTEST_PAUSE_S, _PAUSE_PART * (now - last), _TIMES_LOOKING * looking)
        if tells_of_replies():
            seconds = _LONGEST_PAUSE_S
        pause(min(seconds, _LONGEST_PAUSE_S, deadline - now))
