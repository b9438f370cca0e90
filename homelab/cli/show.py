"""`homelab show`: who has which card, as a tree: as it is, with what the next `up` changes.

Reads the hosts over SSH as the stack's configuration file says, and changes nothing. Exit status: 0; 2, a host couldn't
be read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from homelab.cli import stack_options
from homelab.contract import VERSION, without_nulls
from homelab.findings import Finding
from homelab.judged.tree import Settings
from homelab.reading import planning
from homelab.show import reading, terminal, traits, tree
from homelab.show.cards import ShownGuest
from homelab.text import clean

WELL = 0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab show", description="Shows who has which card: host, IOMMU group, card, guest. Changes nothing."
    )
    stack_options.add(parser)
    parser.add_argument("--host", help="show only this host of the settings")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the same as JSON, by the names of the outputs")
    form.add_argument("--undo", action="store_true", help="show what `pulumi destroy` undoes instead")
    return parser


def trees(arguments: argparse.Namespace) -> list[tree.TreeNode]:
    """A tree for each host.

    :raises HomelabError: the configuration or a host can't be read.
    """
    return [of_host(wanted) for wanted in _hosts(arguments)]


def _hosts(arguments: argparse.Namespace) -> list[Settings]:
    # What the settings want of each host.
    file = stack_options.read(arguments)
    settings, stack = file.guests(), stack_options.noted(arguments, file)
    hosts = [file.host(name, arguments.identity) for name in file.asked(arguments.host)]
    return [Settings(name, host, *settings.guests_on(name), stack) for name, host in hosts]


def of_host(wanted: Settings) -> tree.TreeNode:
    """A host's tree.

    :raises HomelabError: the host can't be read.
    """
    judged = planning.planned(wanted, planning.PATIENCE_SECONDS)
    facts, host, refusals = judged.facts, wanted.host, judged.refusals
    current = cards = reading.of_reading(facts, host)
    steps, beside = list[str](), list[ShownGuest]()
    if not refusals:
        cards = reading.planned(current, judged)
        files = list(dict.fromkeys(file.named for file in judged.files))
        steps, beside = [*(files or judged.host.steps), *judged.of_reboot], reading.beside([*current, *cards], judged)
    proxmox = f"Proxmox VE {facts.pve or 'not found'}{facts.cluster.described}"
    title = f"{wanted.name} ({host.address}): {facts.kernel}, {proxmox}"
    refused = Finding.of(*refusals)
    notes = [*judged.unread, *judged.told_host.met, *(one.said for one in facts.owed if not one.is_lost)]
    reboot = judged.reboot.reboot if judged.reboot and not refusals else "no"
    system = {"host": wanted.name, "node": host.node_name, "kernel": facts.kernel, "pve": facts.pve}
    data = {**system, "reboot": reboot, "refusals": [one.parts() for one in refused], "notes": notes}
    told = [f"`pulumi up` refuses: wanted: {one.wanted}; found: {one.found}" for one in refused] + notes
    shown = tree.of_host(title, current, cards, traits.of_host(facts), steps, told, beside)
    return replace(shown, data=data)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    if arguments.undo:
        print(clean("\n".join(map(planning.undone, _hosts(arguments)))))
        return WELL
    shown = trees(arguments)
    if arguments.json:
        hosts = {str(one.data["host"]): without_nulls(one.values()) for one in shown}
        print(json.dumps({"version": VERSION, "hosts": hosts}, indent=2))
    else:
        print(terminal.text(shown), end="")
        print(f"{tree.LEGEND} What has no mark stays.")
    return WELL
