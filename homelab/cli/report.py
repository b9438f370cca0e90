"""`homelab report`: writes what the doctor says of the stack's hosts and guests, without addresses and names, for an
issue; docs/tiers.md is made from such files.

Reads the hosts over SSH; changes nothing. Exit status: 0, written; 2, a host couldn't be read.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from homelab import __version__, hardware
from homelab.cli import doctor, stack_options

WRITTEN = 0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab report",
        description="Writes a file for an issue about what works on your hardware: machine, cards, versions, "
        "and what the doctor finds. It has no addresses, names, keys or serial numbers.",
    )
    stack_options.add(parser)
    parser.add_argument(
        "--undo",
        choices=get_args(hardware.Undo),
        default="not tried",
        help="what the host was like after `pulumi destroy` (default: not tried)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("homelab-report.json"), help="the file (default: homelab-report.json)"
    )
    parser.set_defaults(host=None)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    :raises HomelabError: the settings or a host can't be read.
    """
    arguments = parser().parse_args(argv)
    whole = doctor.everything(arguments)
    for part in whole.parts:
        if part.error is not None and part.place.startswith("hosts."):
            raise part.error
    made = {
        "format": 2,
        "homelab": __version__,
        "date": datetime.date.today().isoformat(),
        "undo": arguments.undo,
        "parts": hardware.passed_on(whole.values()),
    }
    text = json.dumps(made, indent=2)
    arguments.output.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    print(text)
    print(f"written: {arguments.output}. Look at it, then put it into an issue: the form is Hardware report.")
    return WRITTEN
