"""Somebody at a terminal: `homelab init` in a pseudo-terminal, its questions answered by keys."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import Lab
from lab.engine import install, stacks
from tests.conftest import PROJECT
from tests.e2e.terminal import LINES, Conversation, Terminal
from tests.engine_stack import quick_start

PASSPHRASE = "correct horse"
# The project, as a person has cloned it; its settings are the test's own.
PROGRAM = ("Pulumi.yaml", "__main__.py", "homelab", "components", "remote_scripts", "provider", ".venv")
ENTER = "\r"


@dataclass
class Person:
    """Somebody at a terminal, in the folder of a project.

    ``inherited``: the environment that the machine gives; ``home``: where it has nothing of this person's yet.
    """

    folder: Path
    home: Path
    engine: install.Engine
    lab: Lab
    inherited: Mapping[str, str]
    columns: int = 100
    lines: int = LINES

    @classmethod
    def of_a_new_machine(cls, folder: Path, engine: install.Engine, lab: Lab, environ: Mapping[str, str]) -> Person:
        """Where nothing is set up: no project, no stack, no state, no key; in ~/lab, as README has it."""
        home = folder / "home"
        own = {
            "PULUMI_BACKEND_URL": stacks.backend_url(home),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            **quick_start(engine),
        }
        # The program of this folder, whichever the environment has.
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), own.get("PYTHONPATH")]))
        return cls(home / "lab", home, engine, lab, engine.environment(environ) | own)

    def __post_init__(self) -> None:
        self.home.mkdir()
        self.folder.mkdir(exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in self.inherited.items() if name not in ("SSH_AUTH_SOCK", "NO_COLOR")}
        return inherited | {"HOME": str(self.home), "TERM": "xterm-256color"}

    def init(self, talk: Conversation, *options: str) -> tuple[str, list[str]]:
        """`homelab init` with the lab's address, whose port is a lab's peculiarity; all that it wrote, and the terminal's lines.

        :param talk: what is asked after the login, with the keys that answer it.
        """
        where = f"{self.lab.connection['host']}:{self.lab.connection['port']}"
        terminal = self.terminal(sys.executable, "-m", "homelab", "init", where, *options)
        return terminal.answer(*log_in(self.lab), *talk), terminal.lines()

    def terminal(self, *command: str, keeps: bool = False, **environment: str) -> Terminal:
        """A program in this person's terminal."""
        environment = self.environment | environment
        return Terminal([*command], self.columns, environment, self.folder, keeps=keeps, lines=self.lines)

    def at_a_terminal(self, verb: str) -> Terminal:
        """The real `pulumi up` or `pulumi destroy`, with its display, to its end."""
        command = [str(self.engine.pulumi), verb, "--yes", "--skip-preview", "--stack", "homelab"]
        terminal = self.terminal(*command, keeps=True, PULUMI_CONFIG_PASSPHRASE=PASSPHRASE)
        terminal.answer()
        return terminal

    def show(self, *options: str) -> list[str]:
        """What `homelab show` draws at the terminal."""
        command = [sys.executable, "-m", "homelab", "show", *options]
        environment = self.environment | {"COLUMNS": "100", "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()


def log_in(lab: Lab) -> Conversation:
    """With the password; from then on with a key that is made and put onto the host."""
    return [
        ("Is it the same?", f"y{ENTER}"),
        ("root's password", f"{lab.connection['password']}{ENTER}"),
    ]


def agree() -> Conversation:
    """With a passphrase for a new stack."""
    return [
        ("A passphrase for Pulumi's secrets", f"{PASSPHRASE}{ENTER}"),
        ("Again", f"{PASSPHRASE}{ENTER}"),
        ("Go on?", f"y{ENTER}"),
    ]
