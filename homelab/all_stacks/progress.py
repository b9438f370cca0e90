"""What one stack has come to, from the engine's events and its exit status; and all of it as rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from homelab import events
from homelab.errors import HomelabError
from homelab.events import Event, Said, Step

State = Literal["waiting", "running", "stopping", "done", "failed", "interrupted", "not begun", "left out"]
Operation = Literal["preview", "up"]
# What the engine says of an interruption, of which we know.
_INTERRUPTED = re.compile(r"\b(?:update|preview|refresh) cancell?ed\b|context cancell?ed", re.IGNORECASE)
# What Pulumi's CLI says before it begins -> why it matters, and what to do.
_KNOWN = (
    (
        re.compile(r"stack is currently locked"),
        "two runs of one stack would overwrite each other's state",
        "wait until the other run has ended; if it was killed: pulumi cancel --stack {stack}",
    ),
    (
        re.compile(r"[Cc]onflict: Another update is currently in progress"),
        "two runs of one stack would overwrite each other's state",
        "wait until the other run has ended; if it was killed: pulumi cancel --stack {stack}",
    ),
    (
        re.compile(r"incorrect passphrase|passphrase must be set"),
        "the stack's secrets can't be read without it",
        "set PULUMI_CONFIG_PASSPHRASE, or PULUMI_CONFIG_PASSPHRASE_FILE; a stack with another passphrase has a run of its own: --stack {stack}",
    ),
)


@dataclass
class Progress:
    """A stack's run. `now`: what it does, in a line; `seconds`: how long it has run; `changes`: operation -> number of resources;
    `finished`, `open`: names of resources that something was done to, and of those that were under way at the end.
    """

    stack: str
    hosts: str
    operation: Operation
    state: State = "waiting"
    now: str = ""
    seconds: float = 0.0
    changes: Mapping[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    ended_by_force: bool = False

    @property
    def over(self) -> bool:
        """Has it come to its end?"""
        return self.state not in ("waiting", "running", "stopping")

    @property
    def has_changes(self) -> bool:
        """Does a preview plan any?"""
        return any(number for name, number in self.changes.items() if name not in ("same", "read", "refresh"))

    def take(self, new: Iterable[Event]) -> list[str]:
        """Takes what the log has new.

        :returns: the same in lines, for who reads lines: each step that begins, each message.
        """
        lines: list[str] = []
        for event in new:
            if isinstance(event, Step) and event.changes and not event.planned:
                self._step(event, lines)
            elif isinstance(event, Said) and event.severity in ("info", "info#err", "warning") and event.text:
                self.now = event.text.partition("\n")[0]
                lines += [] if event.passing else [self.now]
            elif isinstance(event, Said) and event.severity == "error":
                self.errors += [one for one in events.errors([event]) if one not in self.errors]
            elif isinstance(event, events.Summary):
                self.changes = event.changes
        return lines

    def _step(self, step: Step, lines: list[str]) -> None:
        if step.state == "begun":
            self.open += [] if step.name in self.open else [step.name]
            self.now = f"{step.name}: {step.operation}"
            lines.append(self.now)
        elif step.name in self.open:
            self.open.remove(step.name)
            self.finished += [step.name] if step.state == "done" and step.name not in self.finished else []

    def end(self, code: int, printed: str, *, interrupted: bool) -> None:
        """The process has ended.

        :param code: its exit status, negative for a signal.
        :param printed: what it printed, for an error that came before the engine's first event.
        """
        self.now = ""
        self.errors = [one for one in self.errors if not (interrupted and _INTERRUPTED.search(one))]
        if code == 0:
            self.state = "done"
            return
        self.ended_by_force = code < 0
        self.state = "interrupted" if interrupted else "failed"
        if not interrupted and not self.errors:
            self.errors = [str(explained(self.stack, self.operation, code, printed))]
        self.errors = [_in_four_parts(self.stack, self.operation, one) for one in self.errors]

    @property
    def result(self) -> str:
        """How it ended, in a line."""
        changed = {name: number for name, number in self.changes.items() if name != "same"}
        counted = events.in_words(changed, done=self.operation == "up")
        if self.state == "done":
            if not self.has_changes:
                return "nothing to change" if self.operation == "preview" else "nothing changed"
            return counted
        if self.state in ("failed", "left out"):
            how = "refused" if self.operation == "preview" else "failed"
            said = re.search(r"wanted: *(.*)", self.errors[0]) if self.errors else None
            return f"{how}: {said[1]}" if said else how
        if self.state == "interrupted":
            done = len(self.finished)
            return (
                f"interrupted, {done} step{'' if done == 1 else 's'} done" if self.operation == "up" else "interrupted"
            )
        return self.state

    @property
    def where_it_stands(self) -> list[str]:
        """After an interruption: what is done, and how to go on."""
        if self.operation == "preview" or self.state == "not begun":
            return [f"{self.stack}: nothing was changed"]
        if self.state != "interrupted":
            return []
        lines = [f"{self.stack}: done: {', '.join(self.finished) or 'nothing'}"]
        if self.open:
            lines.append(f"  perhaps done, since it was under way: {', '.join(self.open)}")
        cancel = f"pulumi cancel --stack {self.stack}, then " if self.ended_by_force else ""
        return [*lines, f"  to go on from there: {cancel}pulumi up --stack {self.stack}"]


def explained(stack: str, operation: Operation, code: int, printed: str) -> HomelabError:
    """An error of Pulumi's CLI itself, which has no parts."""
    said = "\n".join(line for line in printed.strip().splitlines() if line.strip())[-1500:]
    said = re.sub(r"^(?:warning: .*\n)*error: ", "", said)
    for pattern, why, what in _KNOWN:
        if pattern.search(said):
            found = next((line for line in said.splitlines() if pattern.search(line)), said)
            return HomelabError(
                wanted=f"pulumi {operation} of the stack {stack}", found=found, why=why, next=what.format(stack=stack)
            )
    return HomelabError(
        wanted=f"pulumi {operation} of the stack {stack}",
        found=said
        or (f"it was ended by the signal {-code}" if code < 0 else f"it ended with status {code}, without a message"),
        why="what the stack's settings say was not done, or not all of it",
        next=f"pulumi cancel --stack {stack}, then: pulumi {operation} --stack {stack}"
        if code < 0
        else f"correct what it reports, then: pulumi {operation} --stack {stack}",
    )


def _in_four_parts(stack: str, operation: Operation, error: str) -> str:
    """An error as people get them here; what isn't the program's own has no parts."""
    return error if "wanted:" in error else str(explained(stack, operation, 1, error))


def in_time(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `1 h 02 min`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def status(runs: Iterable[Progress]) -> int:
    """The exit status of them all: 0, all is well; 1, one of them isn't; 130, interrupted."""
    states = {one.state for one in runs}
    if states & {"interrupted", "not begun"}:
        return 130
    return 1 if states & {"failed", "left out"} else 0
