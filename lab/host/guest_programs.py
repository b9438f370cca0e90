"""pveversion, pvesh, pvenode, pvecm, qm, pct and lxc-attach of a lab host; all but the first are the API at a shell (lab.api.commands)."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from .account_programs import current_user
from .node_programs import real
from .program import Failure, UsageError, ask_daemon, logged
from .pve_packages import pve_packages
from .state import HostState

#: What makes a ticket of root@pam with Proxmox VE's own modules. Of other programs with these the lab has what takes a lock of the whole cluster.
TICKET = (
    "-MPVE::AccessControl",
    "-MPVE::Cluster=cfs_read_file",
    "-e",
    r'PVE::AccessControl::check_user_enabled(cfs_read_file("user.cfg"),"root\@pam"); print PVE::AccessControl::assemble_ticket("root\@pam")',
)


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of Proxmox VE's commands."""
    return {"pveversion": _pveversion, "lab-pvedaemon": _pvedaemon}.get(name, _shell)(host, name, arguments)


def preload() -> None:
    """Have what these commands need besides this package: modules, and the API's reference, which takes longer to read than most of them."""
    if (project := str(Path(__file__).parents[2])) not in sys.path:
        sys.path.append(project)
    importlib.import_module("lab.api.commands")
    importlib.import_module("lab.api.reference").reference()


def _pveversion(host: HostState, name: str, arguments: list[str]) -> int:
    kernel = host.read("/proc/sys/kernel/osrelease", "").strip()
    print(f"pve-manager/{pve_packages(host)['pve-manager']}/9d436f37a0ac4172 (running kernel: {kernel})")
    return 0


def _pvedaemon(host: HostState, _name: str, _arguments: list[str]) -> int:
    """Answers a request as pvedaemon; what it begins is done by then."""
    preload()
    from lab.api import hooks
    from lab.api.responses import Api, Request

    works: list[tuple[HostState, Any]] = []
    head, _, body = sys.stdin.read().partition("\r\n\r\n")
    (method, target, _), cookie = head.split(" ", 2), re.search(r"PVEAuthCookie=(\S+)", head)
    path, _, query = target.removeprefix("/api2/json").partition("?")
    asked = Request(method, unquote(path), parse_qs(query or body), unquote(cookie[1]) if cookie else None)
    answer = Api(host.state, lambda host, work: works.append((host, work))).respond(asked)
    for of_host, work in works:
        hooks.drive(of_host, work)
    print(f"HTTP/1.1 {answer.status} {answer.reason}\r\n\r\n{answer.encoded().decode()}", end="")
    return 0


def _heard(argument: str) -> str:
    """An argument as these programs, which Perl is, read it: by the locale. Of C, what isn't ASCII is lost (PVE::JSONSchema, get_options; Encode::Locale)."""
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "")
    return os.fsencode(argument).decode("ascii" if locale in ("C", "POSIX") else "utf-8", "replace")


def _shell(host: HostState, name: str, arguments: list[str]) -> int:
    """qm, pct, pvesh, pvenode and pvecm: the API's operations, done here as root@pam.

    The one place at which this package needs another: what a VM's start asks of a card is written once, in lab.api,
    which uses the standard library alone as well.
    """
    preload()
    arguments = [_heard(argument) for argument in arguments]
    from lab.api.commands import Misused, Shell, Unhandled, exit_status, message, only_reads
    from lab.api.errors import ApiError

    def work() -> int:
        shell = Shell(host.state, lambda: ask_daemon(host, "guests"))
        try:
            if name in ("qm", "pct"):
                shell.guest(name, arguments)
            else:
                getattr(shell, name.replace("-", "_"))(arguments)
        except Misused as error:
            raise UsageError(str(error)) from error
        except ApiError as error:
            if error.status == 501 and not isinstance(error, Unhandled):
                raise UsageError(str(error)) from error
            raise Failure(message(error, shell.usage), exit_status(error)) from error
        return shell.status

    return work() if only_reads(name, arguments) else logged(host, name, arguments, work)


