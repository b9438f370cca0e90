"""The program of another version beside this one's: 2.1.0's own, as git has it, in an environment with the same packages."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.e2e.person import PROGRAM

#: 2.1.0, as what follows goes on from it.
COMMIT = "9f9d0291"
_INSTALLED = """
import sys
from homelab.remote import agent
from remote_scripts.tools import boot_service
sys.stdout.buffer.write(boot_service.program(sys.argv[1]))
"""


@dataclass(frozen=True)
class Program:
    """A version's program, as a project. `folder`: with its Pulumi.yaml."""

    folder: Path

    def copy_to(self, folder: Path, name: str) -> Program:
        """The same as another project, whose stacks are others: of no other project's stack is anything theirs."""
        for part in PROGRAM:
            path = self.folder / part
            if path.is_dir() and part != ".venv":
                shutil.copytree(path, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif part != ".venv":
                shutil.copy(path, folder / part)
        (folder / ".venv").symlink_to(PROJECT / ".venv")
        # What it says of its own project's configuration keys is refused for another project's.
        own = (folder / "Pulumi.yaml").read_text().partition("config:\n")[0]
        (folder / "Pulumi.yaml").write_text(own.replace("name: homelab\n", f"name: {name}\n", 1))
        return Program(folder)

    def installed(self, layer: str) -> bytes:
        """The program that its agent puts on a host for what a layer does there by itself."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        command = [sys.executable, "-c", _INSTALLED, layer]
        return subprocess.run(command, cwd=self.folder, env=environment, check=True, capture_output=True).stdout


#: This version's.
OURS = Program(PROJECT)


def program_of_2_1_0(folder: Path) -> Program:
    """2.1.0's own, put into a folder; the test is skipped where git hasn't that commit."""
    packed = subprocess.run(["git", "archive", COMMIT, *PROGRAM[:-1]], cwd=PROJECT, capture_output=True)
    if packed.returncode:
        pytest.skip(f"2.1.0's own program is commit {COMMIT}, which a shallow clone lacks: `git fetch --unshallow`")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / ".venv").symlink_to(PROJECT / ".venv")
    return Program(folder)
