"""Scripts run in a real bash on a folder: ROOT points at it, and commands that a host has are small files on the PATH."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forked_agent
from tests.boot_layers import Asked
from tests.kept_systems import KeptSystems
from tests.waiting import PATIENCE


@dataclass
class Folder:
    """A host that is nothing but a folder. ``commands`` holds stand-ins for the host's commands, first on the PATH."""

    root: Path
    commands: Path

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
        return target

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def command(self, name: str, text: str) -> None:
        """A stand-in: bash, with ROOT set."""
        file = self.commands / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)

    def bash(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", text, "bash", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=PATIENCE,
        )

    def run(self, verb: str, script: Asked) -> subprocess.CompletedProcess[str]:
        """A layer, as a host runs it."""
        return forked_agent.asked(self.environment, verb, script.layer, script.wanted)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.commands}:{os.environ['PATH']}"
        return {"ROOT": str(self.root), "PATH": path, "HOME": str(self.root)}

    def tree(self) -> dict[str, tuple[int, str]]:
        """Path -> mode and content (or link target) of everything below ROOT, but for /run."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if name == "run" or name.startswith("run/"):
                continue
            if path.is_symlink():
                found[name] = (0, path.readlink().as_posix())
            elif path.is_file():
                found[name] = (path.stat().st_mode & 0o7777, path.read_text())
            else:
                found[name] = (path.stat().st_mode & 0o7777, "directory")
        return found

    def files(self) -> dict[str, tuple[int, str]]:
        """The same without directories."""
        return {name: about for name, about in self.tree().items() if about[1] != "directory"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return empty_folder(tmp_path)


def empty_folder(place: Path) -> Folder:
    """A host without anything, in a folder that may not be there yet."""
    root, commands = place / "root", place / "commands"
    for path in ("etc", "var/lib", "run", "proc", "boot"):
        (root / path).mkdir(parents=True)
    commands.mkdir()
    return Folder(root, commands)


@pytest.fixture(scope="session")
def kept_systems(tmp_path_factory: pytest.TempPathFactory) -> KeptSystems:
    return KeptSystems(lambda: tmp_path_factory.mktemp("kept"))
