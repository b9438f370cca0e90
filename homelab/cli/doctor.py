"""`homelab doctor`: what is wrong with a stack's hosts, VMs and containers, and what to do; with
`container 901 --like 950`, `vm 103` or `host`: with one of them, in detail. `log`: what long commands printed there.

Reads the host over SSH as the stack's configuration file says, and changes nothing. Exit status: 0, all is well; 1,
something isn't; 2, it couldn't be read.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from homelab.cli import access, log, stack_options
from homelab.doctor import container, vm, whole
from homelab.doctor import host as host_judge
from homelab.doctor.devices import WantedCards
from homelab.doctor.reading import Reading, not_here
from homelab.doctor.report import WIDTH, Report, unreadable
from homelab.errors import HomelabError
from homelab.findings import JudgedGuest
from homelab.host.named import meant, named
from homelab.judged.tree import Settings, Tree
from homelab.nvidia import compatibility, judge
from homelab.reading import diagnosis, planning
from homelab.remote import ssh
from homelab.settings import Host, assigned_numbers
from homelab.settings import Settings as AllSettings
from homelab.settings import project as project_folder
from homelab.settings.stack_file import StackFile
from homelab.show import terminal
from remote_scripts.pve.guest_kinds import CONTAINER, VM

WELL, FINDINGS, UNREADABLE = 0, 1, 2
# What is looked at where nothing is named.
EVERYTHING = "stack"
LOG = "log"


def parser() -> argparse.ArgumentParser:
    """The command's arguments. argparse exits with 2 for a wrong one, too."""
    read = argparse.ArgumentParser(add_help=False)
    stack_options.add(read)
    common = argparse.ArgumentParser(add_help=False, parents=[read])
    common.add_argument(
        "--host",
        help="name of a host in the settings, if they have several; in a folder without settings: [USER@]HOST[:PORT]",
    )
    common.add_argument("--json", action="store_true", help="print the report as JSON")
    main_parser = argparse.ArgumentParser(
        prog="homelab doctor",
        description="Finds what is wrong with cards, on a host or in a guest, and says what to do. Changes nothing.",
        epilog="Exit status: 0 no problem, 1 a problem, 2 the host couldn't be read.",
    )
    kinds = main_parser.add_subparsers(dest="kind", required=True, metavar="stack | container | vm | host | log")
    kinds.add_parser(EVERYTHING, parents=[common], help="checks every host, VM and container of the settings (default)")
    of_container = kinds.add_parser(
        "container", parents=[common], help="checks each device, from the host into the container"
    )
    of_container.add_argument("guest", help="its id or name")
    of_container.add_argument("--like", metavar="GUEST", help="compare with this container, which works")
    of_container.add_argument(
        "--gpus", type=numbers, metavar="0,1", help="cards it should have: N of /dev/nvidiaN, all, none"
    )
    of_vm = kinds.add_parser("vm", parents=[common], help="checks its cards, and whether it would get them now")
    of_vm.add_argument("guest", help="its id or name")
    kinds.add_parser("host", parents=[common], help="checks IOMMU, cards, drivers, groups, mappings, homelab's files")
    of_log = kinds.add_parser(
        LOG, parents=[read], help="shows what update-initramfs, update-grub, apt, DKMS and NVIDIA's installer printed"
    )
    of_log.add_argument(
        "system", nargs="?", help="hosts.NAME, vms.NAME, containers.NAME (default: the only host); -: stdin"
    )
    of_log.add_argument("--lines", type=int, default=200, help="how many lines from the end (default: 200)")
    return main_parser


