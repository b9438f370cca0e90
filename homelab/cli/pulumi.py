"""Pulumi's CLI, as the commands use it: where the state is kept, the stacks, one secret, a preview."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from homelab import events
from homelab.errors import HomelabError
from homelab.events import Event

# The environment variable with the host's password.
PASSWORD = "HOMELAB_PASSWORD"
_STANDARD_ERROR = 2
# The stack of a project where Pulumi has none selected.
DEFAULT_STACK = "homelab"
_CLOUD = re.compile(r"https://(api|app)\.pulumi\.com/?")


def installed() -> str:
    """The path of Pulumi's CLI.

    :raises HomelabError: it isn't installed.
    """
    program = shutil.which("pulumi")
    if program is None:
        raise HomelabError(
            wanted="Pulumi's CLI",
            found="no program pulumi in the folders of PATH",
            why="it keeps the stack's state and its secrets, and runs the program",
            next="install it: https://www.pulumi.com/docs/iac/download-install/",
        )
    return program


@dataclass
class Pulumi:
    """The CLI in a project's folder. `extra_environment`: variables for its processes, such as a passphrase that the
    user typed.
    """

    program: str
    folder: Path
    stack: str
    extra_environment: dict[str, str] = field(default_factory=dict)
    _backend: list[str | None] = field(default_factory=list)

    @classmethod
    def find(cls, folder: Path, stack: str) -> Pulumi:
        """The CLI for a stack of the project in a folder.

        :raises HomelabError: it isn't installed, or the folder has no project.
        """
        program = installed()
        if not (folder / "Pulumi.yaml").is_file():
            raise HomelabError(
                wanted="to be in the project's folder",
                found=f"no Pulumi.yaml in {folder} or above it",
                why="the settings file belongs beside it",
                next="go to the folder that has homelab's Pulumi.yaml, or make one: homelab new DIR",
            )
        return cls(program, folder, stack)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of Pulumi's processes: without the host's password."""
        inherited = {name: value for name, value in os.environ.items() if name != PASSWORD}
        return {**inherited, **events.ENVIRONMENT, "PULUMI_SKIP_UPDATE_CHECK": "true", **self.extra_environment}

    def _run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def backend(self) -> str | None:
        """URL of the place that keeps the state, asked for once; None: the user isn't logged in."""
        if not self._backend:
            self._backend.append(self._whoami())
        return self._backend[0]

    def _whoami(self) -> str | None:
        process = self._run("whoami", "--json")
        if process.returncode != 0:
            return None
        try:
            return str(json.loads(process.stdout).get("url") or "") or None
        except (ValueError, AttributeError):
            return None

    def login(self, url: str) -> None:
        """:raises HomelabError: the backend can't be used."""
        self._backend.clear()
        _checked(self._run("login", url), f"to keep the state in {url}")

    def needs_passphrase(self, url: str, text: str) -> bool:
        """Whether the stack's secrets take a passphrase that isn't in the environment yet.

        :param text: of the stack's file.
        """
        by_other_means = re.search(r"^secretsprovider: *(?!passphrase)\S", text, re.MULTILINE)
        has_passphrase = any(
            name in self.environment for name in ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE")
        )
        return not (has_passphrase or by_other_means or _CLOUD.match(url))

    def need_unused_name(self) -> None:
        """Refuses the name of a stack that another folder has made: all that keep their state in one place and are
        projects of this name share their stacks, and its next `up` would undo what the other one did.

        :raises HomelabError: there is a stack of that name, or Pulumi can't tell.
        """
        process = self._run("stack", "ls", "--json")
        _checked(process, "the names of the stacks that exist")
        name = self.stack.rpartition("/")[2]
        if name in (str(row["name"]).rpartition("/")[2] for row in json.loads(process.stdout)):
            raise HomelabError(
                wanted=f"a new stack {self.stack}",
                found="there is one already where Pulumi keeps the state, and this folder has no settings of it",
                why="with another host's settings, its next `pulumi up` would undo what it has done on its own host",
                next="for another host, give the stack another name: homelab init --stack NAME; to go on with it, "
                f"copy its Pulumi.{name}.yaml here first; if nothing needs it any more: pulumi stack rm {name}",
            )

    def make_stack(self) -> None:
        """Makes the stack, unless it exists.

        :raises HomelabError: it can't be made.
        """
        process = self._run("stack", "init", "--stack", self.stack)
        if process.returncode != 0 and "already exists" not in process.stderr:
            _checked(process, f"to make the stack {self.stack}")

    def set_secret(self, path: str, value: str) -> None:
        """Puts a secret into the stack's file, encrypted; Pulumi gets it over standard input.

        :raises HomelabError: Pulumi can't encrypt it.
        """
        _checked(
            self._run("config", "set", "--stack", self.stack, "--secret", "--path", path, stdin=value),
            f"to encrypt {path}",
        )

    def outputs(self) -> dict[str, object]:
        """The outputs of the stack's last `up`, those that are secrets as a word.

        :raises HomelabError: Pulumi can't read them.
        """
        process = self._run("stack", "output", "--json", "--stack", self.stack)
        try:
            if process.returncode == 0 and isinstance(values := json.loads(process.stdout), dict):
                return values
        except ValueError:
            pass
        raise HomelabError(
            wanted=f"the outputs of the stack {self.stack}",
            found=(process.stderr or process.stdout).strip()[-800:],
            why="they say what guests saw of their cards",
            next="run it as you run `pulumi up`: in the project's folder, with the same passphrase and login",
        )

    def logged_preview(self, *options: str) -> tuple[subprocess.CompletedProcess[str], list[Event]]:
        """`pulumi preview`, with what it printed and its event log."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "events.jsonl"
            logging = ("--color", "never", "--event-log", str(log))
            return self._run("preview", "--stack", self.stack, *logging, *options), events.read(log)

    def preview(self, *, to_errors: bool) -> int:
        """`pulumi preview`, shown to the person; its exit status.

        :param to_errors: show it on standard error, since a program reads standard output.
        """
        command = [self.program, "preview", "--suppress-outputs", "--stack", self.stack]
        stdout = _STANDARD_ERROR if to_errors else None
        return subprocess.run(command, cwd=self.folder, env=self.environment, stdout=stdout).returncode


def selected_stack(folder: Path) -> str:
    """The stack that Pulumi has selected in a project's folder, also by PULUMI_STACK."""
    if name := os.environ.get("PULUMI_STACK"):
        return name
    try:
        process = Pulumi.find(folder, "")._run("stack", "--show-name")
    except HomelabError:  # what only reads hosts needs no Pulumi
        return DEFAULT_STACK
    return process.stdout.strip() if process.returncode == 0 else DEFAULT_STACK


def _checked(process: subprocess.CompletedProcess[str], wanted: str) -> None:
    if process.returncode != 0:
        raise HomelabError(
            wanted=wanted,
            found=(process.stderr or process.stdout).strip()[-800:],
            why="without it Pulumi can't keep what it did, nor its secrets",
            next="correct what it reports, and run homelab init again: it goes on from here",
        )
