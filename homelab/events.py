"""The engine's event log (`pulumi … --event-log FILE`) as types: the one place that knows its form. Pure, but for reading the file.

Form: sdk/go/common/apitype/events.go of Pulumi. It is lines of JSON; a kind that nobody here needs, and a line that a killed engine has left
half-written, are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homelab.text import clean

# What makes the CLI know --event-log, by which the Automation API listens, too.
ENVIRONMENT = {"PULUMI_DEBUG_COMMANDS": "true"}

_MARKUP = re.compile(r"<\{%.*?%\}>")
# What an error's text may begin with: the CLI's own words, and those of the SDK around a refusal of the program.
_PREFIXES = re.compile(r"^(?:error: )?(?:Preview failed: )?")
# What the engine says of errors that it has shown already.
_NO_NEWS = re.compile(r"(?:preview|update|refresh|destroy) failed")
_NO_CHANGE = ("same", "read", "refresh")
# What the engine would do with a resource -> the same for a person; in the order in which it matters.
_OPERATIONS = {
    "delete": "to delete",
    "replace": "to replace",
    "create": "to create",
    "update": "to change",
    "same": "unchanged",
}


@dataclass(frozen=True)
class Said:
    """A message. `severity`: info, warning, error, debug; `text`: without markup, safe to show."""

    severity: str
    text: str


@dataclass(frozen=True)
class Step:
    """Something that is done with a resource. `operation`: as the engine calls it, such as create-replacement."""

    operation: str
    kind: str
    name: str

    @property
    def changes(self) -> bool:
        """Does it change something? The stack itself and providers are no things."""
        return self.operation not in _NO_CHANGE and not self.kind.startswith(
            ("pulumi:providers:", "pulumi:pulumi:Stack")
        )


@dataclass(frozen=True)
class Summary:
    """How it ended. `changes`: operation -> number of resources."""

    changes: Mapping[str, int] = field(default_factory=dict)


Event = Said | Step | Summary
_STEPS = ("resourcePreEvent", "resOutputsEvent", "resOpFailedEvent")


def of(raw: Any) -> Event | None:
    """One event as the engine writes it; None: it is of a kind that nobody here needs, or of another form."""
    if not isinstance(raw, Mapping):
        return None
    for key, body in raw.items():
        if not isinstance(body, Mapping):
            continue
        if key == "diagnosticEvent":
            text = _MARKUP.sub("", str(body.get("message", "")))
            return Said(str(body.get("severity", "")), clean(text).strip())
        if key in _STEPS and isinstance(step := body.get("metadata"), Mapping):
            return Step(str(step.get("op", "")), str(step.get("type", "")), _name(step.get("urn")))
        if key == "summaryEvent":
            changes = body.get("resourceChanges")
            numbers = changes.items() if isinstance(changes, Mapping) else ()
            return Summary({str(name): number for name, number in numbers if isinstance(number, int)})
    return None


def _name(urn: Any) -> str:
    return clean(str(urn or "").rpartition("::")[2])


def _of_line(line: bytes) -> Event | None:
    try:
        return of(json.loads(line))
    except ValueError:
        return None


def read(path: Path) -> list[Event]:
    """A whole log; empty where the engine hasn't come so far as to begin one."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [event for line in lines if (event := _of_line(line)) is not None]


def errors(events: Iterable[Event]) -> list[str]:
    """What the engine calls errors, each once; without what it says of errors that it has shown already."""
    texts = [_PREFIXES.sub("", one.text) for one in events if isinstance(one, Said) and one.severity == "error"]
    return [text for text in dict.fromkeys(texts) if text and not _NO_NEWS.fullmatch(text)]


def counts(events: Iterable[Event]) -> Mapping[str, int]:
    """Operation -> number of resources, as the last summary has it; empty where the engine didn't come so far."""
    return next((one.changes for one in reversed([*events]) if isinstance(one, Summary) and one.changes), {})


def in_words(changes: Mapping[str, int]) -> str:
    """`2 to delete, 12 to create, 3 unchanged`."""
    return ", ".join(f"{changes[key]} {words}" for key, words in _OPERATIONS.items() if changes.get(key))


def changing(events: Sequence[Event]) -> list[str]:
    """Names of the resources that something is done to, in that order, each once."""
    return list(dict.fromkeys(one.name for one in events if isinstance(one, Step) and one.changes))
