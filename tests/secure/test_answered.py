"""A saved session never answers twice, even if the node's state is that of before the answer."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from clients.mods._answered import Answered
from fl_plugins import wire
from fl_plugins._flower import through_the_wire
from fl_plugins.errors import StageError
from fl_plugins.secagg import Stage
from fl_plugins.secagg.messages import UnmaskRequest

from .federation import WatchedGrid, config_of, distance, plain_mean, run, secure, stage_of

VICTIM = 1


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.UNMASK])
def test_a_stale_state_does_not_answer_a_stage_again(tmp_path: Path, stage: Stage) -> None:
    """A SuperNode saves the state after the reply has left: a second message can meet the old one."""
    stale: dict[str, RecordDict] = {}
    again: list[Message] = []

    def copy(state: RecordDict) -> RecordDict:
        return through_the_wire(Message(state, VICTIM, "train")).content

    def on_request(message: Message) -> Message:
        if message.metadata.dst_node_id == VICTIM and stage_of(message) is stage:
            stale["before"] = copy(grid._contexts[VICTIM].state)
        return message

    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == VICTIM and stage_of(message) is stage:
            now = grid._contexts[VICTIM].state
            grid._contexts[VICTIM].state = stale["before"]
            if stage is Stage.UNMASK:
                body = UnmaskRequest(survivors=[1, 2, 3, 4]).to_bytes()
                message.content.config_records[wire.SECAGG][wire.SECAGG_BODY] = body
            assert not reply.has_error()
            again.append(grid._apps[VICTIM](message, grid._contexts[VICTIM]))
            grid._contexts[VICTIM].state = now
        return reply

    states = {node: {"secagg-state": str(tmp_path / str(node))} for node in range(1, 6)}
    grid = WatchedGrid(num_nodes=5, on_request=on_request, on_reply=on_reply, node_configs=states)
    run(secure(), grid)
    (second,) = again
    assert "was answered before" in second.error.reason
    assert wire.STAGE in config_of(grid.sent[-1])
    assert list((tmp_path / "2").iterdir()) == [], "nothing is left of a round that has ended"


def test_stages_are_claimed_once_in_order_and_only_of_attempts_that_were_begun(tmp_path: Path) -> None:
    config: dict[str, Any] = {"secagg-state": str(tmp_path / "state")}
    attempt = Answered(config, node=1, sid=bytes(16))
    with pytest.raises(StageError):
        attempt.claim(Stage.SHARE)
    attempt.begin()
    with pytest.raises(StageError, match="never repeated"):
        attempt.begin()
    attempt.claim(Stage.MASK)
    for stage in (Stage.SHARE, Stage.MASK, Stage.ADVERTISE, Stage.CLOSED):
        with pytest.raises(StageError, match="answered before"):
            Answered(config, node=1, sid=bytes(16)).claim(stage)
    with pytest.raises(StageError):
        Answered(config, node=2, sid=bytes(16)).claim(Stage.UNMASK)
    attempt.claim(Stage.UNMASK)
    attempt.forget()
    with pytest.raises(StageError):
        attempt.claim(Stage.UNMASK)


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StageError, match="name another"):
        Answered({"secagg-state": str(folder)}, node=1, sid=bytes(16)).begin()
    states = {1: {"secagg-state": str(folder)}}
    grid = WatchedGrid(num_nodes=5, node_configs=states)
    assert distance(run(secure(), grid), plain_mean([2, 3, 4, 5])) < 2e-6
