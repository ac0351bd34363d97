"""A node's own account of local differential privacy, which no server can reset.

Keys of the node's own config (``--node-config 'privacy-ledger="/var/lib/fl/privacy.jsonl" max-epsilon=8.0'``):

==================  ====================================================================================
``privacy-ledger``  the ledger's file, for all runs of this node; without it only the run's own releases
                    are counted, in Flower's context, and a new run begins at zero
``max-epsilon``     the largest ε over everything in the ledger; without it nothing is refused
``privacy-delta``   the δ of that ε; 1e-5 by default
==================  ====================================================================================
"""

import json
import logging
from pathlib import Path

from flwr.app import ConfigRecord, Context

from .checks import check_number
from .local_privacy import LOCAL
from .privacy import Release
from .privacy_account import PrivacyAccount
from .privacy_ledger import PrivacyLedger

logger = logging.getLogger("flwr.fl_plugins")

LEDGER = "privacy-ledger"
MAX_EPSILON = "max-epsilon"
DELTA = "privacy-delta"

DEFAULT_DELTA = 1e-5

_RECORD = "fl-plugins.local-privacy"
"""Record in the context's state, for a node without a ledger file: releases and how often."""


class NodeAccount:
    """The account of the node that a context belongs to."""

    def __init__(self, context: Context) -> None:
        config = context.node_config
        given: dict[str, float | None] = {MAX_EPSILON: None, DELTA: DEFAULT_DELTA}
        for key in given:
            if key in config:
                check_number("node config", key, config[key], minimum=0.0, open_below=True)
                given[key] = float(config[key])
        path = str(config.get(LEDGER, ""))
        self._context = context
        self._ledger = PrivacyLedger(LOCAL, Path(path) if path else None)
        if not path:
            logger.info(
                "local privacy: no %s in the node's config, so only this run's releases are counted", LEDGER
            )
            self._recall()
        delta = given[DELTA]
        assert delta is not None
        self._account = PrivacyAccount(
            self._ledger, delta=delta, max_epsilon=given[MAX_EPSILON], owner="this node's privacy account"
        )

    def charge(self, release: Release, label: str) -> int:
        """Charge a release before the data are touched; return what :meth:`commit` is told.

        Raises
        ------
        BudgetError
            If the node's limit would be exceeded.
        """
        identifier = self._account.reserve(release, label)
        self._remember()
        return identifier

    def commit(self, identifier: int) -> None:
        """Note that the release left the node."""
        self._account.commit(identifier)

    def _recall(self) -> None:
        """Take up what the context's state has."""
        record = self._context.state.config_records.get(_RECORD, ConfigRecord())
        for text, count in record.items():
            release = Release.from_json(json.loads(text))
            for _ in range(int(count)):
                self._ledger.reserve(release, "earlier")

    def _remember(self) -> None:
        """Keep what is spent in the context's state."""
        if self._ledger.path is None:
            spent = {
                json.dumps(release.to_json(), sort_keys=True): count
                for release, count in self._ledger.releases.items()
            }
            self._context.state[_RECORD] = ConfigRecord(spent)
