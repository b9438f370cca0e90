"""The command line: finds the command, and leaves everything else to it."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from homelab.later import later
from homelab.text import encodable

# The exit status of a program that SIGPIPE ended, as a shell tells it.
BROKEN_PIPE = 141
# Each is imported when it is run: what the others need takes a second.
_COMMANDS = {
    "new": ("new", "main"),
    "init": ("init", "main"),
    "doctor": ("doctor", "main"),
    "show": ("show", "main"),
    "log": ("log", "main"),
    "switch": ("switch", "main"),
    "lock": ("lock", "main"),
    "outdated": ("lock", "show_outdated"),
    "drift": ("drift", "main"),
    "report": ("report", "main"),
}
_ALL = "one stack has several hosts; several stacks are a loop in your shell"
# Words that were commands: what to use in their place.
_REMOVED = {
    "up": f"use `pulumi up`: {_ALL}",
    "preview": f"use `pulumi preview`: {_ALL}",
    "rom": "docs/troubleshooting-cards.md#a-rom-file-for-a-card has the commands that make a file for romfile",
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
    except OSError as error:
        if not _is_unread(error):
            raise
        # The reader has closed the pipe, as `head` does. What Python still holds for standard output goes nowhere.
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return BROKEN_PIPE


def _is_unread(error: OSError, *, windows: bool = os.name == "nt") -> bool:
    """Whether an error means that nobody reads the output any more. Windows' C library calls that EINVAL."""
    return isinstance(error, BrokenPipeError) or (windows and error.errno == errno.EINVAL and error.filename is None)


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="homelab", description=__doc__, add_help=False)
    parser.add_argument("command", choices=_COMMANDS)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else 2
    if words[0] in _REMOVED:
        print(f"homelab {words[0]} is no command any more: {_REMOVED[words[0]]}", file=sys.stderr)
        return 2
    module, function = _COMMANDS[parser.parse_args(words[:1]).command]
    command: Callable[[Sequence[str]], int] = getattr(later(f"homelab.cli.{module}"), function)
    return command(words[1:])


HELP = """usage: homelab COMMAND ...

  new      makes a project's folder, for homelab init and pulumi up
  init     from a host's address to its settings and its API user; shows everything before it does anything
  doctor   what is wrong with a stack's hosts, VMs and containers, or with one of them; changes nothing
  show     who has which card, as a tree or a picture: now, and with the next `pulumi up`; changes nothing
  log      what long commands printed (initramfs, apt, DKMS, NVIDIA's installer); changes nothing
  switch   hands a shared card to a VM (GPU --to vm:NAME), or back to the containers; --rehearse says what prevents it
  lock     writes down which packages of NVIDIA's stack each system has, so that a later run installs the same
  outdated what is newer, and whether it fits; changes nothing
  drift    has anything on the hosts changed since the last `pulumi up`? --install-timer: asked once a day
  report   writes a file that shows others what works on this machine: no addresses, names or keys; changes nothing

homelab COMMAND --help lists what a command takes."""
