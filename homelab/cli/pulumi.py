"""Pulumi's CLI, as the commands use it: where the state is kept, the stacks, one secret, a preview."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from homelab.errors import HomelabError

# The environment variable with the host's password.
PASSWORD = "HOMELAB_PASSWORD"
_STANDARD_ERROR = 2
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
    """The CLI in a project's folder. `more`: of the environment, such as a passphrase that was asked for."""

    program: str
    folder: Path
    stack: str
    more: dict[str, str] = field(default_factory=dict)
    _backend: list[str | None] = field(default_factory=list)

    @classmethod
    def find(cls, folder: Path, stack: str) -> Pulumi:
        """:raises HomelabError: it isn't installed."""
        program = installed()
        if not (folder / "Pulumi.yaml").is_file():
            raise HomelabError(
                wanted="to be in the project's folder",
                found=f"no Pulumi.yaml in {folder} or above it",
                why="the settings file belongs beside it",
                next="go to the folder that has homelab's Pulumi.yaml",
            )
        return cls(program, folder, stack)

    @property
    def environment(self) -> dict[str, str]:
        """Of the children: without the host's password, which is none of theirs."""
        inherited = {name: value for name, value in os.environ.items() if name != PASSWORD}
        return {**inherited, "PULUMI_SKIP_UPDATE_CHECK": "true", **self.more}

    def _run(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            input=given if given is not None else "",
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def backend(self) -> str | None:
        """Where the state is kept, asked once; None: nobody is logged in."""
        if not self._backend:
            self._backend.append(self._whoami())
        return self._backend[0]

    def _whoami(self) -> str | None:
        done = self._run("whoami", "--json")
        if done.returncode != 0:
            return None
        try:
            return str(json.loads(done.stdout).get("url") or "") or None
        except (ValueError, AttributeError):
            return None

    def login(self, url: str) -> None:
        """:raises HomelabError: the backend can't be used."""
        self._backend.clear()
        _checked(self._run("login", url), f"to keep the state in {url}")

    def needs_passphrase(self, url: str, text: str) -> bool:
        """Are the stack's secrets encrypted with a passphrase that nobody has given yet?

        :param text: of the stack's file.
        """
        by_other_means = re.search(r"^secretsprovider: *(?!passphrase)\S", text, re.MULTILINE)
        given = any(name in self.environment for name in ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"))
        return not (given or by_other_means or _CLOUD.match(url))

    def make_stack(self) -> None:
        """The stack made, unless it is there.

        :raises HomelabError: it can't be made.
        """
        done = self._run("stack", "init", "--stack", self.stack)
        if done.returncode != 0 and "already exists" not in done.stderr:
            _checked(done, f"to make the stack {self.stack}")

    def set_secret(self, path: str, value: str) -> None:
        """A secret put into the stack's file, encrypted; it goes over standard input.

        :raises HomelabError: it couldn't be.
        """
        _checked(
            self._run("config", "set", "--stack", self.stack, "--secret", "--path", path, given=value),
            f"to encrypt {path}",
        )

    def preview(self, *, to_errors: bool) -> int:
        """`pulumi preview`, shown to the person; its exit status.

        :param to_errors: on standard error, since standard output is a program's?
        """
        command = [self.program, "preview", "--stack", self.stack]
        shown = _STANDARD_ERROR if to_errors else None
        return subprocess.run(command, cwd=self.folder, env=self.environment, stdout=shown).returncode


def _checked(done: subprocess.CompletedProcess[str], wanted: str) -> None:
    if done.returncode != 0:
        raise HomelabError(
            wanted=wanted,
            found=(done.stderr or done.stdout).strip()[-800:],
            why="without it Pulumi can't keep what it did, nor its secrets",
            next="correct what it reports, and run homelab init again: it goes on from here",
        )
