"""The folder of simulated commands at the beginning of a system's PATH: one small launcher each, for run.py."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from . import run


def write(folder: Path, names: Collection[str]) -> None:
    """Make the launchers, unless they are there.

    They name the Python and the checkout in use, and are made anew when one of these has moved.

    Args:
        folder: STATE/bin.
        names: commands, of those in run.PROGRAMS.
    """
    start = f"exec {shlex.quote(os.path.realpath(sys.executable))} -I -S {shlex.quote(str(Path(run.__file__)))}"
    if all(_starts_with(folder / name, start) for name in names):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        path = folder / name
        path.write_text(f'#!/bin/sh\n{start} {name} "$@"\n', encoding="utf-8")
        path.chmod(0o755)


def _starts_with(launcher: Path, start: str) -> bool:
    return launcher.exists() and start in launcher.read_text(encoding="utf-8")
