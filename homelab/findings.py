"""What is judged of a host or a guest. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
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

    @property
    def line(self) -> str:
        """For a plan: what is met, and what helps."""
        return f"{self.wanted}: {self.found}; {self.next}"

    def parts(self) -> dict[str, str]:
        """The four parts by their names, as HomelabError has them."""
        return {"wanted": self.wanted, "found": self.found, "why": self.why, "next": self.next}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is judged of a part of a host: a node of the tree that every voice walks (homelab/judged/tree.py)."""

    title: str
    """What is wanted of it, for messages, such as `VM 103 (Sandbox) to be as vms.sandbox says`."""
    why: str
    """Why its steps matter."""
    steps: list[str] = field(default_factory=list)
    """What the next `up` does with it, a line each: the preview's, a refresh's drift, and what show marks."""
    against: list[HomelabError] = field(default_factory=list)
    """What stands against its steps: `up` refuses them for it. Where it has none, a person meets it."""
    held: list[HomelabError] = field(default_factory=list)
    """What stands against them for now, such as a lock; it is nothing where nothing is done with the part itself."""
    wrong: list[HomelabError] = field(default_factory=list)
    """What no `up` mends, and a person does."""
    remarks: list[str] = field(default_factory=list)
    """What its owner is told beside that, a sentence each."""
    stage: Stage = Stage.CONFIGURATION
    others_change: bool = False
    """Another part has steps: all of them are refused together."""
    restarts: bool = False
    """The host restarts, and what is on it is looked at again then."""

    @property
    def refusals(self) -> list[HomelabError]:
        """Why `up` leaves it as it is."""
        held = self.held if self.steps or self.restarts else []
        return [*held, *self.against] if self.steps or self.others_change else []

    @property
    def findings(self) -> list[Finding]:
        """All that isn't as it must be, with whose turn it is."""
        turn = Turn.REFUSED if self.refusals else Turn.PERSON
        of_steps = Finding(self.title, "; ".join(self.steps), self.why, UP, self.stage, Turn.UP)
        against = Finding.of(*(self.refusals or self.against), stage=self.stage, turn=turn)
        wrong = Finding.of(*(one for one in self.wrong if one not in self.refusals), stage=self.stage)
        return [*dict.fromkeys([*against, *([of_steps] if self.steps else []), *wrong])]

    @property
    def met(self) -> list[str]:
        """What a person meets, for a plan, a line each."""
        return [finding.line for finding in self.findings if finding.turn is Turn.PERSON]


#: Why the steps of a guest matter.
OF_GUEST = (
    "it was changed since the last `pulumi up`, or that has never run, was cut short, or is still at work; the guest's "
    "next start uses what is there now"
)


@dataclass(frozen=True, kw_only=True)
class JudgedGuest(Judged):
    """What a guest is to have from this program, and what isn't as it must be."""

    why: str = OF_GUEST
    guest: int = 0
    """Its id."""
    runs: bool = False
    """Whether it runs now."""
    will_run: bool = False
    """Whether it runs afterwards."""
    is_deleted: bool = False
    """It goes with its disks: this program has made it."""
    options: dict[str, str | None] = field(default_factory=dict)
    """All of it; None: it isn't to have the key."""
    change: dict[str, str | None] = field(default_factory=dict)
    """What is to be written for that."""
    waits: list[str] = field(default_factory=list)
    """Those of the options for which it isn't restarted: nothing but their form is another one."""


def cured(findings: Iterable[Finding], refusals: Iterable[HomelabError] = ()) -> list[Finding]:
    """The findings, each once. Where `up` refuses one, or something else, that comes before what it is to mend.

    :param refusals: what else a preview refuses.
    """
    by_text: dict[tuple[str, str, str], Finding] = {}
    for one in findings:
        # What `up` does has the same cure for all: there it counts whose it is, after its place in the settings.
        whose = one.wanted.rpartition(": ")[2] if one.turn is Turn.UP else ""
        text = (whose, one.found, one.next)
        # What refuses `up` counts as that, also where it is wrong by itself: a boot entry without its initramfs.
        by_text[text] = one if one.turn is Turn.REFUSED else by_text.get(text, one)
    found = [*by_text.values()]
    first = Finding.of(*refusals, turn=Turn.REFUSED) + [one for one in found if one.turn is Turn.REFUSED]
    return [replace(one, next=first[0].next) if first and one.turn is Turn.UP else one for one in found]
