"""Packed content is what it was when it is unpacked, in fewer objects, and nothing else is taken for it."""

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins import packing
from fl_plugins.errors import ReplyError
from fl_plugins.packing import is_packed, pack, unpack
from fl_plugins.records import from_named, to_named
from fl_plugins.wire import PACKED

SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float32", "float64", "int8", "bool", "uint32"])
KEYS = st.text(min_size=1, max_size=8)
RECORDS = st.dictionaries(KEYS, st.tuples(SHAPES, DTYPES), max_size=5)


def _record(spec: dict[str, tuple[tuple[int, ...], str]]) -> ArrayRecord:
    rng = np.random.default_rng(len(spec))
    return ArrayRecord(
        {key: Array(rng.integers(0, 2, size=shape).astype(dtype)) for key, (shape, dtype) in spec.items()}
    )


def _facts(content: RecordDict) -> list[Any]:
    """Everything in a content, in its order."""
    return [
        (
            key,
            type(record).__name__,
            [
                (
                    name,
                    (value.dtype, value.shape, value.stype, value.data)
                    if isinstance(value, Array)
                    else value,
                )
                for name, value in record.items()
            ],
        )
        for key, record in content.items()
    ]


@given(st.dictionaries(KEYS, RECORDS, max_size=3), st.integers(1, 600))
def test_what_is_unpacked_is_what_was_packed(specs: dict[str, Any], largest: int) -> None:
    content = RecordDict({key: _record(spec) for key, spec in specs.items()})
    content["fl-plugins.config"] = ConfigRecord({"a": [1.5, 2.5], "b": b"\x00"})
    content["metrics"] = MetricRecord({"num-examples": 3})
    before = _facts(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LARGEST_PIECE_BYTES", largest)
        packed = pack(content)
    assert _facts(content) == before
    assert is_packed(packed) == bool(specs)
    assert _facts(unpack(packed)) == before


def test_a_record_of_small_arrays_is_one_object_and_a_large_array_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "LARGEST_PIECE_BYTES", 1000)
    arrays = {f"small-{i}": np.full(10, i, np.float32) for i in range(4)}
    arrays |= {"large": np.zeros(1000, np.float32), "last": np.ones(3, ml_dtypes.bfloat16)}
    record = from_named(arrays)
    packed = pack(RecordDict({"arrays": record}))
    assert [type(piece).__name__ for piece in packed.values()] == [
        "ConfigRecord",
        "ArrayRecord",
        "ConfigRecord",
    ]
    assert list(packed)[1] == f"{PACKED}/1/arrays"
    (large,) = [piece for piece in packed.values() if isinstance(piece, ArrayRecord)]
    assert large["large"].data is record["large"].data
    for key, array in to_named(unpack(packed).array_records["arrays"]).items():
        np.testing.assert_array_equal(array, arrays[key])


def test_what_many_messages_share_is_packed_once() -> None:
    record, memory = from_named({"w": np.zeros(3)}), {}  # type: ignore[var-annotated]
    first, second = (
        pack(RecordDict({"arrays": record, "config": ConfigRecord({"n": n})}), memory) for n in (1, 2)
    )
    key = f"{PACKED}/0/arrays"
    assert first[key] is second[key]
    assert first["config"]["n"] != second["config"]["n"]


def _piece(facts: object, data: bytes = b"", *, head_bytes: int | None = None) -> ConfigRecord:
    head = json.dumps(facts).encode() if not isinstance(facts, bytes) else facts
    length = len(head) if head_bytes is None else head_bytes
    return ConfigRecord({PACKED: length.to_bytes(8, "big") + head + data})


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (ConfigRecord({}), "no value of that name"),
        (ConfigRecord({PACKED: "text"}), "no value of that name"),
        (ConfigRecord({PACKED: b"short"}), "no value of that name"),
        (MetricRecord({"a": 1}), "no value of that name"),
        (_piece(b"{nonsense"), "is not"),
        (_piece(b"[" * 100_000), "is not"),
        (_piece(b"\xff"), "is not"),
        (_piece({"a": 1}), "is not"),
        (_piece(3), "is not"),
        (_piece([["k", "float32", [1], "numpy.ndarray"]]), "is not"),
        (_piece([["k", "float32", 1, "numpy.ndarray", 0]]), "is not"),
        (_piece([["k", "float32", ["1"], "numpy.ndarray", 0]]), "is not"),
        (_piece([["k", 3, [1], "numpy.ndarray", 0]]), "is not"),
        (_piece([["k", "float32", [1], "numpy.ndarray", 5]], b"four"), "5 bytes where 4 are left"),
        (_piece([["k", "float32", [1], "numpy.ndarray", -1]], b"four"), "-1 bytes"),
        (_piece([["k", "float32", [1], "numpy.ndarray", "4"]], b"four"), "'4' bytes"),
        (_piece([["k", "float32", [1], "numpy.ndarray", 3]], b"four"), "1 bytes are left"),
        (_piece([], head_bytes=1 << 62), "bytes are left"),
    ],
)
def test_what_pack_cannot_have_made_is_refused(piece: ConfigRecord, said: str) -> None:
    with pytest.raises(ReplyError, match=said):
        unpack(RecordDict({f"{PACKED}/0/arrays": piece}))
