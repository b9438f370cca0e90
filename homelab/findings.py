"""What is judged of a host or a guest. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto

from homelab.errors import HomelabError, SeveralErrors


class Stage(IntEnum):
    """What has to be done first: the host before a configuration, that before a restart, that before what is installed
    inside.
    """

    HOST = 1
    CONFIGURATION = 2
    RESTART = 3
    INSIDE = 4


class Turn(Enum):
    """Whose turn it is: the next `pulumi up` mends it, refuses to, or a person does."""

    UP = auto()
    REFUSED = auto()
    PERSON = auto()


@dataclass(frozen=True)
class Finding:
    """Something that isn't as it must be."""

    wanted: str
    found: str
    why: str
    next: str
    stage: Stage = Stage.HOST
    turn: Turn = Turn.PERSON

    @classmethod
    def of(cls, *errors: HomelabError, stage: Stage = Stage.HOST, turn: Turn = Turn.PERSON) -> list[Finding]:
        """The same as errors' texts."""
        parts = [part for error in errors for part in (error.errors if isinstance(error, SeveralErrors) else [error])]
        return [cls(part.wanted, part.found, part.why, part.next, stage, turn) for part in parts]

    @classmethod
    def of_steps(cls, guest: str, place: str, steps: Sequence[str], refused: Sequence[HomelabError]) -> list[Finding]:
        """What an `up` does with a guest, as a finding; none where it does nothing.

        :param place: the guest's in the settings, such as `vms.sandbox`.
        :param refused: what stands against it.
        """
        differs = cls(
            f"{guest} to be as {place} says",
            "; ".join(steps),
            "it was changed since the last `pulumi up`, or none has come so far, or one was cut short or is still at "
            "work: its next start goes by what it has",
            refused[0].next if refused else "`pulumi up --refresh`, whose preview shows what it does",
            Stage.CONFIGURATION,
            Turn.UP,
        )
        return [differs] if steps else []

    def parts(self) -> dict[str, str]:
        """The four parts by their names, as HomelabError has them."""
        return {"wanted": self.wanted, "found": self.found, "why": self.why, "next": self.next}


@dataclass(frozen=True)
class Judged:
    """What a guest is to have from this program, and what isn't as it must be."""

    options: dict[str, str | None] = field(default_factory=dict)
    """All of it; None: it isn't to have the key."""
    change: dict[str, str | None] = field(default_factory=dict)
    """What is to be written for that."""
    steps: list[str] = field(default_factory=list)
    """What the next `up` does with it, a line each: the preview's, and a refresh's drift."""
    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def refusals(self) -> list[HomelabError]:
        """Why `up` leaves it as it is."""
        return [HomelabError(**finding.parts()) for finding in self.findings if finding.turn is Turn.REFUSED]
