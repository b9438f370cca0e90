"""`homelab log vms.gaming`: what update-initramfs, apt, DKMS and other long commands said on a host, in a VM
or in a container.

Reads over SSH (a container through its host), and changes nothing. Exit status: 0; 2, it couldn't be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from homelab.cli import stack_options
from homelab.cli.whereabouts import of_guest
from homelab.errors import HomelabError
from homelab.remote import ssh
from homelab.text import clean
from remote_scripts.layers import read_log

WELL = 0


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
    if kind == "hosts":
        host, ctid = file.host(name or None, arguments.identity)[1], 0
    else:
        settings = file.guests()
        systems = [
            *(f"hosts.{host_name}" for host_name in file.host_names()),
            *(f"vms.{vm_name}" for vm_name in settings.vms),
            *(f"containers.{container_name}" for container_name in settings.containers),
        ]
        if arguments.system not in systems:
            raise HomelabError(
                wanted=f"the log of {arguments.system}",
                found=f"systems in {file.path}: {', '.join(systems) or 'none'}",
                why="each log is kept on its own system, which must be in the settings",
                next="name one of these",
            )
        host, ctid = of_guest(file, settings, arguments.system, arguments.identity)
    wanted = read_log.Wanted(lines=arguments.lines, of=f"container {ctid}" if ctid else "")
    return str(ssh.Session(host).ask("read", "read_log", wanted)["log"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    text = read(parser().parse_args(argv))
    print(clean(text) or "this program has run no long command there since its last boot, or everything was undone")
    return WELL
