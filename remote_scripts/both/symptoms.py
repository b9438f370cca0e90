"""Symptoms: real texts of what fails, each answered with its causes and remedies. The table is the program's
(homelab/nvidia/data/symptoms.yaml); a host's part has those rows that its layers meet.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from remote_scripts import tables
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.plain import of_plain

Target = Literal["vm", "host", "lxc"]
Flavour = Literal["open", "proprietary"]
#: At most so many characters of a text are quoted in an error.
QUOTED_CHARACTERS = 240
# A blank of a pattern, unless it is repeated or belongs to a set of characters.
_BLANK = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\s+(?![*+?{])")
# What a program says while it waits isn't why it fails, unless it has waited in vain: it alone says then for whom.
_WAITING = re.compile(r"^Waiting for cache lock.*\n", re.MULTILINE)


@dataclass(frozen=True)
class Context:
    """Facts of the system that a text comes from; None for what isn't known. `name`: its place in the settings;
    `needs_open`: whether a card works with the open modules alone; `bound`: the driver that has the card, empty if none
    has. `known`: what else is so: narrow-link (the card's PCIe link has fewer lanes than card and slot), own-libraries
    (the host's are of the loaded module's version), specification (there is a CDI specification of that).
    """

    name: str = "this system"
    target: Target | None = None
    flavour: Flavour | None = None
    needs_open: bool | None = None
    secure_boot: bool | None = None
    driver: str | None = None
    host_driver: str | None = None
    kernel: str | None = None
    bound: str | None = None
    known: str | None = None

    @property
    def values(self) -> dict[str, str]:
        """The fields of a row's texts, but for `what`, a group of the pattern."""
        return {
            "name": self.name,
            "driver": self.driver or "the wanted driver",
            "host_driver": self.host_driver or "not known",
            "kernel": self.kernel or "not known",
        }

    def holds_in(self, context: Context) -> bool:
        """Whether another context has each fact that is known here; names aren't compared."""
        facts = asdict(self) | {"name": None}
        return all(getattr(context, key) == value for key, value in facts.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A cause of a symptom, and what to do (`next`). `when`: the facts with which it is the cause."""

    when: Context = Context()
    why: str
    next: str


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """A text by which a failure is recognised. `where`: the log or program that has it; `causes`: the most particular
    first; `unless`: contexts in which the text is no failure; `hides`: names of symptoms that only repeat its cause.
    """

    name: str
    pattern: str
    unless: tuple[Context, ...] = ()
    where: str
    wanted: str
    causes: tuple[Cause, ...]
    hides: tuple[str, ...] = ()

    def search(self, text: str, context: Context) -> re.Match[str] | None:
        """The match in a text; None without one, or where the context says that it is no failure."""
        if any(when.holds_in(context) for when in self.unless):
            return None
        return compiled(self.pattern).search(text)

    def answer(self, match: re.Match[str], quoted: str, context: Context) -> tuple[str, str, str, str]:
        """What was wanted, what was found, why that matters, and what to do: by the first cause that holds in the
        context, else by the last one.

        :param quoted: what the match was found in.
        """
        cause = next((cause for cause in self.causes if cause.when.holds_in(context)), self.causes[-1])
        values = {**context.values, "what": match.groupdict().get("what") or ""}
        wanted, why, next_ = (text.format(**values) for text in (self.wanted, cause.why, cause.next))
        return wanted, f"{self.where}: {quoted}", why, next_


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression that ignores case, in which each blank matches any blanks and line breaks: a
    log may be wrapped anywhere.
    """
    blanks = _BLANK.sub(lambda match: r"\s+" if match[0].isspace() else match[0], pattern)
    return re.compile(blanks, re.IGNORECASE)


def found_in(rows: Sequence[Symptom], text: str, context: Context) -> list[tuple[Symptom, re.Match[str]]]:
    """The rows that a text has, in their order, without those that others hide."""
    matches = [(row, match) for row in rows if (match := row.search(text, context))]
    hidden = {name for row, _ in matches for name in row.hides}
    return [(row, match) for row, match in matches if row.name not in hidden]


def recognise(text: str, context: Context) -> tuple[str, Failure] | None:
    """The first known failure that the output of a layer's program tells of: the row's name, and the error."""
    text = text if "Unable to acquire the dpkg frontend lock" in text else _WAITING.sub("", text)
    for row, match in found_in(_rows(tables.SYMPTOMS), text, context):
        lines = text[: match.start()].rpartition("\n")[2] + match[0] + text[match.end() :].partition("\n")[0]
        line = " ".join(lines.split())
        quoted = f"{line[:QUOTED_CHARACTERS]}..." if len(line) > QUOTED_CHARACTERS else line
        return row.name, Failure(*row.answer(match, quoted, context))
    return None


@functools.cache
def _rows(table: str) -> tuple[Symptom, ...]:
    return of_plain(tuple[Symptom, ...], json.loads(table), "symptoms")
