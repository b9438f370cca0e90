"""Stacks of this project that are made by programs: the lab's, the tests', a preview's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def create(pulumi: Path, stack: str, environment: Mapping[str, str], project: Path = PROJECT) -> None:
    """`pulumi stack init`, without touching the project's folder.

    The command knows no --config-file: it writes the stack's salt into `Pulumi.<stack>.yaml` of the project it is called in.
    So it is called in a copy; the first `up` or `preview` with --config-file writes a salt of its own there.

    :raises subprocess.CalledProcessError: with the CLI's words in `stderr`, such as that the stack exists.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(project / "Pulumi.yaml", folder)
        subprocess.run(
            [str(pulumi), "stack", "init", stack, "--non-interactive", "--cwd", folder],
            env=dict(environment),
            check=True,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
        )


def backend_url(folder: Path) -> str:
    """The URL of a backend in a local folder.

    Without `metadata=skip` each checkpoint has a second file with its attributes, which is not written atomically: an engine
    that is killed at that moment leaves it empty, and the stack can't be read any more ("failed to load checkpoint: EOF").
    """
    return f"{folder.as_uri()}?metadata=skip"


def release_dead_lock(pulumi: Path, stack: str, folder: Path, environment: Mapping[str, str]) -> None:
    """`pulumi cancel`, if the run that holds the stack's lock was killed. For a backend in a local folder, used by one machine."""
    for lock in (folder / ".pulumi" / "locks").rglob("*.json"):
        if lock.parent.name == stack and not _runs(json.loads(lock.read_text(encoding="utf-8")).get("pid", 0)):
            subprocess.run(
                [str(pulumi), "cancel", "--yes", "--stack", stack, "--cwd", str(PROJECT)],
                env=dict(environment),
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )
            return


def _runs(pid: int) -> bool:
    """Whether the process is there and not a zombie, which only waits for its parent to notice its end."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
