"""Dealing one data set's examples to clients: every example to exactly one, the same for equal seeds.

Each function returns a list of ``num_partitions`` sorted index arrays. Notation: N partitions, n examples,
C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_plugins.errors import ConfigError, DataError

Indices = NDArray[np.intp]

_MAX_DRAWS = 1000


def iid(labels: NDArray[Any], num_partitions: int, *, rng: np.random.Generator) -> list[Indices]:
    """Deal shuffled examples evenly: sizes differ by at most one; the last are empty if N > n."""
    _check_num_partitions(num_partitions)
    return _sorted(np.array_split(rng.permutation(len(labels)), num_partitions))


def dirichlet(
    labels: NDArray[Any],
    num_partitions: int,
    *,
    alpha: float,
    rng: np.random.Generator,
    min_examples: int = 0,
) -> list[Indices]:
    """Split every class over the clients in proportions drawn from a symmetric Dirichlet(α).

    Small α: few classes per client and uneven sizes; large α: nearly IID (Yurochkin et al. 2019, §4; the
    class-wise form of Hsu et al. 2019). With ``min_examples`` the proportions are drawn again until every
    client has as many; without it some clients may have none.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule, or no draw of many gives every client ``min_examples``.
    """
    _check_num_partitions(num_partitions)
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"dirichlet: alpha={alpha!r} must be a finite number > 0; 0.5 is strongly uneven.")
    if min_examples < 0:
        raise ConfigError(
            f"dirichlet: min_examples={min_examples!r} must be >= 0; leave it out for no bound."
        )
    if min_examples * num_partitions > len(labels):
        raise ConfigError(
            f"dirichlet: min_examples={min_examples} for {num_partitions} partitions needs "
            f"{min_examples * num_partitions} examples, but there are {len(labels)}; lower min_examples or "
            "use fewer partitions."
        )
    for _ in range(_MAX_DRAWS):
        parts = _dirichlet_draw(labels, num_partitions, alpha=alpha, rng=rng)
        if min(map(len, parts)) >= min_examples:
            return parts
    raise ConfigError(
        f"dirichlet: none of {_MAX_DRAWS} draws with alpha={alpha} gave each of {num_partitions} partitions "
        f"min_examples={min_examples} of {len(labels)} examples; raise alpha or lower min_examples."
    )


def by_label(
    labels: NDArray[Any], num_partitions: int, *, labels_per_client: int, rng: np.random.Generator
) -> list[Indices]:
    """Give each client examples of at most ``labels_per_client`` classes.

    The pathological split of McMahan et al. 2017, §3, with exact classes in place of shards: owners per
    class differ by at most one, and a class is split evenly over its owners.

    Raises
    ------
    ConfigError
        If ``labels_per_client`` is not in 1..C, or too small for every class to have an owner.
    """
    _check_num_partitions(num_partitions)
    classes = np.unique(labels)
    if not 1 <= labels_per_client <= len(classes):
        raise ConfigError(
            f"by_label: labels_per_client={labels_per_client} must be between 1 and the number of classes, "
            f"{len(classes)}; choose one in that range."
        )
    if num_partitions * labels_per_client < len(classes):
        raise ConfigError(
            f"by_label: {num_partitions} partitions with labels_per_client={labels_per_client} cannot own "
            f"all {len(classes)} classes; raise labels_per_client or use more partitions."
        )
    owners: list[list[int]] = [[] for _ in classes]
    for client in range(num_partitions):
        # The classes with the fewest owners so far, ties at random.
        rank = np.lexsort((rng.random(len(classes)), np.array([len(clients) for clients in owners])))
        for label in rank[:labels_per_client]:
            owners[label].append(client)
    parts: list[list[Indices]] = [[] for _ in range(num_partitions)]
    for value, clients in zip(classes, owners, strict=True):
        members = rng.permutation(np.flatnonzero(labels == value))
        for client, share in zip(clients, np.array_split(members, len(clients)), strict=True):
            parts[client].append(share)
    return _sorted([np.concatenate(part) for part in parts])


def hold_out(labels: NDArray[Any], fraction: float, *, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Split into (rest, held out), both sorted; each class gives ``round(fraction * its n)``."""
    held_out = [
        members[: round(fraction * len(members))]
        for value in np.unique(labels)
        for members in [rng.permutation(np.flatnonzero(labels == value))]
    ]
    chosen = np.sort(np.concatenate([np.empty(0, np.intp), *held_out]))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def check_partition_id(partition_id: int, num_partitions: int, *, task: str) -> None:
    """Raise ``DataError`` unless ``0 <= partition_id < num_partitions``."""
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"{task}: partition_id={partition_id} must be between 0 and num_partitions - 1 = "
            f"{num_partitions - 1}; check the node's configuration."
        )


def _check_num_partitions(num_partitions: int) -> None:
    """Raise ``DataError`` unless there is at least one partition."""
    if num_partitions < 1:
        raise DataError(
            f"partition: num_partitions={num_partitions} must be >= 1; check the node's configuration."
        )


def _dirichlet_draw(
    labels: NDArray[Any], num_partitions: int, *, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """Split every class by one draw of proportions."""
    parts: list[list[Indices]] = [[np.empty(0, np.intp)] for _ in range(num_partitions)]
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        shares = rng.dirichlet(np.full(num_partitions, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.intp)
        for part, share in zip(parts, np.split(members, cuts), strict=True):
            part.append(share)
    return _sorted([np.concatenate(part) for part in parts])


def _sorted(parts: list[Any]) -> list[Indices]:
    """Return every index array in ascending order."""
    return [np.sort(part).astype(np.intp) for part in parts]
