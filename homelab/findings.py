"""What is judged of a host or a guest. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto

from homelab.errors import HomelabError, SeveralErrors

#: What a person does where it is the turn of `up`.
UP = "`pulumi up --refresh`, whose preview shows what it does"


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
    def of_steps(cls, wanted: str, steps: Sequence[str], why: str, stage: Stage = Stage.CONFIGURATION) -> list[Finding]:
        """What the next `up` does with something, as a finding; none where it does nothing."""
        return [cls(wanted, "; ".join(steps), why, UP, stage, Turn.UP)] if steps else []

    @classmethod
    def of_guest(cls, guest: str, place: str, steps: Sequence[str]) -> list[Finding]:
        """The same of a guest.

        :param place: the guest's in the settings, such as `vms.sandbox`.
        """
        why = (
            "it was changed since the last `pulumi up`, or that has never run, was cut short, or is still at work; the "
            "guest's next start uses what is there now"
        )
        return cls.of_steps(f"{guest} to be as {place} says", steps, why)

    @property
    def line(self) -> str:
        """For a plan: what is met, and what helps."""
        return f"{self.wanted}: {self.found}; {self.next}"

    def parts(self) -> dict[str, str]:
        """The four parts by their names, as HomelabError has them."""
        return {"wanted": self.wanted, "found": self.found, "why": self.why, "next": self.next}


@dataclass(frozen=True)
class Judged:
    """What is judged of a host or a guest."""

    findings: list[Finding]
    """What isn't as it must be."""
    remarks: list[str]
    """What its owner is told beside that, a sentence each."""

    @property
    def refusals(self) -> list[HomelabError]:
        """Why `up` leaves it as it is."""
        return [HomelabError(**finding.parts()) for finding in self.findings if finding.turn is Turn.REFUSED]

    @property
    def met(self) -> list[str]:
        """What a person meets, for a plan, a line each."""
        return [finding.line for finding in self.findings if finding.turn is Turn.PERSON]


@dataclass(frozen=True)
class JudgedGuest(Judged):
    """What a guest is to have from this program, and what isn't as it must be."""

    options: dict[str, str | None]
    """All of it; None: it isn't to have the key."""
    change: dict[str, str | None]
    """What is to be written for that."""
    steps: list[str]
    """What the next `up` does with it, a line each: the preview's, and a refresh's drift."""


def cured(findings: Iterable[Finding], refusals: Iterable[HomelabError] = ()) -> list[Finding]:
    """The findings, each once. Where `up` refuses one, or something else, that comes before what it is to mend.

    :param refusals: what else a preview refuses.
    """
    by_text: dict[tuple[str, str, str], Finding] = {}
    for one in findings:
        # What `up` does has the same cure for all: there it counts whose it is, after its place in the settings.
        whose = one.wanted.rpartition(": ")[2] if one.turn is Turn.UP else ""
        by_text.setdefault((whose, one.found, one.next), one)
    found = [*by_text.values()]
    first = Finding.of(*refusals, turn=Turn.REFUSED) + [one for one in found if one.turn is Turn.REFUSED]
    return [replace(one, next=first[0].next) if first and one.turn is Turn.UP else one for one in found]
