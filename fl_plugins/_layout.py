"""The names, shapes and dtypes of a model's arrays, and the one vector that its floats make."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, Self

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from ._arrays import to_named
from .dtypes import DType, compute_dtype, is_float, supported
from .errors import DivergenceError, StructureError
from .pytrees import check_keys
from .training import NamedArrays


class Entry(NamedTuple):
    """One array of a model: its key, shape and (native) dtype."""

    key: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """A model's arrays in canonical order: sorted by *name*, so that order of arrival never matters.

    The vector of a model has its float arrays, one after the other in that order, as ``(size,)`` of
    ``compute_dtype``. Integer and bool arrays are not part of it.

    Parameters
    ----------
    entries : tuple[Entry, ...]
        Sorted by key; use :meth:`of`.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, source: ArrayRecord | Mapping[str, Any]) -> Self:
        """Return the layout of a record or of named arrays, whatever their order."""
        named = to_named(source) if isinstance(source, ArrayRecord) else source
        return cls(
            tuple(
                Entry(key, tuple(values.shape), supported(values.dtype, owner=f"array {key!r}"))
                for key, values in sorted(named.items())
            )
        )

    @cached_property
    def float_entries(self) -> tuple[Entry, ...]:
        """The arrays that make the vector."""
        return tuple(entry for entry in self.entries if is_float(entry.dtype))

    @cached_property
    def float_keys(self) -> tuple[str, ...]:
        """Keys of the arrays that make the vector."""
        return tuple(entry.key for entry in self.float_entries)

    @cached_property
    def trained_keys(self) -> tuple[str, ...]:
        """Float keys that gradients train: those of ``params/``, or all if there are none."""
        named = tuple(key for key in self.float_keys if key.startswith("params/"))
        return named or self.float_keys

    @cached_property
    def other_keys(self) -> tuple[str, ...]:
        """Keys of the integer and bool arrays."""
        return tuple(entry.key for entry in self.entries if not is_float(entry.dtype))

    @cached_property
    def size(self) -> int:
        """Length d of the vector: the number of float elements."""
        return sum(entry.size for entry in self.float_entries)

    @cached_property
    def compute_dtype(self) -> DType:
        """Float64 if any float array is float64, else float32."""
        return compute_dtype(entry.dtype for entry in self.float_entries)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all keys, shapes and dtypes: equal for equal layouts, on every machine."""
        text = json.dumps([[key, list(shape), dtype.name] for key, shape, dtype in self.entries])
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, named: Mapping[str, Any], *, owner: str = "arrays") -> None:
        """Check that ``named`` has exactly these keys and shapes (nothing broadcasts) and kinds.

        A float array may have another float dtype than the model's. An integer or bool array must have
        the model's own dtype.

        Raises
        ------
        StructureError
            Naming ``owner`` and the first missing or extra key, wrong shape or wrong dtype.
        """
        check_keys(named, [entry.key for entry in self.entries], owner=owner)
        for key, shape, dtype in self.entries:
            values = named[key]
            if tuple(values.shape) != shape:
                raise StructureError(
                    f"{owner}: array {key!r} has shape {tuple(values.shape)} but the model's is {shape}; "
                    "send the model's own shapes."
                )
            found = supported(values.dtype, owner=f"{owner}: array {key!r}")
            if found != dtype and not (is_float(found) and is_float(dtype)):
                raise StructureError(
                    f"{owner}: array {key!r} has dtype {found} but the model's is {dtype}; a float may "
                    "change its width, anything else must keep its dtype."
                )

    def flatten(self, named: Mapping[str, Any]) -> NDArray[Any]:
        """Return the float arrays as one fresh vector, ``(size,)`` of ``compute_dtype``.

        Raises
        ------
        StructureError
            As :meth:`check`.
        """
        self.check(named)
        vector: NDArray[Any] = np.empty(self.size, self.compute_dtype)
        start = 0
        for key, _, _ in self.float_entries:
            values = np.asarray(named[key]).reshape(-1)
            vector[start : start + values.size] = values
            start += values.size
        return vector

    def split(self, vector: NDArray[Any]) -> NamedArrays:
        """Return ``vector``, ``(size,)``, as the float arrays' shapes in its own dtype; views, no rounding.

        Raises
        ------
        StructureError
            If the length differs.
        """
        if vector.shape != (self.size,):
            raise StructureError(
                f"vector has shape {vector.shape} but the model has {self.size} float elements."
            )
        ends = np.cumsum([entry.size for entry in self.float_entries])[:-1]
        parts = np.split(vector, ends) if self.float_entries else []
        return {
            entry.key: part.reshape(entry.shape)
            for entry, part in zip(self.float_entries, parts, strict=True)
        }

    def unflatten(self, vector: NDArray[Any], *, like: Mapping[str, Any] | None = None) -> NamedArrays:
        """Return ``vector`` as named arrays of the layout's shapes and dtypes.

        Parameters
        ----------
        vector : NDArray
            ``(size,)``; rounded to nearest where an array's dtype is narrower.
        like : Mapping[str, NDArray], optional
            Gives the order of the keys (stock Flower clients go by position) and the integer and bool
            arrays, which are passed on as they are. Without it, only the float arrays, sorted by key.

        Raises
        ------
        StructureError
            If the length differs or ``like`` has another layout.
        DivergenceError
            If a value is NaN, infinite, or too large for its array's dtype.
        """
        floats = self.cast(self.split(vector))
        if like is None:
            return floats
        self.check(like, owner="like")
        return {key: floats[key] if key in floats else np.asarray(like[key]) for key in like}

    def cast(self, floats: Mapping[str, Any], *, copy: bool = True) -> NamedArrays:
        """Return the float arrays in the layout's own dtypes, rounded to nearest.

        Fresh copies, unless ``copy`` is false: then arrays that have their dtype are returned themselves.

        Raises
        ------
        DivergenceError
            If a value is NaN, infinite, or too large for its array's dtype.
        """
        fitted: NamedArrays = {}
        for key, _, dtype in self.float_entries:
            values = np.asarray(floats[key])
            with np.errstate(over="ignore", invalid="ignore"):
                fitted[key] = values.astype(dtype, copy=copy)
            if not np.isfinite(fitted[key]).all():
                raise DivergenceError(
                    f"array {key!r}: the largest magnitude {np.abs(values).max():g} does not fit {dtype}; "
                    "lower the learning rate, or use a wider dtype or a robust strategy."
                )
        return fitted
