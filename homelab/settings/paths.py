"""Where a path in the settings leads."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def resolved(text: str) -> Path:
    """Relative paths count from the project's folder, wherever `pulumi` is called."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else PROJECT / path
