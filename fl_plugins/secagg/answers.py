"""What a server's session does with answers, whatever the protocol: who was asked, answered, refused."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..errors import RoundAbortedError, SecureAggregationError, StageError
from .messages import Stage
from .parameters import RoundParameters


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """The sum modulo 2^b of the survivors' vectors.

    Parameters
    ----------
    vector : NDArray
        ``(length,)`` ring words.
    survivors : tuple[int, ...]
        Whose vectors are in it (U3).
    dropped : tuple[int, ...]
        Who shared secrets, but sent no masked vector: their masks were reconstructed.
    wrong_shares : tuple[int, ...]
        Holders who sent wrong shares, which were found and left out. Certain if at most half the surplus over
        t lie; of more, some who plan together can make others look wrong.
    """

    vector: NDArray[Any] = field(repr=False)
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    wrong_shares: tuple[int, ...]


class AskedNodes:
    """Base of server sessions whose stages ask one set of nodes each.

    Attributes
    ----------
    stage : Stage
        What is asked now.
    refusals : dict
        Node → why it has no usable answer.
    """

    def __init__(self, parameters: RoundParameters, stage: Stage, asked: Iterable[int]) -> None:
        self.parameters, self.stage = parameters, stage
        self.refusals: dict[int, str] = {}
        self._asked = tuple(sorted(asked))
        self._answers: dict[int, Any] = {}
        self._suspects: set[int] = set()
        self._result: SecureSum | None = None

    @property
    def result(self) -> SecureSum:
        """The sum, once the session is closed."""
        if self._result is None:
            raise StageError(f"secagg: there is no sum at stage {self.stage}; go on until it is closed.")
        return self._result

    def receive(self, node: int, body: bytes, vector: NDArray[Any] | None = None) -> None:
        """Take one node's answer to the present stage.

        Raises
        ------
        SecureAggregationError
            If it is malformed, a second one, or of a node that was not asked; the node counts as silent
            unless a good answer of it is already there.
        """
        try:
            if node not in self._asked or node in self._answers or self.stage is Stage.CLOSED:
                raise StageError(
                    f"secagg: node {node} was not asked for stage {self.stage}, or answers it twice."
                )
            self._answers[node] = self._take(node, body, vector)
        except SecureAggregationError as error:
            self.refuse(node, str(error))
            raise

    def refuse(self, node: int, reason: str, *, suspects: Iterable[int] = ()) -> None:
        """Note that a node did not answer, and whom it blames; it counts as silent without this call too."""
        if node not in self._answers:
            self.refusals[node] = reason
        self._suspects.update(suspects)

    def advance(self) -> None:
        """End the stage with the answers that are there.

        Raises
        ------
        RoundAbortedError
            If they are not enough, or do not fit together; ``suspects`` names who is at fault as far as that
            can be told. The session is closed.
        """
        if self.stage is Stage.CLOSED:
            raise StageError("secagg: the session is closed.")
        try:
            self.stage = self._finish()
        except RoundAbortedError:
            self.stage = Stage.CLOSED
            raise
        finally:
            self._answers = {}
            if self.stage is Stage.CLOSED:
                self._drop()

    def _need_clients(self) -> tuple[int, ...]:
        """Return who sent a vector, or abort."""
        return self._answered(self.parameters.min_clients, "sent a masked vector")

    def _answered(self, least: int, what: str, *, suspects: Iterable[int] = ()) -> tuple[int, ...]:
        """Return who answered, in ascending order, or abort: too few did ``what``."""
        answered = tuple(sorted(self._answers))
        if len(answered) < least:
            reasons = "; ".join(f"{node}: {why}" for node, why in sorted(self.refusals.items())[:5])
            raise RoundAbortedError(
                f"secagg: {len(answered)} of {len(self._asked)} nodes {what}, but {least} are needed. "
                f"Refusals: {reasons or 'none'}. Begin again with fresh keys, ask more nodes or wait longer.",
                suspects=suspects,
            )
        return answered

    def _take(self, node: int, body: bytes, vector: NDArray[Any] | None) -> Any:
        """Return what is kept of an answer."""
        raise NotImplementedError

    def _finish(self) -> Stage:
        """Use the answers of the present stage; return the next one."""
        raise NotImplementedError

    def _drop(self) -> None:
        """Forget what only an open session needs."""