def is_of_proxmox(host: HostState, arguments: list[str]) -> bool:
    """Whether Perl is asked for modules of Proxmox VE, on a system that has them."""
    return any("PVE::" in word for word in arguments) and host.machine.keys().isdisjoint({"guest", "container"})


def make_ticket(host: HostState, arguments: list[str]) -> int:
    """Perl with Proxmox VE's modules: print a ticket of root@pam.

    Raises:
        UsageError: it is another program.
        Failure: no such ticket may be made, or none can be now.
    """
    if tuple(arguments) != TICKET:
        raise UsageError(
            f"of Proxmox VE's modules the lab has what makes a ticket of root@pam, and cfs_lock_file, not {arguments!r}"
        )
    preload()
    from lab.api.auth import ROOT, is_enabled, ticket
    from lab.api.quorum import is_pmxcfs_there

    if current_user() != "root":
        why = "pve cluster filesystem not online."
        raise Failure(f"ipcc_send_rec[1] failed: Unknown error -1\ncfs-lock 'authkey' error: {why}", 13)
    if not is_pmxcfs_there(host):
        raise Failure("Connection refused", 111)  # what looks the user up finds no pmxcfs
    if not is_enabled(host, ROOT):
        raise Failure(f"user '{ROOT}' is disabled", 255)
    print(ticket(host, ROOT), end="")
    return 0


def modules(pve: Path, *, quorate: bool) -> dict[str, str]:
    """What this machine's Perl needs in its environment to have the lab's few calls of Proxmox VE's modules.

    Args:
        pve: the folder that is /etc/pve.
        quorate: whether the node has a quorum.
    """
    return {"PERL5LIB": str(Path(__file__).with_name("perl")), "LAB_PVE": str(pve), "LAB_QUORATE": str(int(quorate))}


def by_perl(host: HostState, arguments: list[str]) -> int:
    """Perl with Proxmox VE's modules, for what it does under a lock of the cluster, or of a container's configuration."""
    preload()
    from lab.api.quorum import Members

    os.environ.update(modules(host.rooted("/etc/pve"), quorate=Members(host).quorate))
    return logged(host, "perl", arguments, lambda: real("perl", arguments))


def judge_guests(host: HostState) -> int:
    """Perl with nearly all of Proxmox VE: what the API's schema, the storages and the bridges say against new guests."""
    preload()
    from lab.api.errors import Died
    from lab.api.options import check_all
    from lab.api.reference import reference
    from lab.api.storage import Storages

    def of_volume(volume: str, content: str) -> str:
        name, colon, rest = volume.partition(":")
        if not colon:
            return "" if volume in ("none", "cdrom") or volume.startswith("/") else f"no storage in '{volume}'"
        try:
            takes = Storages(host).get(name).content
        except Died as error:
            return error.text
        made = re.fullmatch(r"\d+(?:\.\d+)?|cloudinit", rest)
        return f"storage '{name}' has no content '{content}'" if made and content not in takes else ""

    def of_option(kind: str, key: str, value: str) -> str:
        stem, properties = re.sub(r"\d+$", "", key), dict(part.partition("=")[::2] for part in value.split(","))
        if stem == "net" and (bridge := properties.get("bridge")):
            there = host.rooted(f"/sys/class/net/{bridge}").exists()
            return "" if there else f"bridge '{bridge}' does not exist"
        volume = properties.get("file") or properties.get("volume") or value.partition(",")[0]
        if kind == "qemu" and stem in ("ide", "sata", "scsi", "virtio", "efidisk", "tpmstate"):
            return of_volume(volume, "images")
        return of_volume(volume, "rootdir") if kind == "lxc" and stem in ("rootfs", "mp") else ""

    wanted, found = json.load(sys.stdin), {}
    for section, kind in (("vms", "qemu"), ("containers", "lxc")):
        for name, options in wanted[section].items():
            operation = reference().operations["POST", f"/nodes/{{node}}/{kind}"]
            errors = check_all(operation.parameters, {**options, "node": "localhost"})
            for key, value in options.items():
                if key not in errors and (mistake := of_option(kind, key, value)):
                    errors[key] = mistake
            found[name] = errors
    print(json.dumps(found, sort_keys=True))
    return 0
