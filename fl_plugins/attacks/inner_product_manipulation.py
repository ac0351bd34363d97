"""Inner-product manipulation (Xie et al. 2020, Fall of Empires, §3): a small step against the honest mean.

Where the hostile rows are near enough to be kept, the aggregate's inner product with the honest mean gets
small or negative. A client on its own estimates the mean by trainings on parts of its data: that is the
plugin of the same name.
"""

from typing import Any

from numpy.typing import NDArray

from ._checks import check_count, check_number, copies, honest_updates


def inner_product_manipulation(
    honest: NDArray[Any], num_byzantine: int, *, epsilon: float = 0.5
) -> NDArray[Any]:
    """Send −ε times the honest mean; ε >= 0."""
    check_count(num_byzantine, attack="inner_product_manipulation")
    check_number(epsilon, attack="inner_product_manipulation", name="epsilon", minimum=0)
    values = honest_updates(honest, attack="inner_product_manipulation")
    return copies(-epsilon * values.mean(axis=0), num_byzantine, like=honest)
