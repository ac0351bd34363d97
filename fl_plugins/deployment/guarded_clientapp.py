"""``flwr-clientapp`` with the operator's list of app bundles in front: what a deployed node starts per message.

Flower's SuperNode runs whatever bundle (FAB) the SuperLink sends, and a bundle may bring code of its own, which
would then look at the data without asking any policy. The node's ``start.sh`` therefore puts a
``flwr-clientapp`` that leads here before Flower's own on the PATH. If the node's policy has ``fab_hashes``, a
bundle whose SHA-256 is not among them is neither unpacked nor imported.
"""

import hashlib
import os
from collections.abc import Sequence

from fl_plugins._flower import run_client_app_process
from fl_plugins.errors import PolicyError
from fl_plugins.node_policy import NodePolicy

POLICY_VARIABLE = "FL_PLUGINS_POLICY"
"""Environment variable with the path of the node's policy; ``start.sh`` sets it."""

COMMAND = "fl-plugins-clientapp"
"""The console script that the node's own ``flwr-clientapp`` runs."""


def check_bundle(content: bytes, allowed: Sequence[str]) -> None:
    """Refuse an app bundle that is not on the operator's list; an empty list allows any.

    Raises
    ------
    PolicyError
        With the bundle's hash.
    """
    digest = hashlib.sha256(content).hexdigest()
    if allowed and digest not in allowed:
        raise PolicyError(
            f"policy: app bundle {digest} is not among this node's fab_hashes; its operator may add it."
        )


def main() -> None:
    """Serve one message like ``flwr-clientapp``; the policy is read before anything else."""
    path = os.environ.get(POLICY_VARIABLE, "")
    allowed = NodePolicy.load(path).fab_hashes if path else ()
    run_client_app_process(lambda content: check_bundle(content, allowed))
