"""The client's side of packed arrays: one mod around all others; no other part of a node knows of them."""

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from ..errors import FLPluginsError
from ..packing import is_packed, pack, unpack
from .layers import refuse


def packed_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Unpack the message for all that follows, and pack the reply if the message was packed."""
    if not message.has_content() or not is_packed(message.content):
        return call_next(message, context)
    try:
        message.content = unpack(message.content)
    except FLPluginsError as error:
        return refuse(message, error)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = pack(reply.content)
    return reply
