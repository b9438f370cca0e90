"""The options by which commands know a stack's settings file, and what is in it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from homelab.cli.project import stack_of
from homelab.cli.pulumi import selected_stack
from homelab.settings import project, stack_file
from homelab.settings.stack_file import StackFile


def name(text: str) -> str:
    """A stack's name as Pulumi takes it, with its organization and project or without: it becomes a file's name, and a
    part of commands.

    :raises argparse.ArgumentTypeError: the text is no stack's name.
    """
    if not re.fullmatch(r"([A-Za-z0-9_.-]+/){0,2}[A-Za-z0-9_.-]{1,100}", text):
        raise argparse.ArgumentTypeError("a stack's name has letters, digits, hyphens, underscores and periods")
    return text


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options of what reads hosts: which settings, and how to log in."""
    add_name(parser)
    parser.add_argument("--config-file", type=Path, help="read this file instead, like Pulumi's option of that name")
    parser.add_argument("--identity", metavar="FILE", help="log in with this private key, not as the settings say")


def add_name(parser: argparse.ArgumentParser) -> None:
    """Adds `--stack` alone."""
    parser.add_argument(
        "--stack", type=name, help="read Pulumi.STACK.yaml (default: the stack that Pulumi has selected)"
    )


def chosen(arguments: argparse.Namespace) -> str:
    """The name of the stack: that of `--stack`, else the one that Pulumi has selected."""
    return arguments.stack or selected_stack(project())


def noted(arguments: argparse.Namespace, file: StackFile) -> str:
    """PROJECT/STACK, by which the stack's guests are noted on their host; empty: this is no project's folder, or only a
    file is named, whose name isn't Pulumi.STACK.yaml.
    """
    folder, named = project(), file.stack if file.path.name.startswith("Pulumi.") else ""
    chosen_stack = arguments.stack or named
    return stack_of(folder, chosen_stack) if chosen_stack and (folder / "Pulumi.yaml").exists() else ""


def read(arguments: argparse.Namespace) -> StackFile:
    """The stack's settings file, as the options name it.

    :raises HomelabError: it can't be read.
    """
    return StackFile.read(arguments.config_file or stack_file.path_of(chosen(arguments)))
