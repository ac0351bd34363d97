"""What ``_flower.py`` reaches into flwr for still does what it did in the versions that we allow."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from packaging.requirements import Requirement

from fl_plugins._flower import CLIENT_APP_ERROR, server_identity, through_the_wire


def test_d7_a_message_can_be_made_outside_a_run_and_the_identity_is_given_back() -> None:
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 1, "train")
    with server_identity(run_id=5, node_id=9):
        message = Message(RecordDict(), 1, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (5, 9)
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 1, "train")


def test_a_message_survives_the_wire_and_shares_nothing_with_the_original() -> None:
    with server_identity():
        content = RecordDict(
            {"a": ArrayRecord({"w": Array(np.arange(3.0))}), "c": ConfigRecord({"k": [1, 2]})}
        )
        sent = Message(content, 4, "train", group_id="7")
        received = through_the_wire(sent)
        error = through_the_wire(Message(Error(CLIENT_APP_ERROR, "why"), reply_to=sent))
    np.testing.assert_array_equal(received.content.array_records["a"]["w"].numpy(), [0.0, 1.0, 2.0])
    assert received.content.config_records["c"]["k"] == [1, 2]
    assert received.content is not sent.content
    assert (received.metadata.dst_node_id, received.metadata.group_id) == (4, "7")
    assert (error.error.code, error.error.reason) == (CLIENT_APP_ERROR, "why")


def test_the_installed_flwr_lies_in_the_range_that_we_declare() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    ranges = [Requirement(text) for text in pyproject["project"]["dependencies"]]
    (flwr,) = [requirement for requirement in ranges if requirement.name == "flwr"]
    assert version("flwr") in flwr.specifier
