"""`homelab doctor log vms.gaming`: what update-initramfs, apt, DKMS and other long commands said on a host, in a VM
or in a container.
"""

from __future__ import annotations

import argparse

from homelab.cli import stack_options
from homelab.cli.whereabouts import named, of_guest
from homelab.errors import HomelabError
from homelab.host.named import meant
from homelab.remote import ssh
from homelab.text import clean
from remote_scripts.both import read_log


def read(arguments: argparse.Namespace) -> str:
    """The end of a system's log, safe to show.

    :raises HomelabError: there is no such system, or it can't be read.
    """
    file = stack_options.read(arguments)
    kind, _, name = (arguments.system or "hosts.").partition(".")
    if kind == "hosts":
        host, ctid = file.host(name or None, arguments.identity)[1], 0
    else:
        settings, system = file.guests(), arguments.system
        for guest in meant(system, named(settings.vms, settings.containers)):
            system = f"{'vms' if guest.kind == 'vm' else 'containers'}.{guest.name}"
        systems = [
            *(f"hosts.{host_name}" for host_name in file.host_names()),
            *(f"vms.{vm_name}" for vm_name in settings.vms),
            *(f"containers.{container_name}" for container_name in settings.containers),
        ]
        if system not in systems:
            raise HomelabError(
                wanted=f"the log of {system}",
                found=f"systems in {file.path}: {', '.join(systems) or 'none'}",
                why="each log is kept on its own system, which must be in the settings",
                next="name one of these",
            )
        host, ctid = of_guest(file, settings, system, arguments.identity)
    wanted = read_log.Wanted(lines=arguments.lines, of=f"container {ctid}" if ctid else "")
    text = clean(str(ssh.Session(host).ask("read", "read_log", wanted)["log"]))
    return text or "this program has run no long command there since its last boot, or everything was undone"
