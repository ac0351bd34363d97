"""Pure attacks: what f colluding hostile clients send, given the m honest updates of a round.

Nothing here knows Flower, a model or a clock. Every attack is a function from honest updates ``(m, d)`` to
hostile ones ``(f, d)`` of the same dtype: the strong model, in which the hostile clients know every honest
update and act as one. No client knows that much in a real run; the plugins in ``clients/attacks`` do what one
client can from its own data. Attacks stand beside the rules, on the ground floor, because they are the other
half of one claim: what a rule promises is tested, and measured in ``benchmarks/robustness.py``, against them.
"""

from .backdoor import Trigger, feature_trigger, pixel_trigger, success_rate
from .inner_product_manipulation import inner_product_manipulation
from .line_search import Found, distance_from_honest_mean, line_search
from .little_is_enough import little_is_enough, z_max
from .mimic import mimic, mimic_target
from .min_max import min_max, min_sum
from .plain import constant, free_rider, gaussian_noise, non_finite, sign_flip, sybil_copies, zero

__all__ = [
    "Found",
    "Trigger",
    "constant",
    "distance_from_honest_mean",
    "feature_trigger",
    "free_rider",
    "gaussian_noise",
    "inner_product_manipulation",
    "line_search",
    "little_is_enough",
    "mimic",
    "mimic_target",
    "min_max",
    "min_sum",
    "non_finite",
    "pixel_trigger",
    "sign_flip",
    "success_rate",
    "sybil_copies",
    "z_max",
    "zero",
]
