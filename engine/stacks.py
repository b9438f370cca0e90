"""Stacks of this project that are made by programs: the lab's, the tests', a preview's."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def create(pulumi: Path, stack: str, environment: Mapping[str, str]) -> None:
    """``pulumi stack init``, without touching this folder.

    The command knows no --config-file: it writes the stack's salt into ``Pulumi.<stack>.yaml`` of the project it is called in.
    So it is called in a copy; the first `up` or `preview` with --config-file writes a salt of its own there.

    :raises subprocess.CalledProcessError: with the CLI's words in ``stderr``, such as that the stack exists.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PROJECT / "Pulumi.yaml", folder)
        subprocess.run(
            [str(pulumi), "stack", "init", stack, "--non-interactive", "--cwd", folder],
            env=dict(environment),
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
