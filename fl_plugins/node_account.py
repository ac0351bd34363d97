"""A node's own account of local and distributed differential privacy, which no server can reset.

Keys of the node's own config (``--node-config 'privacy-ledger="/var/lib/fl/privacy.jsonl"
max-epsilon=8.0'``):

==================  ====================================================================================
``privacy-ledger``  the ledger's file, for all runs of this node; without it only this run's releases are
                    counted, in Flower's context, and another run begins at zero
``max-epsilon``     the largest ε over everything in the ledger; without it nothing is refused
``privacy-delta``   the δ of that ε; 1e-5 by default
==================  ====================================================================================
"""

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context

from .checks import check_number
from .local_privacy import LOCAL
from .privacy import Release
from .privacy.ledger import Ledger
from .privacy_account import PrivacyAccount

logger = logging.getLogger("flwr.fl_plugins")

LEDGER = "privacy-ledger"
MAX_EPSILON = "max-epsilon"
DELTA = "privacy-delta"

DEFAULT_DELTA = 1e-5

POPULATION = "the data of this node"

_RECORD = "fl-plugins.local-privacy"
"""Record in the context's state, for a node without a ledger file: releases, and how often each was made."""


class NodeAccount:
    """The account of the node that a context belongs to.

    Raises
    ------
    ConfigError, ConfigTypeError
        If the node's config has a limit or a δ that is none.
    """

    def __init__(self, context: Context) -> None:
        config = context.node_config
        given: dict[str, float | None] = {MAX_EPSILON: None, DELTA: DEFAULT_DELTA}
        for key in given:
            if key in config:
                check_number("node config", key, config[key], minimum=0.0, open_below=True)
                given[key] = float(config[key])
        self._context, self._limits = context, given
        path = str(config.get(LEDGER, ""))
        self._path = Path(path) if path else None

    def charge(self, release: Release, number: int) -> int:
        """Charge reply ``number`` of this run before the data are touched; return what to commit.

        Raises
        ------
        BudgetError
            If the node's limit would be exceeded.
        """
        if self._path is None:
            return self._charge_in_context(release, number)
        with self._account() as account:
            return account.reserve(release, number)

    def commit(self, reservation: int) -> None:
        """Note that the reply is protected and leaves."""
        if self._path is not None:
            with self._account() as account:
                account.commit(reservation)

    @contextmanager
    def _account(self) -> Iterator[PrivacyAccount]:
        """Open the ledger for this process alone; others wait."""
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        run = f"run {self._context.run_id}"
        with open(self._path.with_name(f"{self._path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with Ledger(self._path, population=POPULATION, relation=LOCAL) as ledger:
                ledger.begin(run, {})
                account = self._new()
                account.keep_in(ledger, run=run)
                yield account

    def _charge_in_context(self, release: Release, number: int) -> int:
        """Charge a release in the context's state."""
        logger.info("local privacy: no %s in the node's config: only this run is counted", LEDGER)
        account = self._new()
        record = self._context.state.config_records.get(_RECORD, ConfigRecord())
        for text, count in record.items():
            assert isinstance(count, int)
            account.count(Release.from_json(json.loads(text)), count)
        reservation = account.reserve(release, number)
        spent: ConfigRecord = ConfigRecord()
        for each, count in account.counts.items():
            spent[json.dumps(each.to_json(), sort_keys=True)] = count
        self._context.state[_RECORD] = spent
        return reservation

    def _new(self) -> PrivacyAccount:
        """Return an account with the node's limits."""
        delta = self._limits[DELTA]
        assert delta is not None
        return PrivacyAccount(
            LOCAL, delta=delta, max_epsilon=self._limits[MAX_EPSILON], owner="this node's privacy account"
        )
