"""`homelab report`: writes what the hosts show after `up`, each acceptance criterion with its evidence, for
an issue; docs/hardware.md is made from such files.

Reads the hosts over SSH, and the stack's outputs by `pulumi stack output`; changes nothing. Exit status: 0, written; 2,
a host couldn't be read.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from homelab import __version__, hardware
from homelab.cli import stack_options
from homelab.cli.pulumi import Pulumi
from homelab.contract import Outputs, consumed
from homelab.errors import HomelabError
from homelab.remote import diagnosis
from homelab.settings import project

WRITTEN = 0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab report",
        description="Writes a file for an issue about what works on your hardware: machine, cards, versions, "
        "and what was seen of them. It has no addresses, names, keys or serial numbers.",
    )
    stack_options.add(parser)
    parser.add_argument("--identity", metavar="FILE", help="log in with this private key, not as the settings say")
    parser.add_argument(
        "--undo",
        choices=get_args(hardware.Undo),
        default="not tried",
        help="what the host was like after `pulumi destroy` (default: not tried)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("homelab-report.json"), help="the file (default: homelab-report.json)"
    )
    return parser


def report(arguments: argparse.Namespace, outputs: Outputs | None) -> hardware.HardwareReport:
    """The report on all hosts of the settings.

    :param outputs: of the stack; None: they can't be read.
    :raises HomelabError: the settings or a host can't be read.
    """
    file = stack_options.read(arguments)
    hosts = []
    for host_name in file.asked(None):
        name, host = file.host(host_name, arguments.identity)
        hosts.append(hardware.of_host(diagnosis.read(host), name, host, outputs))
    today = datetime.date.today().isoformat()
    return hardware.HardwareReport(homelab=__version__, date=today, undo=arguments.undo, hosts=hosts)


def outputs_of(stack: str) -> Outputs:
    """The outputs of the stack's last `up`.

    :raises HomelabError: there are none, or Pulumi can't read them.
    """
    return consumed(f"the stack {stack}", Pulumi.find(project(), stack).outputs())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    outputs = None
    try:
        outputs = outputs_of(stack_options.chosen(arguments))
    except HomelabError as error:
        print(f"What the guests saw stays unknown in this report:\n{error}\n", file=sys.stderr)
    made = report(arguments, outputs)
    arguments.output.write_text(made.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n")
    print(*made.lines(), sep="\n")
    print(f"written: {arguments.output}. Look at it, then put it into an issue: the form is Hardware report.")
    return WRITTEN
