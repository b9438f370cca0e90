"""The options by which commands know a stack's settings file, and what is in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from homelab.doctor import stack


def add(parser: argparse.ArgumentParser) -> None:
    """``--stack`` and ``--config-file``."""
    parser.add_argument("--stack", default="homelab", help="reads Pulumi.STACK.yaml (default: homelab)")
    parser.add_argument("--config-file", type=Path, help="another file, as Pulumi's option of that name")


def read(arguments: argparse.Namespace) -> stack.StackFile:
    """The file.

    :raises HomelabError: it can't be read.
    """
    return stack.read(arguments.config_file or stack.path_of(arguments.stack))
