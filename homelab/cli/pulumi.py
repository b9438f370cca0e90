"""Pulumi's CLI, as the commands use it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from homelab import events
from homelab.errors import HomelabError
from homelab.events import Event

# The environment variable with the host's password.
PASSWORD = "HOMELAB_PASSWORD"
# How long the plugin's download may take, in seconds: some 20 MB.
PLUGIN_SECONDS = 300.0
# The stack of a project where Pulumi has none selected.
DEFAULT_STACK = "homelab"


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
    """The CLI in a project's folder."""

    program: str
    folder: Path
    stack: str

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
                next="go to the folder that has homelab's Pulumi.yaml, or make one: homelab init ADDRESS",
            )
        return cls(program, folder, stack)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of Pulumi's processes: without the host's password."""
        inherited = {name: value for name, value in os.environ.items() if name != PASSWORD}
        return {**inherited, **events.ENVIRONMENT, "PULUMI_SKIP_UPDATE_CHECK": "true"}

    def run(self, *arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        """What the CLI says, which can ask nothing.

        :raises subprocess.TimeoutExpired: not within these seconds; None: it is waited for.
        """
        return subprocess.run(
            [self.program, *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )

    def fetch_plugin(self) -> list[str]:
        """Fetches the plugin that `up` needs, unless it is there; returns a sentence where it can't be had."""
        install = ("plugin", "install", "resource", "command", version("pulumi-command"))
        try:
            process = self.run(*install, seconds=PLUGIN_SECONDS)
            if process.returncode == 0:
                return []
            problem = re.search(r"(?:warning|error): .+|$", process.stderr) or [""]
        except subprocess.TimeoutExpired:
            problem = [f"not within {PLUGIN_SECONDS:g} s"]
        cure = f"`pulumi {' '.join(install)} --file ARCHIVE`, from https://github.com/pulumi/pulumi-command/releases"
        return [f"Pulumi's plugin, which `pulumi up` needs, can't be fetched: {problem[0]}. With its archive: {cure}."]

    def make_stack(self) -> None:
        """Makes the stack, unless it exists, and selects it.

        :raises HomelabError: it can't be made.
        """
        process = self.run("stack", "select", "--create", self.stack)
        if process.returncode != 0:
            raise HomelabError(
                wanted=f"to make the stack {self.stack}",
                found=(process.stderr or process.stdout).strip()[-800:],
                why="without it Pulumi can't keep what it did, nor its secrets",
                next="correct what it reports, and run the same command again: it goes on from here",
            )

    def outputs(self) -> dict[str, object]:
        """The outputs of the stack's last `up`, those that are secrets as a word.

        :raises HomelabError: Pulumi can't read them.
        """
        process = self.run("stack", "output", "--json", "--stack", self.stack)
        if process.returncode == 0:
            return dict(json.loads(process.stdout))
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
            return self.run("preview", "--stack", self.stack, *logging, *options), events.read(log)


def selected_stack(folder: Path) -> str:
    """The stack that Pulumi has selected in a project's folder, also by PULUMI_STACK."""
    if name := os.environ.get("PULUMI_STACK"):
        return name
    try:
        process = Pulumi.find(folder, "").run("stack", "--show-name")
    except HomelabError:  # what only reads hosts needs no Pulumi
        return DEFAULT_STACK
    return process.stdout.strip() if process.returncode == 0 else DEFAULT_STACK
