"""The client's side of a stack of layers: one mod that checks the announcement and does this node's part.

The server announces in every message what layers the stack has (:data:`fl_plugins.wire.LAYERS`). This mod
checks that against the node's own policy, then runs the mods of the layers, the outermost first on the way in
and last on the way out. What it cannot or may not do is answered with an error: never an unprotected update.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod

from .. import wire
from .._flower import BUNDLE_CHECKED, CLIENT_APP_ERROR
from ..errors import ContractError, FLPluginsError, PolicyError
from ..node_policy import POLICY, NodePolicy, announcement
from ..registry import Kind, load_modules
from ..resident.guard import allowed_bundles
from ..spec import build
from .config import RunConfig


def layers_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Check the node's policy, then run the announced layers around ``call_next``.

    Works in anyone's ClientApp: ``ClientApp(mods=[layers_mod])``. A message that is refused is answered with
    an error reply that says why, before the app sees it.
    """
    try:
        return _around(message, context, call_next)(message, context)
    except FLPluginsError as error:
        return refuse(message, error)


def refuse(message: Message, error: FLPluginsError) -> Message:
    """Return the error reply for an expected failure."""
    return Message(Error(CLIENT_APP_ERROR, f"{type(error).__name__}: {error}"), reply_to=message)


def _around(message: Message, context: Context, app: ClientAppCallable) -> ClientAppCallable:
    """Return the app with the announced layers around it, if the node's policy allows the message."""
    kind = message.metadata.message_type.partition(".")[0]
    config = message_config(message)
    names = announcement(config, wire.LAYERS)
    policy = node_policy(context.node_config)
    run = RunConfig.from_run_config(context.run_config)
    if policy is not None and policy.fab_hashes:
        _check_that_bundles_are_checked(policy.fab_hashes)
    if policy is not None and kind != MessageType.QUERY:
        policy.check(config, task=run.task)
        if kind == MessageType.TRAIN and wire.STAGE not in config:
            policy.count_round()
    if wire.STAGE in config:
        app = _not_for_the_app
    load_modules(run.plugins)
    for spec in reversed(names):
        mod = build(Kind.MOD, spec)
        if not callable(mod):
            raise ContractError(f"{spec}: made a {type(mod).__name__}, but a Flower mod is needed.")
        app = partial(_call, mod, call_next=app)
    return app


def _check_that_bundles_are_checked(demanded: Sequence[str]) -> None:
    """Refuse if this process may have been started from a bundle that the policy does not list."""
    checked = os.environ.get(BUNDLE_CHECKED) == str(os.getpid())
    if not checked or not set(allowed_bundles()) <= set(demanded):
        raise PolicyError(
            "policy: fab_hashes are only enforced in a node that fl-plugins-supernode has started with "
            "FL_PLUGINS_POLICY, the path of this very policy; start it so, or take them out of the policy."
        )


def _not_for_the_app(_: Message, __: Context) -> Message:
    """Refuse a stage that no layer has answered: it is not counted as a round, so it trains nothing."""
    raise PolicyError(
        f"the message has {wire.STAGE}, but no layer that it announces has such a stage; install the same "
        "fl-plugins version everywhere."
    )


def _call(mod: Mod, message: Message, context: Context, *, call_next: ClientAppCallable) -> Message:
    """Run a mod with its arguments in Flower's order."""
    return mod(message, context, call_next)


def message_config(message: Message) -> Mapping[str, Any]:
    """Return the message's config; a message without one announces nothing."""
    config: Mapping[str, Any] = message.content.config_records.get(wire.CONFIG, ConfigRecord())
    return config


def config_here(context: Context) -> RunConfig:
    """Return the run config as this node reads it: its policy may say where the data are."""
    config = RunConfig.from_run_config(context.run_config)
    policy = node_policy(context.node_config)
    return config if policy is None else replace(config, task=policy.own_task(config.task))


def node_policy(node_config: Mapping[str, Any]) -> NodePolicy | None:
    """Return the policy that a node's own config names, read once per process.

    Raises
    ------
    ConfigError, ConfigTypeError
        If it is named and cannot be read: a node whose policy is broken serves nothing.
    """
    path = node_config.get(POLICY, "")
    return _load(str(path)) if path else None


_load = lru_cache(maxsize=4)(NodePolicy.load)
