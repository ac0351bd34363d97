"""What one run gives its strategy: seed, deadline, who is there, where events go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr.serverapp import Grid

from fl_plugins.run_options import Emit, ignore_event
from fl_plugins.seeds import derive_rng

from .options import Settings
from .roster import Roster, sample_cohort

Phase = Literal["train", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run, as its strategy sees it."""

    seed: int = 0
    timeout_s: float = 3600.0
    roster: Roster = field(default_factory=Roster)
    emit: Emit = ignore_event

    def gather(self, grid: Grid, settings: Settings, phase: Phase) -> tuple[dict[str, int], int]:
        """Return the connected clients (with their nodes), and how many to sample: none if the phase is off.

        Raises
        ------
        QuorumError
            If not enough nodes connect in time.
        """
        if settings.cohort_size(phase, 1) == 0:
            return {}, 0
        connected = self.roster.wait_for(grid, settings.min_available_nodes, timeout_s=self.timeout_s)
        size = settings.cohort_size(phase, len(connected))
        if size > len(connected):
            connected = self.roster.wait_for(grid, size, timeout_s=self.timeout_s)
        return connected, size

    def sample(
        self, connected: Mapping[str, int], size: int, *, phase: Phase, number: int, attempt: int
    ) -> dict[str, int]:
        """Draw a cohort; every attempt at a round draws another one."""
        rng = derive_rng(self.seed, "sample", phase, number, attempt)
        return sample_cohort(connected, size, rng=rng) if size else {}
