"""A stack of the unmodified program, run by the real Pulumi engine: what the tests on the lab and those on a real kernel share.

What is asserted is the host's state (its files, boots, connections) and the engine's event log, not our own words.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import quick_yaml
from lab.engine import install, stacks
from tests.conftest import PROJECT
from tests.host import Host
from tests.plain import PLAIN
from tests.waiting import PATIENCE

# How a refresh tells of drift.
_DRIFT = re.compile(r": drift(?: \(\w+\))?: ")
# How the state marks what isn't plain: pulumi/sdk/go/common/resource/sig.
_SIGNATURE, _SECRET = "4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270"


@dataclass
class Result:
    """One run of the CLI: exit code, what a person saw, what the engine logged."""

    code: int
    output: str
    events: list[dict[str, Any]]

    @property
    def steps(self) -> list[tuple[str, str]]:
        """(operation, resource name) of every step that did something, in the order in which it ended."""
        return self._noted("resOutputsEvent")

    @property
    def planned(self) -> list[tuple[str, str]]:
        """(operation, resource name) of every step that was begun, in that order; what a preview shows."""
        return self._noted("resourcePreEvent")

    def _noted(self, kind: str) -> list[tuple[str, str]]:
        steps = [event[kind]["metadata"] for event in self.events if "metadata" in event.get(kind, {})]
        done = [step for step in steps if step["op"] not in ("same", "read")]
        return [(step["op"], name_of(step["urn"])) for step in done if not step["type"].startswith("pulumi:providers:")]

    @property
    def changed(self) -> set[str]:
        """Names of the resources that something was done to; a refresh that found nothing is nothing."""
        return {name for operation, name in self.steps if operation != "refresh"}

    @property
    def found_changed(self) -> set[str]:
        """Names of the resources that a refresh found other than the run before had left them."""
        steps = [event["resOutputsEvent"]["metadata"] for event in self.events if "resOutputsEvent" in event]
        read = [step for step in steps if step["op"] == "refresh"]
        assert read, "nothing was refreshed"
        return {name_of(one["urn"]) for one in read if one["old"]["outputs"] != (one["new"] or {}).get("outputs")}

    @property
    def message(self) -> str:
        """The error messages of the engine's event log, colours taken out."""
        found = [event["diagnosticEvent"] for event in self.events if "diagnosticEvent" in event]
        text = "\n".join(one["message"] for one in found if one["severity"] == "error")
        return re.sub(r"<\{%.*?%\}>", "", text)


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all its descendants; plugins have process groups of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            others = stat.read_text().rpartition(")")[2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        children.setdefault(int(others.split()[1]), []).append(int(stat.parent.name))
    doomed = [pid]
    for one in doomed:
        doomed += children.get(one, [])
    for one in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def name_of(urn: str) -> str:
    return urn.rpartition("::")[2]


@functools.cache
def _home_of_this_process(home: Path) -> Path:
    """A PULUMI_HOME with the plugins of another one, in which the CLI keeps no logs; it ends with this process.

    Else it writes, compresses and encrypts a log of every run into `logs`, up to 500 MB, which takes a quarter of its time and has no
    switch; where that isn't a folder, it does without.
    """
    own = _folder_of_this_process()
    (own / "plugins").symlink_to(home / "plugins")
    if not PLAIN:
        (own / "logs").touch()
    return own


@functools.cache
def _name_of_project(project: Path) -> str:
    name: str = quick_yaml.load((project / "Pulumi.yaml").read_text())["name"]
    return name


def _folder_of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="homelab-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


#: A backend with a new stack `lab`, by its project's folder, to be copied.
_new_stacks: dict[Path, Path] = {}


def _without_secrets(value: Any) -> Any:
    """A value of the state, as the CLI shows it to somebody who didn't ask for secrets."""
    if isinstance(value, list):
        return [_without_secrets(one) for one in value]
    if isinstance(value, dict):
        secret = value.get(_SIGNATURE) == _SECRET
        return "[secret]" if secret else {name: _without_secrets(one) for name, one in value.items()}
    return value


def quick_start(engine: install.Engine) -> dict[str, str]:
    """What makes the CLI start fast; what it does is the same."""
    home = {"PULUMI_HOME": str(_home_of_this_process(engine.home))}
    if PLAIN:
        return home
    return home | {
        # The CLI notes whether the project's folder has changes, and so has git look through all of it.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "status.showUntrackedFiles",
        "GIT_CONFIG_VALUE_0": "no",
    }


def quick_environment(engine: install.Engine, backend: Path) -> dict[str, str]:
    """Of the CLI in a test: its own state, an empty passphrase, and what makes it quick.

    :param backend: the folder with the state.
    """
    return engine.environment(os.environ) | {
        "PULUMI_BACKEND_URL": stacks.backend_url(backend),
        "PULUMI_CONFIG_PASSPHRASE": "",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "NO_COLOR": "1",
        **quick_start(engine),
        # What makes the CLI know --event-log, which the Automation API uses.
        "PULUMI_DEBUG_COMMANDS": "true",
    }


@dataclass
class EngineStack:
    """A stack `lab` of its own, with the one host `pve`: backend and configuration belong to one test.

    ``project``: the folder with the program; ``backend``: the folder with the state, if another stack's is to be shared;
    ``patience``: seconds until a run has hung.
    """

    folder: Path
    engine: install.Engine
    config: dict[str, Any] = field(default_factory=dict)
    runs: int = 0
    project: Path = PROJECT
    backend: Path | None = None
    patience: float = PATIENCE

    @property
    def host(self) -> dict[str, Any]:
        """The settings of the one host, to be changed by a test; written before each run."""
        host: dict[str, Any] = self.config["homelab:hosts"]["pve"]
        return host

    @property
    def environment(self) -> dict[str, str]:
        return quick_environment(self.engine, self.backend or self.folder)

    def command(self, *arguments: str) -> list[str]:
        self.runs += 1
        where = ["--stack", "lab", "--non-interactive", "--cwd", str(self.project)]
        if arguments[0] not in ("cancel", "stack", "state"):  # which read no configuration
            where += ["--config-file", str(self.folder / "Pulumi.lab.yaml")]
            where += ["--event-log", str(self.folder / f"events-{self.runs}.jsonl")]
        return [str(self.engine.pulumi), *arguments, *where]

    def create(self) -> None:
        """The stack, not deployed yet: what `pulumi stack init` makes, which runs once in a process and project."""
        if self.project not in _new_stacks:
            new = _folder_of_this_process()
            environment = self.environment | {"PULUMI_BACKEND_URL": stacks.backend_url(new)}
            stacks.create(self.engine.pulumi, "lab", environment, self.project)
            _new_stacks[self.project] = new
        shutil.copytree(_new_stacks[self.project], self.backend or self.folder, dirs_exist_ok=True)
        self.write_config()

    def write_config(self) -> None:
        path = self.folder / "Pulumi.lab.yaml"
        kept = quick_yaml.load(path.read_text()) if path.exists() else {}
        if kept.get("config", {}) != self.config:  # else it stays as it was written, by whomever
            path.write_text(quick_yaml.dump(kept | {"config": copy.deepcopy(self.config)}))

    def run(self, *arguments: str) -> Result:
        self.write_config()
        command = self.command(*arguments)
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=self.patience,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            said = b"".join((error.stdout or b"", error.stderr or b"")).decode(errors="replace")
            raise AssertionError(f"{arguments[0]} hung for {self.patience} s:\n{said}\n{self.last_words()}") from None
        result = Result(done.returncode, done.stdout + done.stderr, self.events())
        # What holds of every run: a refusal is the program's own words alone; where nothing changes, no output does.
        assert "unhandled" not in result.output, result.output
        if arguments[0] == "preview" and done.returncode == 0 and not result.planned:
            assert "[unknown]" not in result.output and "Outputs:" not in result.output, result.output
        # Whatever a refresh tells of drift is a change, by which `pulumi preview --refresh --expect-no-changes` ends with 7.
        if arguments[0] in ("preview", "up") and "--refresh" in arguments and done.returncode == 0:
            acts = [name for operation, name in result.planned if operation != "refresh"]
            assert acts or not _DRIFT.search(result.output), result.output
        return result

    def last_words(self) -> str:
        """What the host has said last, for a run that has hung."""
        return ""

    def events(self, *, partial: bool = False) -> list[dict[str, Any]]:
        """The event log of the last run; ``partial``: of one that still runs, whose last line may be incomplete."""
        path = self.folder / f"events-{self.runs}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n") or not partial]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A run in a process group of its own, to be killed; its output goes to a file."""
        self.write_config()
        with (self.folder / "killed.log").open("ab") as log:
            return subprocess.Popen(
                self.command(*arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def up(self, *arguments: str, ok: bool = True) -> Result:
        return self._checked(self.run("up", "--yes", "--skip-preview", *arguments), ok)

    def preview(self, *arguments: str, ok: bool = True) -> Result:
        return self._checked(self.run("preview", *arguments), ok)

    def destroy(self, *arguments: str, ok: bool = True) -> Result:
        return self._checked(self.run("destroy", "--yes", "--skip-preview", *arguments), ok)

    def destroy_as_left(self) -> Result:
        """A destroy that reads everything before, and finds it as it was left: one more `up --refresh` would have had nothing to do."""
        result = self.destroy("--refresh")
        assert result.found_changed == set(), f"{result.found_changed} is not as the last run left it:\n{result.output}"
        return result

    @staticmethod
    def _checked(result: Result, ok: bool) -> Result:
        assert (result.code == 0) is ok, result.output
        return result

    def urns(self) -> list[str]:
        """Of all resources in the state, but for the stack itself and providers."""
        return [one["urn"] for one in self.resources()]

    def resources(self) -> list[dict[str, Any]]:
        """All of them in the state, but for the stack itself and providers."""
        resources = self._checkpoint().get("resources", [])
        return [one for one in resources if not one["type"].startswith(("pulumi:pulumi:", "pulumi:providers:"))]

    def output(self) -> dict[str, Any]:
        """The stack's outputs, as `pulumi stack output --json` has them (tests/e2e/test_make.py)."""
        found = [one for one in self._checkpoint().get("resources", []) if one["type"] == "pulumi:pulumi:Stack"]
        outputs: dict[str, Any] = _without_secrets(found[0].get("outputs", {})) if found else {}
        return outputs

    def _checkpoint(self) -> dict[str, Any]:
        """What the backend has of the stack's resources."""
        path = (self.backend or self.folder) / ".pulumi" / "stacks" / _name_of_project(self.project) / "lab.json"
        found: dict[str, Any] = json.loads(path.read_text())["checkpoint"].get("latest") or {}
        return found

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the engine, which is at work, and everything that it started, as a power cut on the user's machine would."""
        kill_tree(process.pid)
        assert process.wait() == -signal.SIGKILL, "the run had come to its end"

    def unlock(self) -> None:
        """What `pulumi cancel` does after a run that was killed, without a start of the CLI; the command itself: tests/e2e/test_kill.py."""
        shutil.rmtree((self.backend or self.folder) / ".pulumi" / "locks")


@dataclass(kw_only=True)
class HostStack(EngineStack):
    """A stack, and the host that it is about.

    ``home``: of the person whose stack it is, if not this machine's.
    """

    machine: Host
    home: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | ({"HOME": str(self.home)} if self.home else {})

    def last_words(self) -> str:
        return self.machine.last_words()

    def kept_as(self, folder: Path) -> None:
        """A copy of the stack's own files: configuration and state, without what was logged."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("events-*.jsonl"))
