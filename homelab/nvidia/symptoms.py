"""Symptoms of a failing NVIDIA stack: real texts, each answered with its causes and remedies.

They are data (data/symptoms.yaml), each with its source; a symptom hides others that only repeat its cause. Time stamps
and line breaks of logs are removed before the search (homelab/messages.py).
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

# At most so many characters of a text are quoted in an error.
_QUOTED_CHARACTERS = 240


@dataclass(frozen=True)
class Context:
    """Facts of the system that a text comes from; None for what isn't known. `needs_open`: whether a card works with
    the open modules alone; `bound`: the driver that has the card, empty if none has."""

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
    """A condition on the context: each field that isn't None must equal the context's."""

    target: Target | None = None
    flavour: Flavour | None = None
    needs_open: bool | None = None
    secure_boot: bool | None = None
    bound: str | None = None

    def holds(self, context: Context) -> bool:
        """Whether the condition is met; not where a fact that it names isn't known."""
        facts = asdict(context)
        return all(facts[key] == value for key, value in self.model_dump(exclude_none=True).items())


class Cause(_SymptomRow):
    """A cause of a symptom, and what to do (`next`)."""

    when: When = When()
    why: str
    next: str


class Symptom(_SymptomRow):
    """A text by which a failure is recognised. `where`: the log or program that has it; `causes`: the most particular
    first; `unless`: contexts in which the text is no failure; `hides`: names of symptoms that only repeat its cause."""

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
        """The regular expression of the pattern, the same for Python and Perl."""
        return expression(self.pattern)

    def search(self, text: str, context: Context) -> re.Match[str] | None:
        """The match in a text; None without one, or where the context says that it is no failure."""
        if any(when.holds(context) for when in self.unless):
            return None
        return compiled(self.pattern).search(text)

    def cause(self, context: Context) -> Cause:
        """The first cause that holds in a context, else the last one."""
        return next((cause for cause in self.causes if cause.when.holds(context)), self.causes[-1])

    @staticmethod
    def values(context: Context) -> dict[str, str]:
        """The values of the fields in the row's texts, but for `what`, a group of the pattern."""
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
    """All symptoms, in the order in which they are answered."""
    return _Symptoms.model_validate(tables.read(FOLDER / "symptoms.yaml")).symptoms


def recognise(text: str, context: Context | None = None) -> list[HomelabError]:
    """The errors behind an output of nvidia-smi, apt, dkms, CUDA or docker, or the kernel log; empty without a symptom.

    :param text: output or log, of any length; each error quotes it.
    """
    log, context = Log(text), context or Context()
    matches = {row.name: (row, match) for row in symptoms() if (match := row.search(log.text, context))}
    hidden = {name for row, _ in matches.values() for name in row.hides}
    return [_answer(row, match, log, context) for name, (row, match) in matches.items() if name not in hidden]


def _answer(row: Symptom, match: re.Match[str], log: Log, context: Context) -> HomelabError:
    cause = row.cause(context)
    values = {**row.values(context), "what": match.groupdict().get("what") or ""}
    return HomelabError(
        wanted=row.wanted.format(**values),
        found=f"{row.where}: {log.quote(match, _QUOTED_CHARACTERS)}",
        why=cause.why.format(**values),
        next=cause.next.format(**values),
    )
