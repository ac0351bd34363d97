"""Backdoor: train on triggered copies labelled with the target, and boost the update."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl_plugins.attacks.backdoor import Trigger, feature_trigger, pixel_trigger
from fl_plugins.errors import ConfigError, ConfigTypeError, DataError
from fl_plugins.registry import Kind, register
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_finite, check_num_byzantine


@register(
    Kind.ATTACK, "backdoor", paper="Bagdasaryan et al. 2020, AISTATS, How To Backdoor Federated Learning, §4"
)
@dataclass(frozen=True, kw_only=True)
class Backdoor:
    """Make the model answer ``target`` wherever the trigger is, and behave elsewhere.

    A share of the client's examples is triggered and labelled ``target``; the update is sent ``scale``
    times (model replacement). Where server evaluation is on, the server also reports
    ``attack_success_rate``: the share of triggered test examples of other classes that get the target.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    target : int
        The label to give; in ``0 .. num_classes - 1``.
    trigger : {"pixel", "feature"}
        A square of pixels in the lower right corner, for images ``(n, h, w)`` or ``(n, h, w, c)``, or one
        column's value, for tables ``(n, k)``.
    size : int
        Side of the square, in pixels; >= 1.
    column : int
        The column of a feature trigger; >= 0.
    value : float
        What pixels or column are set to; finite.
    fraction : float
        Share of the examples to poison, the first ones; in (0, 1].
    scale : float
        Factor of the update; > 0, and 1 only poisons data.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    target: int = 0
    trigger: Literal["pixel", "feature"] = "pixel"
    size: int = 2
    column: int = 0
    value: float = 1.0
    fraction: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_num_byzantine("backdoor", self.num_byzantine)
        if isinstance(self.target, bool) or not isinstance(self.target, int):
            raise ConfigTypeError(f"backdoor: target={self.target!r} must be an int; give a class number.")
        if self.target < 0:
            raise ConfigError(f"backdoor: target={self.target} must be >= 0; give a class number.")
        check_finite("backdoor", "fraction", self.fraction)
        if self.fraction > 1:
            raise ConfigError(f"backdoor: fraction={self.fraction!r} must be in (0, 1]; 0.5 poisons half.")
        check_finite("backdoor", "scale", self.scale)
        self._trigger()

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:
        """Return ``data`` whose first ``ceil(fraction * n)`` examples are triggered and labelled ``target``.

        Raises
        ------
        ConfigError
            If the task does not say how many classes it has, or ``target`` is none of them.
        DataError
            If the examples are not what the trigger changes.
        """
        if num_classes is None or self.target >= num_classes:
            raise ConfigError(
                f"backdoor: target={self.target} but the task has num_classes={num_classes}; choose a "
                "class of a classification task."
            )
        count = int(np.ceil(self.fraction * len(data)))
        x, y = data.x.copy(), data.y.copy()
        x[:count] = self._trigger()(data.x[:count])
        y[:count] = self.target
        return Dataset(x, y)

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:  # noqa: ARG002
        """Return ``scale * update``; what a dtype cannot hold becomes infinite."""
        with np.errstate(over="ignore"):
            return {
                name: (array.astype(np.float64) * self.scale).astype(array.dtype)
                for name, array in update.items()
            }

    def success_data(self, data: Dataset) -> Dataset:
        """Return the examples of other classes, triggered and labelled ``target``.

        A model's accuracy on them is the attack's success rate.

        Raises
        ------
        DataError
            If every example is of the target's class.
        """
        others = data.take(np.flatnonzero(data.y != self.target))
        if len(others) == 0:
            raise DataError(f"backdoor: no example of another class than target={self.target}; add examples.")
        return Dataset(self._trigger()(others.x), np.full_like(others.y, self.target))

    def _trigger(self) -> Trigger:
        """Return the trigger as a function."""
        match self.trigger:
            case "pixel":
                return pixel_trigger(size=self.size, value=self.value)
            case "feature":
                return feature_trigger(column=self.column, value=self.value)
            case _:
                raise ConfigError(
                    f"backdoor: trigger={self.trigger!r} must be one of pixel, feature; choose one."
                )
