"""The engine's event log (`pulumi … --event-log FILE`) as types. Pure, but for reading the file.

The log is lines of JSON; their form is in sdk/go/common/apitype/events.go of Pulumi. Kinds that have no type here, and
a line that a killed engine has left half-written, are skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homelab.text import clean

# Makes the CLI accept --event-log, which the Automation API uses, too.
ENVIRONMENT = {"PULUMI_DEBUG_COMMANDS": "true"}

_MARKUP = re.compile(r"<\{%.*?%\}>")
# The beginning of an error's text that the CLI or the SDK has added to the program's refusal.
_PREFIXES = re.compile(r"^(?:error: |warning: )?(?:Preview failed: )?")
#: How a warning of a preview begins that says what an `up` will refuse.
WILL_REFUSE = "`pulumi up` will refuse this:"
# A diagnostic that only repeats that there were errors.
_REPEATED = re.compile(r"(?:preview|update|refresh|destroy) failed")
_NO_CHANGE = ("same", "read", "refresh")
# The engine's operation on a resource -> text for a person; by importance.
_OPERATIONS = {
    "delete": "to delete",
    "replace": "to replace",
    "create": "to create",
    "update": "to change",
    "same": "unchanged",
}


@dataclass(frozen=True)
class Diagnostic:
    """A message of the engine or of a provider. `severity`: info, warning, error, debug; `text`: without markup, safe
    to show; `passing`: it says where its resource is, until the next one does.
    """

    severity: str
    text: str
    passing: bool = False


@dataclass(frozen=True)
class Step:
    """An operation on a resource. `operation`: the engine's name, such as create-replacement; `ended`: whether this
    event is its end.
    """

    operation: str
    kind: str
    name: str
    ended: bool = False

    @property
    def changes(self) -> bool:
        """Whether a resource changes; the stack and providers don't count as resources."""
        return self.operation not in _NO_CHANGE and not self.kind.startswith(
            ("pulumi:providers:", "pulumi:pulumi:Stack")
        )


@dataclass(frozen=True)
class Summary:
    """The end of a run. `changes`: operation -> number of resources."""

    changes: Mapping[str, int] = field(default_factory=dict)


Event = Diagnostic | Step | Summary


def of(raw: Any) -> Event | None:
    """An event of the engine; None: it is of a kind without a type here, or of another form."""
    match raw:
        case {"diagnosticEvent": {"severity": str(severity), "message": str(message), **more}}:
            text = clean(_MARKUP.sub("", message)).strip()
            return Diagnostic(severity, text, more.get("ephemeral") is True)
        case {"resourcePreEvent": {"metadata": dict(step)}}:
            return _step(step, ended=False)
        case {"resOutputsEvent": {"metadata": dict(step)}} | {"resOpFailedEvent": {"metadata": dict(step)}}:
            return _step(step, ended=True)
        case {"summaryEvent": {"resourceChanges": dict(changes)}}:
            return Summary({name: number for name, number in changes.items() if isinstance(number, int)})
    return None


def _step(step: Mapping[str, Any], *, ended: bool) -> Step:
    name = clean(str(step.get("urn", "")).rpartition("::")[2])
    return Step(str(step.get("op", "")), str(step.get("type", "")), name, ended)


def of_line(line: bytes) -> Event | None:
    """The same of a line of the log."""
    try:
        return of(json.loads(line))
    except ValueError:
        return None


def read(path: Path) -> list[Event]:
    """A whole log; empty where the engine ended before it began one."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [event for line in lines if (event := of_line(line)) is not None]


def errors(events: Iterable[Event]) -> list[str]:
    """The texts of the engine's errors, each once, without those that only repeat that there were errors."""
    return [text for text in _texts(events, "error") if text and not _REPEATED.fullmatch(text)]


def refusals(events: Sequence[Event]) -> list[str]:
    """The errors, and the warnings of a preview that say what an `up` will refuse."""
    return errors(events) + [text for text in _texts(events, "warning") if text.startswith(WILL_REFUSE)]


def _texts(events: Iterable[Event], severity: str) -> list[str]:
    of_engine = (event for event in events if isinstance(event, Diagnostic) and event.severity == severity)
    return list(dict.fromkeys(_PREFIXES.sub("", event.text) for event in of_engine))


def counts(events: Iterable[Event]) -> Mapping[str, int]:
    """Operation -> number of resources, as the last summary has it; empty where the engine ended before."""
    return next((event.changes for event in reversed([*events]) if isinstance(event, Summary) and event.changes), {})


def in_words(changes: Mapping[str, int]) -> str:
    """`2 to delete, 12 to create, 3 unchanged`."""
    return ", ".join(f"{changes[key]} {words}" for key, words in _OPERATIONS.items() if changes.get(key))
