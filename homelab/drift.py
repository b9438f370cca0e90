"""The drift since the last `up`, in lines, from the engine's event log of a `pulumi preview --refresh`; and the text of
a systemd timer that looks for drift once a day. Pure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from homelab import events
from homelab.events import Diagnostic, Event, Step
from homelab.markdown import fenced

# A refresh's message about drift (homelab/provider/): `pve: drift (vfio): …`, `sandbox: drift: …`.
_MESSAGE = re.compile(r"^(?P<name>[^:\n]+): drift(?: \((?P<layer>\w+)\))?: (?P<difference>.+)$", re.MULTILINE)
MARK = "<!-- homelab-drift -->"


@dataclass(frozen=True)
class Drift:
    """A stack's drift. `lines`: one for each difference; `changes`: names of resources that an `up --refresh` would
    change; `errors`: why the drift isn't known; `first`: the stack has had no `up` yet."""

    stack: str
    lines: Sequence[str]
    changes: Sequence[str]
    errors: Sequence[str]
    first: bool = False

    @property
    def exists(self) -> bool:
        """Whether a refresh tells of drift, or an `up` would change anything."""
        return bool(self.lines or self.changes)

    @property
    def cause_of_changes(self) -> str:
        """The cause of changes where there is no drift."""
        if self.first:
            return (
                "nothing can have drifted: this stack has had no `pulumi up` yet, which makes what the settings "
                "describe"
            )
        return (
            "nothing has drifted on the hosts, but `pulumi up` would act: the settings or the program have changed "
            "since the last one"
        )

    @property
    def next(self) -> str:
        """What to do next; empty if there is nothing to do."""
        if self.errors:
            return "do what is said above, then ask again; `homelab doctor stack` looks at each host, VM and container"
        if self.lines:
            return "`pulumi preview --refresh` shows what would be corrected, `pulumi up --refresh` corrects it"
        return "`pulumi preview` shows what would be done, `pulumi up` does it" if self.exists else ""

    @property
    def line(self) -> str:
        """The drift in one line, for a notification."""
        if self.errors:
            return f"homelab {self.stack}: couldn't check for drift: {' '.join(self.errors[0].split())[:300]}"
        if not self.exists:
            return f"stack {self.stack}: no drift"
        if not self.lines:
            names = "" if self.first else f": {', '.join(self.changes)}"
            return f"homelab {self.stack}: {self.cause_of_changes}{names}"
        text = "; ".join(self.lines)
        return (
            f"homelab {self.stack}: {text if len(text) <= 400 else f'{text[:400]}…'}; `pulumi up --refresh` corrects it"
        )

    def markdown(self) -> str:
        """The drift in Markdown, for an issue."""
        parts = [f"### Drift of the stack {self.stack}"]
        if self.errors:
            parts += [
                "The check for drift failed:",
                *(fenced(error, "text") for error in self.errors),
            ]
        elif not self.exists:
            parts.append("Nothing has drifted.")
        else:
            parts += ["\n".join(f"- {_escaped(line)}" for line in self.lines)] if self.lines else []
            parts += [] if self.lines else [f"{self.cause_of_changes[0].upper()}{self.cause_of_changes[1:]}."]
            parts += (
                [f"`pulumi up --refresh` would act on: {', '.join(map(_escaped, self.changes))}"]
                if self.changes
                else []
            )
        parts += [f"What to do: {self.next}."] if self.next else []
        return "\n\n".join([*parts, MARK]) + "\n"


def of_events(stack: str, log: Sequence[Event], code: int) -> Drift:
    """The drift that an event log tells of.

    :param stack: its name.
    :param code: the preview's exit status.
    """
    texts = [event.text for event in log if isinstance(event, Diagnostic)]
    lines = dict.fromkeys(
        f"{match['name']}: {match['difference']}" for text in texts for match in _MESSAGE.finditer(text)
    )
    changes = events.changing(log)
    # The engine reports changes as an error here.
    errors = [text for text in events.errors(log) if "no changes were expected" not in text]
    if code != 0 and not errors and not changes:
        errors = [f"pulumi preview ended with status {code}"]
    first = any(
        isinstance(event, Step) and (event.operation, event.kind) == ("create", "pulumi:pulumi:Stack") for event in log
    )
    return Drift(stack, list(lines), changes, errors, first)


def timer(stack: str, project: Path, python: Path, user: str, path: str) -> str:
    """The text of two units for systemd, with the steps to install them.

    :param stack: its name.
    :param project: the program's folder.
    :param python: the interpreter of its environment.
    :param user: whose keys and login at Pulumi's backend it takes.
    :param path: the folders of programs, with Pulumi's.
    """
    # In a unit, % begins a specifier.
    command, folder, path = (
        text.replace("%", "%%")
        for text in (shlex.join([str(python), "-m", "homelab", "drift", "--stack", stack]), str(project), path)
    )
    return f"""\
# Looks once a day whether anything on the hosts of the stack {stack} has drifted. To install it:
#   1. /etc/systemd/system/homelab-drift.service and homelab-drift.timer: the two parts below
#   2. /etc/homelab-drift.env, for root alone (chmod 600): PULUMI_BACKEND_URL=…, PULUMI_CONFIG_PASSPHRASE=…
#      (or PULUMI_ACCESS_TOKEN=…), and HOMELAB_HOOK=https://ntfy.sh/your-topic, to be told in one line
#   3. systemctl daemon-reload && systemctl enable --now homelab-drift.timer

# --- /etc/systemd/system/homelab-drift.service
[Unit]
Description=Has anything on the hosts of the stack {stack} drifted?
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={user}
Environment="PATH={path}"
EnvironmentFile=/etc/homelab-drift.env
WorkingDirectory={folder}
ExecStart={command}
# 1: something has drifted, which is no failure of this unit
SuccessExitStatus=1

# --- /etc/systemd/system/homelab-drift.timer
[Unit]
Description=Once a day: has anything on the hosts of the stack {stack} drifted?

[Timer]
OnCalendar=*-*-* 04:17
RandomizedDelaySec=30min
Persistent=true

[Install]
WantedBy=timers.target
"""


def _escaped(text: str) -> str:
    """A host's text with escaped markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|@])", r"\\\1", text)
