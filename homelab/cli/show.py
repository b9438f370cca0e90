"""`homelab show`: who has which card, as a tree: as it is, with what the settings change.

Reads the hosts over SSH as the stack's configuration file says, and changes nothing. Exit status: 0; 2, a host couldn't
be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from homelab.cli import project, stack_options
from homelab.cli.whereabouts import guests_on
from homelab.remote import ssh
from homelab.show import reading, terminal, traits, tree

WELL = 0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab show", description="Shows who has which card: host, IOMMU group, card, guest. Changes nothing."
    )
    stack_options.add(parser)
    parser.add_argument("--host", help="show only this host of the settings")
    parser.add_argument("--identity", metavar="FILE", help="log in with this private key, not as the settings say")
    return parser


def trees(arguments: argparse.Namespace) -> list[tree.TreeNode]:
    """A tree for each host.

    :raises HomelabError: the configuration or a host can't be read.
    """
    file = stack_options.read(arguments)
    settings, stack = file.guests(), project.stack_of(file.path.parent, file.stack)
    roots = []
    for host_name in file.asked(arguments.host):
        name, host = file.host(host_name, arguments.identity)
        facts = ssh.read(host, guests=True)
        node = host.node or name
        current_cards = reading.of_reading(facts, host, node)
        vms, containers = guests_on(settings, name, host, facts)
        planned_cards = reading.wanted(host, vms, containers, current_cards, facts, stack)
        title = (
            f"{name} ({host.address}): {facts.kernel}, Proxmox VE {facts.pve or 'not found'}{facts.cluster.described}"
        )
        host_traits = traits.of_host(facts), traits.wanted_of_host(facts, host)
        roots.append(tree.of_host(title, current_cards, planned_cards, host_traits))
    return roots


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    print(terminal.text(trees(parser().parse_args(argv))), end="")
    print(f"{tree.LEGEND} What has no mark stays.")
    return WELL
