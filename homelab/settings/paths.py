"""Where a path in the settings leads."""

from __future__ import annotations

from pathlib import Path


def project() -> Path:
    """The folder of the Pulumi project that is being run: the nearest one with a Pulumi.yaml, from where we are upwards. Pulumi runs a
    project's program, and its provider, there."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "Pulumi.yaml").is_file()), here)


def resolved(text: str) -> Path:
    """Relative paths count from the project's folder, wherever `pulumi` is called."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else project() / path
