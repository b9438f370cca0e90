"""What a failing NVIDIA stack says, recognised by its real texts and answered with the cause and the remedy.

The texts are data (data/symptoms.yaml), each with its source; a more telling one hides what only repeats its cause. How
a log is printed is taken out of it before (homelab/messages.py).
"""

from __future__ import annotations

import functools
import re
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from homelab import tables
from homelab.errors import HomelabError
from homelab.messages import Log, compiled, expression
from homelab.nvidia.compatibility import FOLDER, Evidence, Flavour, Target

# So much of a text is quoted in an error.
_LONGEST = 240


@dataclass(frozen=True)
class Context:
    """What is known of the system that said it; None for what isn't. `bound`: the driver that has the card, nothing if
    none has."""

    name: str = "this system"
    target: Target | None = None
    flavour: Flavour | None = None
    needs_open: bool | None = None
    secure_boot: bool | None = None
    driver: str | None = None
    host_driver: str | None = None
    kernel: str | None = None
    bound: str | None = None


def _compiles(value: str) -> str:
    compiled(value)
    return value


class _SymptomRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class When(_SymptomRow):
    """What must hold in the context; a fact that isn't known holds nothing."""

    target: Target | None = None
    flavour: Flavour | None = None
    needs_open: bool | None = None
    secure_boot: bool | None = None
    bound: str | None = None

    def holds(self, context: Context) -> bool:
        """Whether all that is asked is so."""
        known = asdict(context)
        return all(known[key] == value for key, value in self.model_dump(exclude_none=True).items())


class Cause(_SymptomRow):
    """One cause of a symptom, and what to do."""

    when: When = When()
    why: str
    next: str


class Symptom(_SymptomRow):
    """A text, where it appears, and its causes, the most particular first. `unless`: contexts in which it tells of
    nothing wrong."""

    name: str
    pattern: Annotated[str, AfterValidator(_compiles)]
    unless: tuple[When, ...] = ()
    where: str
    wanted: str
    causes: Annotated[tuple[Cause, ...], Field(min_length=1)]
    hides: tuple[str, ...] = ()
    source: Annotated[str, Field(min_length=3)]
    evidence: Evidence

    @property
    def expression(self) -> str:
        """The pattern, as the texts are searched for it; Perl reads it the same way."""
        return expression(self.pattern)

    def search(self, text: str, context: Context) -> re.Match[str] | None:
        """Where the text has it, if it tells of something wrong there."""
        if any(one.holds(context) for one in self.unless):
            return None
        return compiled(self.pattern).search(text)

    def cause(self, context: Context) -> Cause:
        """The cause that holds in a context."""
        return next((one for one in self.causes if one.when.holds(context)), self.causes[-1])

    @staticmethod
    def values(context: Context) -> dict[str, str]:
        """What the texts' fields stand for, but `what`, which the pattern catches."""
        return {
            "name": context.name,
            "driver": context.driver or "the wanted driver",
            "host_driver": context.host_driver or "not known",
            "kernel": context.kernel or "not known",
        }


class _Symptoms(_SymptomRow):
    symptoms: tuple[Symptom, ...]


@functools.cache
def symptoms() -> tuple[Symptom, ...]:
    """All rows, in the order in which they are answered."""
    return _Symptoms.model_validate(tables.read(FOLDER / "symptoms.yaml")).symptoms


def recognise(text: str, context: Context | None = None) -> list[HomelabError]:
    """The errors behind what nvidia-smi, the kernel log, apt, dkms, CUDA or docker said; empty for a text without any.

    :param text: output or log, of any length; what was printed is quoted in each error.
    """
    log, context = Log(text), context or Context()
    found = {row.name: (row, match) for row in symptoms() if (match := row.search(log.text, context))}
    hidden = {name for row, _ in found.values() for name in row.hides}
    return [_answer(row, match, log, context) for name, (row, match) in found.items() if name not in hidden]


def _answer(row: Symptom, match: re.Match[str], log: Log, context: Context) -> HomelabError:
    cause = row.cause(context)
    values = {**row.values(context), "what": match.groupdict().get("what") or ""}
    return HomelabError(
        wanted=row.wanted.format(**values),
        found=f"{row.where}: {log.quote(match, _LONGEST)}",
        why=cause.why.format(**values),
        next=cause.next.format(**values),
    )
