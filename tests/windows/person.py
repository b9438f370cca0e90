"""Somebody at a Windows PC: the commands that docs/windows.md has, in a project's folder with blanks and umlauts."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab import Lab
from tests.e2e.terminal import Terminal
from tests.engine_stack import Result
from tests.installed import wheel
from tests.windows.pc import Pc, windows_path

# Wine brings no CTRL_BREAK to another process group (GenerateConsoleCtrlEvent: "Invalid handle"). So the engine waits five seconds for its first
# plugin's end, has none left for the others of its five, and says this of them at the end of a run. Everything is done by then.
_OF_WINE = re.compile(r"Detected that .+pulumi-resource-(command\.exe|homelab\.cmd) exited prematurely")


# Of a console.
COLUMNS = 80


def _without_wines(lines: Sequence[str]) -> Iterator[str]:
    """What a run shows, without that sentence of the engine's, which makes the stack's own row one of a failure."""
    text = re.sub(r"^    error: Detected that .*?^$\n", "", "\n".join(lines), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\*\*creating failed(?: \((\d+s)\))?\*\*.*", lambda found: f"created ({found[1] or '0s'})", text)
    yield from re.sub(r"^ +\d+ errored\n", "", text, flags=re.MULTILINE).splitlines()


class Run(Result):
    """One run of the CLI under Wine."""

    @property
    def errors(self) -> list[str]:
        """Without what it says because of Wine."""
        said = [one["diagnosticEvent"] for one in self.events if "diagnosticEvent" in one]
        return [one["message"] for one in said if one["severity"] == "error" and not _OF_WINE.search(one["message"])]


def run_of(output: str, events: Path) -> Run:
    """What it said, and the file with its events."""
    return Run(0, output, [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()])


class Person:
    """`homelab`: how the command is called; `folder`: the project."""

    def __init__(self, pc: Pc, folder: Path, *homelab: str) -> None:
        self.pc, self.folder, self._homelab = pc, folder, homelab
        (self.home,) = (
            one for one in pc.home.iterdir() if one.name != "Public"
        )  # Wine names it as this machine's user
        shutil.rmtree(self.home / ".ssh", ignore_errors=True)
        (folder / "state").mkdir()
        self.own = {
            "PULUMI_BACKEND_URL": f"file://Z:{folder.as_posix()}/state?metadata=skip",
            "PULUMI_CONFIG_PASSPHRASE": "correct horse",
            "PULUMI_DEBUG_COMMANDS": "true",
        }

    @classmethod
    def with_a_clone(cls, pc: Pc, folder: Path) -> Person:
        """A checkout with autocrlf, and what docs/windows.md has for one."""
        pc.clone(folder)
        return cls(pc, folder, pc.python, "-m", "homelab")

    @classmethod
    def with_the_package(cls, pc: Pc, folder: Path) -> Person:
        """The installed package, in an empty folder."""
        environment = folder.parent / "homelab"
        shutil.copytree(pc.prefix / "venv", environment)
        with tempfile.TemporaryDirectory() as built:
            pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
            done = pc.run(environment, r"Scripts\python.exe", *pip, windows_path(wheel(Path(built))))
        assert done.returncode == 0, done.stdout
        folder.mkdir()
        return cls(pc, folder, windows_path(environment / "Scripts" / "homelab.exe"))

    def pulumi(self, verb: str, *options: str) -> Run:
        """A run without a console, to its end."""
        log = self.folder / f"{verb}{len(list(self.folder.glob('*.jsonl')))}.jsonl"
        done = self.pc.run(self.folder, *self._run(verb, log, *options, "--non-interactive"), **self.own)
        assert log.exists(), done.stdout
        return run_of(done.stdout, log)

    def _run(self, verb: str, log: Path, *options: str) -> list[str]:
        yes = [] if verb == "preview" else ["--yes", "--skip-preview"]
        return ["pulumi.exe", verb, *yes, *options, "--stack", "homelab", "--event-log", log.name]

    def homelab(self, *words: str, status: int = 0, encoding: str = "utf-8", **more: str) -> str:
        """What a command says without a console."""
        program, *arguments = *self._homelab, *words
        done = self.pc.run(self.folder, program, *arguments, encoding=encoding, **self.own, **more)
        assert done.returncode == status, done.stdout
        return done.stdout

    def init(self, lab: Lab, *options: str) -> list[str]:
        """`homelab init` in a console, with the lab's address; its port is a lab's peculiarity. The password comes from the environment."""
        ssh = lab.connection
        where = [f"{ssh['host']}:{ssh['port']}", "--host-key", ssh["hostKey"]]
        shown = self.homelab_at_a_console("init", *where, *options, "--yes", HOMELAB_PASSWORD=ssh["password"])
        text = "\n".join(shown)
        assert "  pulumi up --suppress-outputs" in text and ssh["password"] not in text
        return shown

    def begin_up(self) -> tuple[Terminal, Path]:
        """`pulumi up` in a console, with its display; and the file with its events."""
        log = self.folder / "console.jsonl"
        return self._at_a_console(*self._run("up", log)), log

    def up(self) -> tuple[Run, list[str]]:
        """`pulumi up` in a console, to its end; and what it showed, without what it says because of Wine."""
        terminal, log = self.begin_up()
        terminal.answer(status=None)
        lines = terminal.lines()
        return run_of("\n".join(lines), log), list(_without_wines(lines))

    def homelab_at_a_console(self, *words: str, **more: str) -> list[str]:
        """What a command shows in a console."""
        terminal = self._at_a_console(*self._homelab, *words, **more)
        terminal.answer()
        return "\n".join(terminal.lines()).rstrip().split("\n")

    def _at_a_console(self, program: str, *arguments: str, **more: str) -> Terminal:
        environment = {**self.pc.environment(**self.own, **more), "TERM": "xterm-256color"}
        return Terminal(self.pc.command(program, *arguments), COLUMNS, environment, self.folder)
