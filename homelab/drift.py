"""What has drifted since the last `up`, in words, from the engine's event log of a `pulumi preview --refresh`. Pure.

Also the systemd timer that looks once a day. What is run is in homelab/cli/drift.py.
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

# What a refresh says of a difference (homelab/provider/): `pve: drift (vfio): …`, `sandbox: drift: …`.
_SAID = re.compile(r"^(?P<who>[^:\n]+): drift(?: \((?P<layer>\w+)\))?: (?P<what>.+)$", re.MULTILINE)
MARK = "<!-- homelab-drift -->"


@dataclass(frozen=True)
class Drift:
    """`lines`: what differs, in words; `changes`: names of resources that an `up --refresh` would act on; `errors`: why
    it can't be told; `first`: the stack has had no `up` yet."""

    stack: str
    lines: Sequence[str]
    changes: Sequence[str]
    errors: Sequence[str]
    first: bool = False

    @property
    def found(self) -> bool:
        return bool(self.lines or self.changes)

    @property
    def newer(self) -> str:
        """What changes without drift mean."""
        if self.first:
            return (
                "nothing can have drifted: this stack has had no `pulumi up` yet; it would make what the settings "
                "describe"
            )
        return (
            "nothing on the hosts tells of drift, but `pulumi up` would act, as settings or program have changed "
            "since the last one"
        )

    @property
    def next(self) -> str:
        """What to do; empty where there is nothing to be done."""
        if self.errors:
            return (
                "do what is said above, then ask again; `python -m homelab doctor stack` looks at each host, VM and "
                "container"
            )
        if self.lines:
            return "`pulumi preview --refresh` shows what would be corrected, `pulumi up --refresh` corrects it"
        return "`pulumi preview` shows what would be done, `pulumi up` does it" if self.found else ""

    @property
    def line(self) -> str:
        """All of it in one line, for a telephone."""
        if self.errors:
            return (
                f"homelab {self.stack}: it can't be told whether anything has drifted: "
                f"{' '.join(self.errors[0].split())[:300]}"
            )
        if not self.found:
            return f"homelab {self.stack}: nothing has drifted"
        if not self.lines:
            named = "" if self.first else f": {', '.join(self.changes)}"
            return f"homelab {self.stack}: {self.newer}{named}"
        what = "; ".join(self.lines)
        return (
            f"homelab {self.stack}: {what if len(what) <= 400 else f'{what[:400]}…'}; `pulumi up --refresh` corrects it"
        )

    def markdown(self) -> str:
        """For an issue."""
        parts = [f"### Drift of the stack {self.stack}"]
        if self.errors:
            parts += ["It can't be told whether anything has drifted:", *(fenced(one, "text") for one in self.errors)]
        elif not self.found:
            parts.append("Nothing has drifted.")
        else:
            parts += ["\n".join(f"- {_plain(one)}" for one in self.lines)] if self.lines else []
            parts += [] if self.lines else [f"{self.newer[0].upper()}{self.newer[1:]}."]
            parts += (
                [f"`pulumi up --refresh` would act on: {', '.join(map(_plain, self.changes))}"] if self.changes else []
            )
        parts += [f"What to do: {self.next}."] if self.next else []
        return "\n\n".join([*parts, MARK]) + "\n"


def of_events(stack: str, log: Sequence[Event], code: int) -> Drift:
    """What an event log tells.

    :param code: the preview's exit status.
    """
    texts = [one.text for one in log if isinstance(one, Diagnostic)]
    lines = dict.fromkeys(f"{match['who']}: {match['what']}" for text in texts for match in _SAID.finditer(text))
    changes = events.changing(log)
    # That there are changes is what the engine calls an error here.
    errors = [text for text in events.errors(log) if "no changes were expected" not in text]
    if code != 0 and not errors and not changes:
        errors = [f"pulumi preview ended with status {code}"]
    first = any(isinstance(one, Step) and (one.operation, one.kind) == ("create", "pulumi:pulumi:Stack") for one in log)
    return Drift(stack, list(lines), changes, errors, first)


def timer(stack: str, project: Path, python: Path) -> str:
    """Two units for systemd, and where they go.

    :param project: the program's folder.
    :param python: the interpreter of its environment.
    """
    command = shlex.join([str(python), "-m", "homelab", "drift", "--stack", stack])
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
EnvironmentFile=/etc/homelab-drift.env
WorkingDirectory={project}
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


def _plain(text: str) -> str:
    """Nothing in a host's words is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|@])", r"\\\1", text)
