"""An error reads the same, whichever process it comes from."""

import json

import pytest

from fl_plugins.errors import ConfigTypeError, DataError, FLPluginsError, UnknownPluginError
from fl_plugins.resident.errors_wire import describe, recreate


class ThirdPartyError(FLPluginsError, ArithmeticError):
    def __init__(self, wants: str, arguments: int) -> None:
        super().__init__(f"{wants} {arguments}")


class TestNested:
    class DeepError(Exception):
        pass


ERRORS = [
    DataError("the partition is empty"),
    ConfigTypeError("x"),
    UnknownPluginError("no such plugin"),
    ThirdPartyError("no", 3),
    ZeroDivisionError("division by zero"),
    KeyError("missing"),
    ModuleNotFoundError("No module named 'x'"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    OSError(2, "No such file", "/x"),
    TestNested.DeepError("deep"),
    RuntimeError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_class_and_words_are_the_same_on_the_other_side(error: Exception) -> None:
    told = json.loads(json.dumps(describe(error)))
    again = recreate(told)
    assert f"{type(again).__name__}: {again}" == f"{type(error).__name__}: {error}"  # ours
    assert f"{type(again)}:<'{again}'>" == f"{type(error)}:<'{error}'>"  # Flower's
    assert isinstance(again, FLPluginsError) == isinstance(error, FLPluginsError)
    assert isinstance(again, ImportError) == isinstance(error, ImportError)  # Flower has an exit code for it


def test_the_workers_traceback_is_shown_with_the_error() -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        again = recreate(describe(error))
    assert "test_errors_wire.py" in again.__notes__[0]


def test_a_name_that_is_no_exception_is_not_made_one() -> None:
    told = {**describe(ValueError("x")), "builtin": "eval"}
    assert isinstance(recreate(told), Exception)
