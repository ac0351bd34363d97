"""One malformed reply is refused with its reason and harms nobody else (flwr 1.41 defects B8, B9)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import ReplyError
from fl_plugins.records import Layout
from strategies.replies import ClientReply, mean_metrics, median_metrics, read_reply

pytestmark = pytest.mark.usefixtures("task_identity")

MODEL = {"w": np.array([0, 0, -3e38], np.float32), "steps": np.array(3, np.int64)}
GOOD_ARRAYS = {"w": np.ones((3,), np.float32), "steps": np.array(4, np.int64)}
GOOD_METRICS = {"num-examples": 10, "loss": 0.5}


def _request() -> Message:
    return Message(RecordDict(), 7, "train")


def _reply(records: dict[str, Any]) -> Message:
    return Message(RecordDict(records), reply_to=_request())


def _arrays(**changes: Any) -> ArrayRecord:
    arrays = {key: value for key, value in {**GOOD_ARRAYS, **changes}.items() if value is not None}
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})


def _absurd() -> ArrayRecord:
    """Return a record whose empty array has a shape that NumPy cannot make."""
    record = _arrays()
    shape = (0, 2**31 - 1, 2**31 - 1, 2**31 - 1)
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    record["w"] = Array("float32", shape, "numpy.ndarray", data)
    return record


def _metrics(**changes: Any) -> MetricRecord:
    metrics = {**GOOD_METRICS, **{key.replace("_", "-"): value for key, value in changes.items()}}
    return MetricRecord({key: value for key, value in metrics.items() if value is not None})


def _read(message: Message, *, required: bool = True, train: bool = True) -> ClientReply:
    return read_reply(
        message,
        "3",
        base=MODEL if train else None,
        layout=Layout.of(MODEL),
        examples_key="num-examples",
        examples_required=required,
        max_num_examples=1000,
    )


def test_a_stock_reply_is_read_whatever_its_records_are_called() -> None:
    reply = _read(_reply({"model": _arrays(), "m": _metrics()}))
    assert reply.num_examples == 10
    assert reply.metrics == {"loss": 0.5}
    np.testing.assert_array_equal(reply.arrays["w"], GOOD_ARRAYS["w"])


BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no arrays": (lambda: {"m": _metrics()}, "0 ArrayRecords"),
    "two array records": (lambda: {"a": _arrays(), "b": _arrays(), "m": _metrics()}, "2 ArrayRecords"),
    "no metrics": (lambda: {"a": _arrays()}, "0 MetricRecords"),
    "two metric records": (lambda: {"a": _arrays(), "m": _metrics(), "n": _metrics()}, "2 MetricRecords"),
    "missing key": (lambda: {"a": _arrays(w=None), "m": _metrics()}, "'w' is missing"),
    "extra key": (
        lambda: {"a": _arrays(v=np.ones(1, np.float32)), "m": _metrics()},
        "'v' is not in the model",
    ),
    "broadcastable shape": (lambda: {"a": _arrays(w=np.ones((1,), np.float32)), "m": _metrics()}, "shape"),
    "float for an integer": (lambda: {"a": _arrays(steps=np.array(1.5)), "m": _metrics()}, "dtype"),
    "NaN": (
        lambda: {"a": _arrays(w=np.array([1, np.nan, 1], np.float32)), "m": _metrics()},
        "NaN or infinite",
    ),
    "Inf": (
        lambda: {"a": _arrays(w=np.array([1, np.inf, 1], np.float32)), "m": _metrics()},
        "NaN or infinite",
    ),
    "overflow": (lambda: {"a": _arrays(w=np.full(3, 3e38, np.float32)), "m": _metrics()}, "overflows"),
    "absurd empty shape": (lambda: {"a": _absurd(), "m": _metrics()}, "'w'"),
    "no examples": (lambda: {"a": _arrays(), "m": _metrics(num_examples=None)}, "missing"),
    "zero examples": (lambda: {"a": _arrays(), "m": _metrics(num_examples=0)}, "expected"),
    "negative examples": (lambda: {"a": _arrays(), "m": _metrics(num_examples=-9)}, "expected"),
    "absurd examples": (lambda: {"a": _arrays(), "m": _metrics(num_examples=10**12)}, "expected"),
    "NaN examples": (lambda: {"a": _arrays(), "m": _metrics(num_examples=float("nan"))}, "not finite"),
    "list of examples": (lambda: {"a": _arrays(), "m": _metrics(num_examples=[1, 2])}, "expected"),
    "NaN metric": (lambda: {"a": _arrays(), "m": _metrics(loss=float("nan"))}, "'loss' is not finite"),
    "Inf in a list metric": (lambda: {"a": _arrays(), "m": _metrics(loss=[1.0, float("inf")])}, "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_b8_b9_malformed_reply_is_refused_with_its_reason(case: str) -> None:
    records, reason = BAD[case]
    with pytest.raises(ReplyError, match=reason):
        _read(_reply(records()))


def test_an_error_reply_gives_the_last_line_of_its_reason() -> None:
    message = Message(Error(2, "Traceback ...\n  File\nValueError: disk on fire"), reply_to=_request())
    with pytest.raises(ReplyError, match=r"^the client failed: ValueError: disk on fire$"):
        _read(message)


def test_num_examples_may_be_absent_under_uniform_weights_but_not_absurd() -> None:
    assert (
        _read(_reply({"a": _arrays(), "m": _metrics(num_examples=None)}), required=False).num_examples is None
    )
    with pytest.raises(ReplyError):
        _read(_reply({"a": _arrays(), "m": _metrics(num_examples=-1)}), required=False)


def test_a_float_of_another_width_is_accepted() -> None:
    _read(_reply({"a": _arrays(w=np.ones(3, np.float64)), "m": _metrics()}))


def _with_metrics(**metrics: Any) -> ClientReply:
    return ClientReply("c", 1, {}, 1.0, metrics)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0.1, 100)), min_size=1, max_size=9))
def test_mean_metrics_is_the_weighted_mean(pairs: list[tuple[float, float]]) -> None:
    result = mean_metrics([_with_metrics(loss=value) for value, _ in pairs], [weight for _, weight in pairs])
    expected = sum(v * w for v, w in pairs) / sum(w for _, w in pairs)
    # One rounding per term: 9 terms of at most 1e6.
    assert result["loss"] == pytest.approx(expected, rel=1e-12, abs=1e-8)


def test_b5_one_client_does_not_decide_median_metrics() -> None:
    replies = [_with_metrics(acc=0.5), _with_metrics(acc=0.6), _with_metrics(acc=99.0)]
    assert median_metrics(replies) == {"acc": 0.6}


def test_b9_an_extra_metric_is_averaged_over_those_that_report_it() -> None:
    result = mean_metrics([_with_metrics(loss=1.0, extra=5.0), _with_metrics(loss=3.0)], [1.0, 1.0])
    assert result == {"loss": 2.0, "extra": 5.0}


def test_one_liar_neither_removes_a_metric_by_its_shape_nor_adds_one() -> None:
    honest = [_with_metrics(accuracy=0.5), _with_metrics(accuracy=0.7), _with_metrics(accuracy=0.9)]
    liar = _with_metrics(accuracy=[0.5], own=9.9)
    assert median_metrics([liar, *honest]) == {"accuracy": 0.7}
    assert mean_metrics([liar, *honest], [1.0] * 4)["accuracy"] == pytest.approx(0.7)


def test_a_number_is_preferred_to_a_list_when_as_many_report_either() -> None:
    assert median_metrics([_with_metrics(h=[1.0]), _with_metrics(h=2.0)]) == {"h": 2.0}


def test_of_privacy_losses_the_largest_counts_however_few_report_it() -> None:
    replies = [_with_metrics(epsilon_record_zero_out=e, delta=1e-5, loss=e) for e in (1.0, 2.0)]
    assert mean_metrics(replies, [9.0, 1.0]) == {
        "epsilon_record_zero_out": 2.0,
        "delta": 1e-5,
        "loss": pytest.approx(1.1),
    }
    few = [_with_metrics(loss=1.0), _with_metrics(loss=1.0), _with_metrics(loss=1.0, epsilon_client=8.0)]
    assert median_metrics(few) == {"loss": 1.0, "epsilon_client": 8.0}
