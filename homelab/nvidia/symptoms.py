"""What a failing NVIDIA stack says, recognised by its real texts and answered with the cause and the remedy.

The texts are data (data/symptoms.yaml), each with its source; a more telling line hides what only repeats its cause.
"""

from __future__ import annotations

import functools
import re
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from homelab import tables
from homelab.errors import HomelabError
from homelab.nvidia.compatibility import FOLDER, Evidence, Flavour, Target

# So much of a line is quoted in an error.
_LONGEST = 240
_XIDS_OF_THEIR_OWN = frozenset({"79", "119", "120"})


@dataclass(frozen=True)
class Context:
    """What is known of the system that said it; None for what isn't."""

    name: str = "this system"
    target: Target | None = None
    flavour: Flavour | None = None
    needs_open: bool | None = None
    secure_boot: bool | None = None
    driver: str | None = None
    host_driver: str | None = None
    kernel: str | None = None


def _compiles(value: str) -> str:
    re.compile(value)
    return value


class _SymptomRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class When(_SymptomRow):
    """What must hold in the context; a fact that isn't known holds nothing."""

    target: Target | None = None
    flavour: Flavour | None = None
    needs_open: bool | None = None
    secure_boot: bool | None = None

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
    """A text, where it appears, and its causes, the most particular first."""

    name: str
    pattern: Annotated[str, AfterValidator(_compiles)]
    where: str
    wanted: str
    causes: Annotated[tuple[Cause, ...], Field(min_length=1)]
    hides: tuple[str, ...] = ()
    source: Annotated[str, Field(min_length=3)]
    evidence: Evidence

    def search(self, text: str) -> re.Match[str] | None:
        """Where the text has it."""
        return re.search(self.pattern, text, re.IGNORECASE)

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

    :param text: output or log, of any length; a line is quoted in each error.
    """
    found = {row.name: (row, match) for row in symptoms() if (match := _first(row, text))}
    hidden = {name for row, _ in found.values() for name in row.hides}
    return [
        _answer(row, match, text, context or Context()) for name, (row, match) in found.items() if name not in hidden
    ]


def _first(row: Symptom, text: str) -> re.Match[str] | None:
    """The first place that isn't another row's: an Xid with a row of its own is told by that one."""
    if row.name != "xid":
        return row.search(text)
    matches = re.finditer(row.pattern, text, re.IGNORECASE)
    return next((match for match in matches if match["what"] not in _XIDS_OF_THEIR_OWN), None)


def _answer(row: Symptom, match: re.Match[str], text: str, context: Context) -> HomelabError:
    cause = row.cause(context)
    values = {**row.values(context), "what": match.groupdict().get("what") or ""}
    return HomelabError(
        wanted=row.wanted.format(**values),
        found=f"{row.where}: {_line(text, match)}",
        why=cause.why.format(**values),
        next=cause.next.format(**values),
    )


def _line(text: str, match: re.Match[str]) -> str:
    """The line of a match, without the white space around it."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    line = " ".join(text[start : end if end >= 0 else len(text)].split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
