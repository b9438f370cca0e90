"""The command line: finds the command, and leaves everything else to it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from homelab.cli import doctor, drift, init, log, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    :param arguments: without the program's name; by default those that it was started with.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="homelab", description=__doc__, add_help=False)
    commands = {
        "init": init.main,
        "doctor": doctor.main,
        "show": show.main,
        "log": log.main,
        "drift": drift.main,
    }
    parser.add_argument("command", choices=commands)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else 2
    return commands[parser.parse_args(words[:1]).command](words[1:])


HELP = """usage: homelab COMMAND ...

  init     from a host's address to its settings and its API user; shows everything before it does anything
  doctor   what is wrong with a stack's hosts, VMs and containers, or with one of them; changes nothing
  show     who has which card, as a tree or a picture: now, and with the next `pulumi up`; changes nothing
  log      what was said while NVIDIA's stack was installed; changes nothing
  drift    has anything on the hosts changed since the last `pulumi up`? --install-timer: asked once a day

homelab COMMAND --help lists what a command takes."""
