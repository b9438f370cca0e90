"""`homelab show`: who has which card, as a tree: as it is, with what the next `up` changes.

Reads the hosts over SSH as the stack's configuration file says, and changes nothing. Exit status: 0; 2, a host couldn't
be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from homelab.cli import stack_options
from homelab.reading import planning
from homelab.remote import ssh
from homelab.settings import Host, Settings
from homelab.show import reading, terminal, traits, tree

WELL = 0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab show", description="Shows who has which card: host, IOMMU group, card, guest. Changes nothing."
    )
    stack_options.add(parser)
    parser.add_argument("--host", help="show only this host of the settings")
    return parser


def trees(arguments: argparse.Namespace) -> list[tree.TreeNode]:
    """A tree for each host.

    :raises HomelabError: the configuration or a host can't be read.
    """
    file = stack_options.read(arguments)
    settings, stack = file.guests(), stack_options.noted(arguments, file)
    hosts = [file.host(name, arguments.identity) for name in file.asked(arguments.host)]
    return [of_host(name, host, settings, stack) for name, host in hosts]


def of_host(name: str, host: Host, settings: Settings, stack: str) -> tree.TreeNode:
    """A host's tree.

    :param name: the host's in the settings.
    :param stack: PROJECT/STACK.
    :raises HomelabError: the host can't be read.
    """
    later = facts = ssh.read(host, guests=True, kernel_log=True)
    vms, containers = settings.guests_on(name)
    current = planned = reading.of_reading(facts, host)
    found, refused = planning.judged(name, host, vms, containers, stack, facts)
    if found:
        planned, later = reading.after(current, facts, host, found.want, vms, containers, stack)
    title = f"{name} ({host.address}): {facts.kernel}, Proxmox VE {facts.pve or 'not found'}{facts.cluster.described}"
    remarks = [*(found.unread if found else ()), *(one.said for one in facts.owed)]
    return tree.of_host(title, current, planned, (traits.of_host(facts), traits.of_host(later)), refused, remarks)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    print(terminal.text(trees(parser().parse_args(argv))), end="")
    print(f"{tree.LEGEND} What has no mark stays.")
    return WELL
