"""`homelab log vms.gaming`: what update-initramfs, apt, DKMS and other long commands said on a host, in a VM
or in a container.

Reads over SSH (a container through its host), and changes nothing. Exit status: 0; 2, it couldn't be read.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from homelab.cli import stack_options
from homelab.cli.whereabouts import host_of
from homelab.errors import HomelabError
from homelab.remote import ssh
from homelab.settings import Host
from homelab.text import clean
from remote_scripts.layers import read_log

WELL, UNREADABLE = 0, 2


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab log",
        description="Shows what long commands printed: update-initramfs, update-grub, apt, DKMS, NVIDIA's installer.",
    )
    parser.add_argument("system", nargs="?", help="hosts.NAME, vms.NAME or containers.NAME (default: the only host)")
    stack_options.add(parser)
    parser.add_argument("--identity", metavar="FILE", help="log in to the host with this private key")
    parser.add_argument("--lines", type=int, default=200, help="how many lines from the end (default: 200)")
    return parser


def read(arguments: argparse.Namespace) -> str:
    """The end of a system's log.

    :raises HomelabError: there is no such system, or it can't be read.
    """
    file = stack_options.read(arguments)
    kind, _, name = (arguments.system or "hosts.").partition(".")
    ctid = None
    if kind == "hosts":
        _, host = file.host(name or None, arguments.identity)
    else:
        guests = file.guests()
        host_names = {f"vms.{vm_name}": guests.candidates(vm)[0] for vm_name, vm in guests.vms.items()}
        host_names |= {
            f"containers.{container_name}": guests.candidates(container)[0]
            for container_name, container in guests.containers.items()
        }
        if arguments.system not in host_names:
            raise HomelabError(
                wanted=f"the log of {arguments.system}",
                found=f"systems in {file.path}: "
                f"{', '.join([*(f'hosts.{host_name}' for host_name in file.host_names()), *host_names]) or 'none'}",
                why="a log is on the system that it is about",
                next="name one of these",
            )
        if kind == "containers":
            host = host_of(file, guests, guests.containers[name], arguments.identity)
            ctid = guests.containers[name].ctid
        else:
            _, host = file.host(host_names[arguments.system], arguments.identity)
            vm = guests.vms[name]
            if vm.static_address in (None, "agent"):
                raise HomelabError(
                    wanted=f"the log of {arguments.system}",
                    found=f"vms.{name}.address is {vm.static_address or 'not set'}",
                    why="this command asks the guest itself, and no guest agent",
                    next=f"see /run/homelab/steps in VM {vm.vmid}, or set vms.{name}.address",
                )
            host = host.model_copy(update={"ssh": vm.ssh, "address": vm.static_address})
    return asyncio.run(_read(host, arguments.lines, ctid))


async def _read(host: Host, lines: int, ctid: int | None) -> str:
    wanted = read_log.Wanted(lines=lines, of=f"container {ctid}" if ctid else "")
    async with ssh.connect(host) as session:
        return str((await session.ask("read", "read_log", wanted))["log"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        text = read(parser().parse_args(argv))
    except HomelabError as error:
        print(error, file=sys.stderr)
        return UNREADABLE
    print(clean(text) or "this program has run no long command there since its last boot, or everything was undone")
    return WELL
