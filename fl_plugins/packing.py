"""A message's arrays in few objects instead of two per array, and back, to the last bit.

Flower moves every array of a message as two objects, and each object in a request of its own, over each of
five hops: from the ServerApp to the SuperLink, the SuperNode, the ClientApp, and back again. So a server
packs what it sends to a node that says that it can unpack (:data:`fl_plugins.wire.PACKS`), and such a node
packs its reply to a packed message.

An ``ArrayRecord`` becomes *pieces*: records whose keys begin with :data:`fl_plugins.wire.PACKED`, are
numbered and end with the record's own key. Arrays one after the other are a ``ConfigRecord`` with one value,
up to :data:`LARGEST_PIECE_BYTES`; a larger array stays an ``ArrayRecord``. All else stays as it is, so what
was the same object in the messages to many nodes still is, and a SuperLink keeps it once.

The value is the length of a JSON list (unsigned 64 bit, big endian), the list with key, dtype, shape, kind of
serialisation and number of bytes of each array, and their bytes.
"""

import json
import struct
from collections.abc import Iterator

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from .errors import ReplyError
from .wire import PACKED

LARGEST_PIECE_BYTES = 8 << 20
"""A request with that many bytes costs little more than they do; Flower cuts arrays above 20 MiB itself."""

_LENGTH = struct.Struct("!Q")

Piece = ArrayRecord | ConfigRecord
Record = ArrayRecord | ConfigRecord | MetricRecord


def pack(content: RecordDict, memory: dict[int, list[Piece]] | None = None) -> RecordDict:
    """Return the content with its arrays packed; ``content`` is left as it is.

    Parameters
    ----------
    content : RecordDict
        A message's content.
    memory : dict, optional
        Pieces of records by their ``id``: those that many contents share are packed once. It may not outlive
        them.
    """
    memory = {} if memory is None else memory
    packed: dict[str, Record] = {}
    for key, record in content.items():
        if not isinstance(record, ArrayRecord):
            packed[key] = record
            continue
        if id(record) not in memory:
            memory[id(record)] = list(_pieces(record))
        for number, piece in enumerate(memory[id(record)]):
            packed[f"{PACKED}/{number}/{key}"] = piece
    return RecordDict(packed)


def is_packed(content: RecordDict) -> bool:
    """Whether :func:`pack` has made it."""
    return any(key.startswith(f"{PACKED}/") for key in content)


def unpack(content: RecordDict) -> RecordDict:
    """Return what :func:`pack` was given; what is not packed stays as it is.

    Raises
    ------
    ReplyError
        If :func:`pack` cannot have made it.
    """
    records: dict[str, Record] = {}
    arrays: dict[str, dict[str, Array]] = {}
    for name, record in content.items():
        if not name.startswith(f"{PACKED}/"):
            records[name] = record
            continue
        key = name.split("/", 2)[-1]
        if key not in arrays:
            arrays[key] = {}
            records[key] = ArrayRecord()  # holds its place
        arrays[key].update(record if isinstance(record, ArrayRecord) else _arrays(record))
    return RecordDict({key: ArrayRecord(arrays[key]) if key in arrays else records[key] for key in records})


def _pieces(record: ArrayRecord) -> Iterator[Piece]:
    """Give a record's pieces; the last may be empty, so that an empty record has one."""
    run: list[tuple[str, Array]] = []
    size = 0
    for key, array in record.items():
        if run and size + len(array.data) > LARGEST_PIECE_BYTES:
            yield _joined(run)
            run, size = [], 0
        if len(array.data) > LARGEST_PIECE_BYTES:
            yield ArrayRecord({key: array})
        else:
            run.append((key, array))
            size += len(array.data)
    yield _joined(run)


def _joined(run: list[tuple[str, Array]]) -> ConfigRecord:
    """Return arrays as one value."""
    facts = [[key, item.dtype, list(item.shape), item.stype, len(item.data)] for key, item in run]
    head = json.dumps(facts).encode()
    return ConfigRecord({PACKED: b"".join([_LENGTH.pack(len(head)), head, *(item.data for _, item in run)])})


def _arrays(record: Record) -> dict[str, Array]:
    """Return the arrays in a piece."""
    value = record.get(PACKED)
    if not isinstance(record, ConfigRecord) or not isinstance(value, bytes) or len(value) < _LENGTH.size:
        raise ReplyError(f"packing: a record under {PACKED} has no value of that name with packed arrays.")
    begin = _LENGTH.size + _LENGTH.unpack_from(value)[0]
    arrays = {}
    try:
        for key, dtype, shape, stype, size in json.loads(value[_LENGTH.size : begin]):
            if not isinstance(size, int) or not 0 <= size <= len(value) - begin:
                raise ValueError(f"an array of {size!r} bytes where {len(value) - begin} are left")
            arrays[str(key)] = Array(dtype, tuple(shape), stype, value[begin : begin + size])
            begin += size
    except (ValueError, TypeError, RecursionError) as error:
        raise ReplyError(f"packing: what should be packed arrays is not: {error}.") from None
    if begin != len(value):
        raise ReplyError(f"packing: {len(value) - begin} bytes are left after the last packed array.")
    return arrays
