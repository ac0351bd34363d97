"""Send messages to nodes and hand back their replies as they arrive.

Flower's own ``send_and_receive`` returns only when the last reply is in, and on a deployed SuperLink it
looks every three seconds. Here a reply is yielded when it lands; the pause between two looks starts short
and grows while nothing comes.
"""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

_SHORTEST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
_GROWTH = 1.5


def exchange(grid: Grid, messages: Iterable[Message], *, timeout_s: float) -> Iterator[Message]:
    """Push ``messages`` and yield each reply once; stop when all are in or ``timeout_s`` has passed.

    Replies come in order of arrival. Nodes that have not answered in time are simply absent.
    """
    outstanding = {message_id for message_id in grid.push_messages(list(messages)) if message_id}
    deadline = time.monotonic() + timeout_s
    pause = _SHORTEST_PAUSE_S
    while outstanding:
        replies = list(reversed(list(grid.pull_messages(outstanding))))
        came = bool(replies)
        while replies:
            # Out of the list first: a caller that is done with a reply frees its memory before the next.
            reply = replies.pop()
            outstanding.discard(reply.metadata.reply_to_message_id)
            yield reply
            del reply
        remaining = deadline - time.monotonic()
        if not outstanding or remaining <= 0:
            return
        if came:
            pause = _SHORTEST_PAUSE_S
        else:
            time.sleep(min(pause, remaining))
            pause = min(pause * _GROWTH, _LONGEST_PAUSE_S)
