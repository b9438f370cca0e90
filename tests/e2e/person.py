"""Somebody at a terminal: `homelab init` in a pseudo-terminal, its questions answered by keys."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pexpect

from lab import Lab
from lab.engine import install, stacks
from tests.conftest import PROJECT
from tests.e2e import terminal
from tests.e2e.terminal import Terminal
from tests.engine_stack import quick_start
from tests.waiting import PATIENCE

PASSPHRASE = "correct horse"
# The project, as a person has cloned it; its settings are the test's own.
PROGRAM = ("Pulumi.yaml", "__main__.py", "homelab", "components", "remote_scripts", "provider", ".venv")
ENTER = "\r"
Conversation = list[tuple[str, str]]


@dataclass
class Person:
    """Somebody at a terminal of 100 columns, in a folder with the project.

    ``inherited``: the environment that the machine gives; ``home``: where it has nothing of this person's yet.
    """

    folder: Path
    home: Path
    engine: install.Engine
    lab: Lab
    inherited: Mapping[str, str]

    @classmethod
    def of_a_new_machine(cls, folder: Path, engine: install.Engine, lab: Lab, environ: Mapping[str, str]) -> Person:
        """Where nothing is set up: no stack, no state, no key."""
        for name in PROGRAM:
            (folder / name).symlink_to(PROJECT / name)
        (folder / "state").mkdir()
        own = {
            "PULUMI_BACKEND_URL": stacks.backend_url(folder / "state"),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            **quick_start(engine),
        }
        return cls(folder, folder / "home", engine, lab, engine.environment(environ) | own)

    def __post_init__(self) -> None:
        self.home.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in self.inherited.items() if name not in ("SSH_AUTH_SOCK", "NO_COLOR")}
        return inherited | {"HOME": str(self.home), "TERM": "xterm-256color"}

    def init(self, *arguments: str) -> pexpect.spawn[str]:
        """`homelab init` with the lab's address; its port is a lab's peculiarity."""
        where = f"{self.lab.connection['host']}:{self.lab.connection['port']}"
        return self.terminal(sys.executable, "-m", "homelab", "init", where, *arguments)

    def terminal(self, program: str, *arguments: str, **environment: str) -> pexpect.spawn[str]:
        """A program in a terminal of 100 columns."""
        return pexpect.spawn(
            program,
            list(arguments),
            cwd=str(self.folder),
            env=self.environment | environment,
            dimensions=(50, 100),
            encoding="utf-8",
            timeout=PATIENCE,
        )

    def up_at_a_terminal(self) -> Terminal:
        """The real `pulumi up`, with its display, in a terminal of 100 columns."""
        command = [str(self.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "homelab"]
        environment = self.environment | {"PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
        return terminal.run(command, 100, environment, str(self.folder), PATIENCE)

    def show(self, *options: str) -> list[str]:
        """What `homelab show` draws at the terminal."""
        command = [sys.executable, "-m", "homelab", "show", *options]
        environment = self.environment | {"COLUMNS": "100", "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def up(self) -> str:
        """The real `pulumi up`."""
        return self._pulumi("up")

    def destroy(self) -> str:
        """The real `pulumi destroy`."""
        return self._pulumi("destroy")

    def _pulumi(self, verb: str) -> str:
        command = [str(self.engine.pulumi), verb, "--yes", "--skip-preview", "--stack", "homelab", "--non-interactive"]
        environment = self.environment | {"PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def answer(terminal: pexpect.spawn[str], *conversation: tuple[str, str], status: int = 0) -> str:
    """Each question awaited, and answered; all that was shown."""
    shown = ""
    for question, keys in conversation:
        terminal.expect_exact(question)
        shown += f"{terminal.before}{question}"
        terminal.send(keys)
    terminal.expect(pexpect.EOF, timeout=PATIENCE)
    shown += str(terminal.before)
    terminal.close()
    assert terminal.exitstatus == status, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


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