def numbers(text: str) -> list[int] | Literal["all"]:
    """The cards that `--gpus` names.

    :raises argparse.ArgumentTypeError: it is none of its forms.
    """
    try:
        return assigned_numbers(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _settings(arguments: argparse.Namespace) -> StackFile:
    """The stack's; in a folder that has none, of the host that --host names by its address."""
    if not arguments.host or arguments.stack or arguments.config_file or [*project_folder().glob("Pulumi*.yaml")]:
        return stack_options.read(arguments)
    login = access.of_address(arguments.host, arguments.identity).login
    arguments.host = None
    return StackFile(project_folder() / "Pulumi.yaml", {"hosts": {"pve": login}}, is_whole=False)


def diagnose(arguments: argparse.Namespace) -> Report:
    """A host's, VM's or container's report.

    :raises HomelabError: the configuration, the host or the guest can't be read.
    """
    file = _settings(arguments)
    name, host = file.host(arguments.host, arguments.identity)
    ids = _ids(arguments, file.guests(), name, host)
    containers = ids if arguments.kind == "container" else []
    installing = {"host", *judge.installing(host, file.guests().containers.values())}
    inside = installing & {"host", *map(str, containers[:1])}
    reading = diagnosis.read(host, [*dict.fromkeys(containers)], inside, ids[0] if arguments.kind == "vm" else 0)
    reading, tree = _judged(arguments, file, name, host, reading)
    if arguments.kind == "container":
        gpus = [*reading.cards] if arguments.gpus == "all" else arguments.gpus
        like, cards = ids[1] if arguments.like else None, None if gpus is None else WantedCards(gpus, "--gpus")
        return container.diagnose(reading, ids[0], like=like, cards=cards, tree=tree)
    if arguments.kind == "vm":
        return vm.diagnose(reading, ids[0], tree)
    return host_judge.diagnose(reading, tree)


def _ids(arguments: argparse.Namespace, settings: AllSettings, name: str, host: Host) -> list[int]:
    """The guests to look into, by id. Names are looked up on the host, which alone knows Proxmox VE's.

    :raises HomelabError: one isn't known.
    """
    texts = [text for text in (getattr(arguments, "guest", None), getattr(arguments, "like", None)) if text]
    if all(text.isdecimal() for text in texts):
        return [*map(int, texts)]
    facts = ssh.read(host, guests=True)
    kind = VM if arguments.kind == "vm" else CONTAINER
    known = named(*settings.guests_on(name)), facts.guests.configs
    of_kind = [[one for one in guests if (one.kind == "vm") is (kind is VM)] for guests in known]
    found = [(text, meant(text, *of_kind)) for text in texts]
    for text, ones in found:
        if len(ones) != 1:
            raise not_here(facts, kind, text)
    return [ones[0].id for _, ones in found]


def _judged(
    arguments: argparse.Namespace, file: StackFile, name: str, host: Host, reading: Reading
) -> tuple[Reading, Tree]:
    """The host judged with its settings; and the reading, with what was read for that."""
    stack = stack_options.noted(arguments, file)
    settings = Settings(name, host, *file.guests().guests_on(name), stack, is_whole=file.is_whole)
    tree = planning.planned(settings, planning.PATIENCE_SECONDS, reading.facts)
    return dataclasses.replace(reading, facts=tree.facts), tree


def everything(arguments: argparse.Namespace) -> whole.Whole:
    """The report of all hosts, each read once, and of the guests that the settings give cards.

    :raises HomelabError: the configuration can't be read.
    """
    file = _settings(arguments)
    settings = file.guests()
    parts, notes = list[whole.Part](), list[str]()
    for host_name in file.asked(arguments.host):
        try:
            name, host = file.host(host_name, arguments.identity)
            ids = [lxc.ctid for lxc in settings.containers.values() if lxc.host == name]
            reading = diagnosis.read(host, ids, ["host", *judge.installing(host, settings.containers.values())])
            reading, tree = _judged(arguments, file, name, host, reading)
        except HomelabError as error:
            parts.append(whole.Part(f"hosts.{host_name}", error=error))
            continue
        notes += tree.unread
        parts.append(whole.Part(f"hosts.{name}", host_judge.diagnose(reading, tree)))
        for vm_name, guest in tree.wanted.vms.items():
            of_vm = functools.partial(vm.diagnose, reading, guest.vmid, tree)
            parts.append(_part(f"vms.{vm_name}", tree.told(tree.vms[vm_name][1]), of_vm))
        for lxc_name, lxc in tree.wanted.containers.items():
            of_lxc = functools.partial(container.diagnose, reading, lxc.ctid, tree=tree)
            parts.append(_part(f"containers.{lxc_name}", tree.told(tree.containers[lxc_name][1]), of_lxc))
    notes += [compatibility.load().known_releases(datetime.date.today())] if settings.stacks else []
    return whole.Whole(file.stack, parts, notes)


def _part(place: str, judged: JudgedGuest, judge: Callable[[], Report]) -> whole.Part:
    try:
        return whole.Part(place, judge())
    except HomelabError as error:  # such as a guest that isn't there: the others are judged all the same
        told = judged.findings
        return whole.Part(place, told=told) if told else whole.Part(place, error=error)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = [EVERYTHING, *words]
    arguments = parser().parse_args(words)
    if arguments.kind == LOG:
        print(log.read(arguments))
        return WELL
    try:
        report = everything(arguments) if arguments.kind == EVERYTHING else diagnose(arguments)
    except HomelabError as error:
        if not arguments.json:
            raise
        print(json.dumps(unreadable(arguments.kind, error), indent=2))
        return UNREADABLE
    print(json.dumps(report.values(), indent=2) if arguments.json else report.text(terminal.width(WIDTH)))
    if isinstance(report, whole.Whole) and not report.readable:
        return UNREADABLE
    return WELL if report.well else FINDINGS
