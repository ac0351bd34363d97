"""``flwr-clientapp`` with the operator's list of app bundles in front.

Flower's SuperNode runs whatever bundle (FAB) the SuperLink sends, and a bundle may bring a ClientApp of its
own, which looks at the data without asking any policy. ``fl-plugins-supernode`` starts this in the place of
``flwr-clientapp``: if the node's policy has ``fab_hashes``, a bundle whose SHA-256 is not among them is
neither unpacked nor imported.
"""

import hashlib
import os
import sys
from collections.abc import Sequence

from .._flower import run_client_app_process
from ..errors import PolicyError
from ..node_policy import NodePolicy

POLICY_VARIABLE = "FL_PLUGINS_POLICY"
"""Environment variable with the path of the node's policy: the process is started before any node-config."""

SCRIPT = "fl-plugins-clientapp"
"""The console script of :func:`main`."""

CLIENT_APP = "flwr-clientapp"


def allowed_bundles() -> tuple[str, ...]:
    """Return the hashes on the operator's list; none if any bundle may start.

    Raises
    ------
    ConfigError
        If the policy cannot be read.
    """
    path = os.environ.get(POLICY_VARIABLE, "")
    return NodePolicy.load(path).fab_hashes if path else ()


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
    allowed = allowed_bundles()
    sys.argv[0] = CLIENT_APP
    run_client_app_process((lambda content: check_bundle(content, allowed)) if allowed else None)
