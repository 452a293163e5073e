"""What a reader left out, counted.

A `ReadReport` that a caller hands to `read_records` or `iter_records` is filled while they read; without one, the
reader logs a warning where it left something out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NAMED = 3


@dataclass
class ReadReport:
    """Counts of one file. `first_left_out` names the first few records."""

    form: str = ""
    records: int = 0
    responses: int = 0
    responses_unrated: int = 0
    records_unrated: int = 0
    first_left_out: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether nothing was left out."""
        return not (self.responses_unrated or self.records_unrated)

    def leave_out(self, responses: int, record: str | None) -> None:
        """Count responses without a rating; `record` names their record if it is left out as a whole."""
        self.responses_unrated += responses
        if record is not None:
            self.records_unrated += 1
            if len(self.first_left_out) < NAMED:
                self.first_left_out.append(record)

    def __str__(self) -> str:
        text = f"{self.records} prompts with {self.responses} responses"
        if self.responses_unrated:
            text += f"; left out {self.responses_unrated} responses without a rating (N/A)"
        if self.records_unrated:
            named = ", ".join(self.first_left_out) + (
                ", ..." if self.records_unrated > len(self.first_left_out) else ""
            )
            text += f"; left out {self.records_unrated} prompts with fewer than two rated responses ({named})"
        return text
