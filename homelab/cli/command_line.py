"""The command line: finds the command, leaves everything else to it, and says what it raises."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from homelab import __version__
from homelab.errors import HomelabError
from homelab.later import later
from homelab.text import encodable

# What a command could not read or do ends with, as argparse does for a wrong argument.
UNREADABLE = 2
# The exit status of a program that SIGPIPE ended, as a shell tells it.
BROKEN_PIPE = 141
# The same of SIGINT.
INTERRUPTED = 130
# What they do. Each is imported when it is run: what the others need takes a second.
_COMMANDS = {
    "init": "asks about a host's cards and guests, and writes the settings; changes nothing before your yes",
    "doctor": "finds what is wrong with hosts, VMs and containers, and says what to do; doctor log: what apt, DKMS and "
    "their like printed there",
    "show": "shows who has which card, now and after the next `pulumi up`",
    "docs": "shows the pages and examples of this version, which messages name",
    "report": "writes a file about what works on your hardware, for others to read; no addresses, names or keys",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    :param arguments: without the program's name; by default those that it was started with.
    """
    for stream in (sys.stdout, sys.stderr):
        encodable(stream)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # also of what argparse prints and ends with
    except KeyboardInterrupt:
        print("Interrupted. What a host has begun it brings to its end.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.filename is not None:
            print(_of_a_file(error), file=sys.stderr)
            return UNREADABLE
        if not _is_unread(error):
            raise
        # The reader has closed the pipe, as `head` does. What Python still holds for standard output goes nowhere.
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return BROKEN_PIPE


def _of_a_file(error: OSError) -> HomelabError:
    return HomelabError(
        wanted=f"to read or write {error.filename}",
        found=error.strerror or str(error),
        why="the command ends here: it needs this file",
        next="correct the path, or see who may read and write there; then run the same again",
    )


def _is_unread(error: OSError, *, windows: bool = os.name == "nt") -> bool:
    # Whether an error means that nobody reads the output any more. Windows' C library calls that EINVAL.
    return isinstance(error, BrokenPipeError) or (windows and error.errno == errno.EINVAL and error.filename is None)


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    more = "show, doctor and report change nothing on a host. homelab COMMAND --help lists its options."
    parser = argparse.ArgumentParser(prog="homelab", epilog=more)
    parser.add_argument("--version", action="version", version=f"homelab {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, what in _COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    if not words:
        parser.print_help()
        return UNREADABLE
    command = later(f"homelab.cli.{parser.parse_args(words[:1]).command}")
    try:
        return int(command.main(words[1:]))
    except HomelabError as error:
        print(error, file=sys.stderr)
        return UNREADABLE
