"""``python -m homelab doctor container 901 --like 950``, ``python -m homelab doctor vm 103``, ``python -m homelab doctor host``: what is wrong, and what to do.

Reads the host over SSH as the stack's configuration file says, and changes nothing. Exit status: 0, all is well; 1, something isn't;
2, it couldn't be read.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from homelab.doctor import container, stack, vm
from homelab.doctor import host as host_judge
from homelab.doctor.devices import WantedCards
from homelab.doctor.report import Report, unreadable
from homelab.errors import HomelabError
from homelab.remote import diagnosis

WELL, FINDINGS, UNREADABLE = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """The command's arguments. argparse exits with 2 for a wrong one, too."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--stack", default="homelab", help="reads Pulumi.STACK.yaml (default: homelab)")
    common.add_argument("--config-file", type=Path, help="another file, as Pulumi's option of that name")
    common.add_argument("--host", help="one of homelab:hosts, where there are several")
    common.add_argument(
        "--identity", metavar="FILE", help="log in with this private key instead of what the settings say"
    )
    common.add_argument("--json", action="store_true", help="for programs")
    main_parser = argparse.ArgumentParser(
        prog="python -m homelab doctor",
        description="What is wrong with a card in a container, in a VM or on a host; changes nothing.",
        epilog="Exit status: 0 all is well, 1 something isn't, 2 it couldn't be read.",
    )
    kinds = main_parser.add_subparsers(dest="kind", required=True, metavar="container | vm | host")
    of_container = kinds.add_parser("container", parents=[common], help="device by device, from the host to inside")
    of_container.add_argument("id", type=int)
    of_container.add_argument("--like", type=int, metavar="ID", help="a container that works, to compare with")
    of_container.add_argument("--gpus", metavar="0,1", help="cards that it is to have: N of /dev/nvidiaN, all, none")
    of_vm = kinds.add_parser("vm", parents=[common], help="its hostpci options and the cards behind them")
    of_vm.add_argument("id", type=int)
    kinds.add_parser("host", parents=[common], help="IOMMU, cards, drivers, groups, mappings, this program's files")
    return main_parser


def diagnose(arguments: argparse.Namespace) -> Report:
    """Reads and judges.

    :raises HomelabError: the configuration, the host or the guest can't be read.
    """
    found = stack.read(arguments.config_file or stack.path_of(arguments.stack))
    name, host = found.host(arguments.host, arguments.identity)
    if arguments.kind == "container":
        ids = [arguments.id, *([arguments.like] if arguments.like is not None else [])]
        seen = asyncio.run(diagnosis.read(host, list(dict.fromkeys(ids))))
        if arguments.gpus is not None:
            cards: WantedCards | None = WantedCards(stack.assignment(arguments.gpus, seen, "--gpus"), "--gpus")
        else:
            cards = found.cards(name, host, arguments.id, seen)
        return container.diagnose(seen, arguments.id, like=arguments.like, cards=cards)
    seen = asyncio.run(diagnosis.read(host))
    if arguments.kind == "vm":
        return vm.diagnose(seen, arguments.id, host)
    return host_judge.diagnose(seen, host)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    try:
        report = diagnose(arguments)
    except HomelabError as error:
        if arguments.json:
            print(unreadable(arguments.kind, error))
        else:
            print(error, file=sys.stderr)
        return UNREADABLE
    print(report.json() if arguments.json else report.text())
    return WELL if report.well else FINDINGS


if __name__ == "__main__":
    sys.exit(main())
