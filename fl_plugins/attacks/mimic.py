"""Mimic (Karimireddy et al. 2022, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, §3.2).

All hostile clients copy one honest client, so that its data count f + 1 times and, with rules that drop
outliers, others' data not at all. Nothing it sends is abnormal. Target: with z the unit vector along which
honest updates differ most, the client that is farthest along z.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, StructureError
from ._checks import check_count, copies, honest_updates


def mimic_target(history: NDArray[Any]) -> int:
    """Return the honest client to copy, from ``(t, m, d)`` updates of t rounds (the paper's warm-up).

    z maximises Σ over rounds and clients of (z·(x_i − mean of the round))²; the target maximises |Σ over
    rounds of z·x_i|. The lowest index wins a tie.

    Raises
    ------
    StructureError
        If ``history`` is not ``(t, m, d)`` with t >= 1.
    """
    rounds = np.asarray(history)
    if rounds.ndim != 3 or len(rounds) == 0:
        raise StructureError(f"mimic: history has shape {rounds.shape} but (t, m, d) with t >= 1 is needed.")
    t, m, d = rounds.shape
    values = honest_updates(rounds.reshape(t * m, d), attack="mimic").reshape(t, m, d)
    centred = (values - values.mean(axis=1, keepdims=True)).reshape(t * m, d)
    # The leading right singular vector, from the small (t·m, t·m) Gram matrix.
    _, vectors = np.linalg.eigh(centred @ centred.T)
    along = values.sum(axis=0) @ (vectors[:, -1] @ centred)
    return int(np.argmax(np.abs(along)))


def mimic(honest: NDArray[Any], num_byzantine: int, *, target: int | None = None) -> NDArray[Any]:
    """Send copies of honest row ``target``; by default :func:`mimic_target` of this round alone."""
    check_count(num_byzantine, attack="mimic")
    values = honest_updates(honest, attack="mimic")
    if target is None:
        target = mimic_target(values[None])
    check_count(target, attack="mimic", name="target")
    if target >= len(values):
        raise ConfigError(f"mimic: target={target} must be < m={len(values)}; choose an honest row.")
    return copies(values[target], num_byzantine, like=honest)
