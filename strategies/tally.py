"""What became of the messages of one round, counted."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What became of a cohort: usable, refused and failed replies, and who did not answer in time."""

    accepted: int = 0
    quarantined: int = 0
    failed: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Number of replies, usable or not."""
        return self.accepted + self.quarantined + self.failed
