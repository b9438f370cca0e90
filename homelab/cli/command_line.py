"""The command line: finds the command, and leaves everything else to it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from homelab.cli import doctor, init


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    :param arguments: without the program's name; by default those that it was started with.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="homelab", description=__doc__, add_help=False)
    commands = {"doctor": doctor.main, "init": init.main}
    parser.add_argument("command", choices=commands)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else 2
    return commands[parser.parse_args(words[:1]).command](words[1:])


HELP = """usage: homelab COMMAND ...

  init     from a host's address to its settings and its API user; shows everything before it does anything
  doctor   what is wrong with a card in a container, in a VM or on a host; changes nothing

homelab COMMAND --help lists what a command takes."""
