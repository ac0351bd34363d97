"""Bytes of fixed layout: what the messages and the client's saved state are written in.

Numbers are big-endian and of fixed width, byte strings of variable length carry it in four bytes. Nothing is
optional, so every value has exactly one encoding, and a reader that finds less, more or something else
refuses.
"""

from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from ..errors import MessageFormatError

T = TypeVar("T")


class Writer:
    """Appends fields; :meth:`done` is what was written."""

    def __init__(self) -> None:
        self._data = bytearray()

    def number(self, value: int, width: int) -> Self:
        """Append an unsigned number in ``width`` bytes."""
        self._data += value.to_bytes(width, "big")
        return self

    def fixed(self, value: bytes, length: int) -> Self:
        """Append exactly ``length`` bytes."""
        if len(value) != length:
            raise MessageFormatError(f"secagg: a field of {len(value)} bytes, but it has {length}.")
        self._data += value
        return self

    def sized(self, value: bytes | memoryview) -> Self:
        """Append the length and the bytes."""
        self.number(len(value), 4)
        self._data += value
        return self

    def ids(self, values: Sequence[int]) -> Self:
        """Append a list of node ids."""
        return self.list(values, lambda value: self.number(value, 8))

    def list(self, values: Sequence[T], write: Callable[[T], object]) -> Self:
        """Append the number of values, then each by ``write``."""
        self.number(len(values), 4)
        for value in values:
            write(value)
        return self

    def done(self) -> bytes:
        """Return everything written."""
        return bytes(self._data)


class Reader:
    """Reads what :class:`Writer` wrote, field by field.

    Raises
    ------
    MessageFormatError
        From every method, if the bytes are not that.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = memoryview(data), 0, what

    def fixed(self, length: int) -> bytes:
        """Read exactly ``length`` bytes."""
        return bytes(self._take(length))

    def _take(self, length: int) -> memoryview:
        if length > len(self._data) - self._at:
            raise MessageFormatError(
                f"secagg: {self._what} has {len(self._data)} bytes, but its fields need more; it is "
                "cut off or of another version."
            )
        self._at += length
        return self._data[self._at - length : self._at]

    def number(self, width: int) -> int:
        """Read an unsigned number of ``width`` bytes."""
        return int.from_bytes(self._take(width), "big")

    def sized(self) -> bytes:
        """Read a length and that many bytes."""
        return self.fixed(self.number(4))

    def ids(self) -> list[int]:
        """Read a list of node ids."""
        return self.list(lambda: self.number(8))

    def list(self, read: Callable[[], T]) -> "list[T]":
        """Read a number of values, then each by ``read``; a false number ends at the end of the bytes."""
        return [read() for _ in range(self.number(4))]

    def done(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise MessageFormatError(
                f"secagg: {self._what} has {len(self._data) - self._at} bytes too many; it is damaged or of "
                "another version."
            )
