"""`homelab doctor log vms.gaming`: what update-initramfs, apt, DKMS and other long commands said on a host, in a VM
or in a container; and what this program recognises in that. `log -`: in what is typed or piped in.
"""

from __future__ import annotations

import argparse
import sys

from homelab.cli import stack_options
from homelab.doctor import logs
from homelab.errors import HomelabError
from homelab.host.named import meant, named
from homelab.remote import ssh
from homelab.settings import Container, Host, Vm
from homelab.settings.stack_file import StackFile
from homelab.text import clean
from remote_scripts.both import read_log
from remote_scripts.both.symptoms import Context


def read(arguments: argparse.Namespace) -> str:
    """The end of a system's log, safe to show, with what is recognised in it.

    :raises HomelabError: there is no such system, or it can't be read.
    """
    if arguments.system == "-":
        text = clean(sys.stdin.read())
        return logs.explained(text, Context()) or f"{logs.UNKNOWN}; its last lines: {logs.last_lines(text)}"
    file = stack_options.read(arguments)
    kind, _, name = (arguments.system or "hosts.").partition(".")
    if kind == "hosts":
        (name, host), of = file.host(name or None, arguments.identity), ""
        context = Context(f"hosts.{name}", "host")
    else:
        host, of = of_guest(file, arguments.system, arguments.identity)
        context = Context(arguments.system, "lxc" if of else "vm")
    wanted = read_log.Wanted(lines=arguments.lines, of=of)
    nothing = "this program has run no long command there since its last boot, or everything was undone"
    text = clean(str(ssh.Session(host).ask("read", "read_log", wanted)["log"])) or nothing
    # Of the last command alone: headings begin with the year, what is below them with blanks.
    return "\n\n".join(filter(None, [text, logs.explained(text[text.rfind("\n20") + 1 :], context)]))


def of_guest(file: StackFile, system: str, identity: str | None) -> tuple[Host, str]:
    """What SSH connects to for a guest's log, and what of it is asked; empty: all of a VM.

    :param identity: the private key to log in with instead of the settings' login.
    :raises HomelabError: there is no such guest, or nothing says how to reach it.
    """
    settings = file.guests()
    for one in meant(system, named(settings.vms, settings.containers)):
        system = f"{'vms' if one.kind == 'vm' else 'containers'}.{one.name}"
    vms = {name: vm for name, vm in settings.vms.items() if vm.ssh and vm.static_address not in (None, "agent")}
    guests: dict[str, Vm | Container] = {f"vms.{name}": vm for name, vm in vms.items()}
    guests |= {f"containers.{name}": container for name, container in settings.containers.items()}
    if system not in guests:
        systems = [*(f"hosts.{name}" for name in file.host_names()), *guests]
        raise HomelabError(
            wanted=f"the log of {system}",
            found=f"systems in {file.path} with a login: {', '.join(systems)}",
            why="each log is kept on its own system; a VM is reached by its address and ssh in the settings, not by "
            "its guest agent",
            next="name one of these, or set address and ssh of the VM",
        )
    guest = guests[system]
    host = file.host(guest.host, identity)[1]
    if isinstance(guest, Container):
        return host, f"container {guest.ctid}"
    login = guest.ssh and guest.ssh.by_key(identity)
    return host.model_copy(update={"ssh": login, "address": guest.static_address}), ""
