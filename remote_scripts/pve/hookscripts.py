"""The hookscript by which VMs get a card of containers: where it lies, and which VMs name it.

/var/lib/homelab/handover-hooks/VMID says that a VM is to have it, and which entry of the settings wants it;
/var/lib/homelab/handover-snippets what the storage local took before it was to take snippets, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from remote_scripts import installed
from remote_scripts.pve import guest_conf, pmxcfs
from remote_scripts.pve.sections import sections
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

LAYER = "handover"
FILE = "homelab-handover.sh"
HOOKED = f"{HOME}/handover-hooks"
STORAGES = "/etc/pve/storage.cfg"
_SWITCHED = f"{HOME}/handover-snippets"
_SET_SECONDS = 60.0
# For the lock 10 s, and 60 s that Proxmox VE gives to who has it.
_WRITE_SECONDS = 90.0
# The kinds of content that the storage local takes.
_CONTENT = re.compile(r"^dir:\s*local\s*\n(?:[ \t]+.*\n)*?[ \t]+content[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Storage:
    """A storage that is a folder of this host's alone and takes hookscripts. `folder`: for these."""

    name: str
    folder: str

    @property
    def script(self) -> str:
        """Where our hookscript lies, or is to."""
        return f"{self.folder}/{FILE}"

    @property
    def volume(self) -> str:
        """By which a VM names it."""
        return f"{self.name}:snippets/{FILE}"


def storages(system: System) -> list[Storage]:
    """The one where our script lies comes first, then local. One that is for other nodes of the cluster has no volume
    here, wherever its folder lies.

    :raises Failure: they can't be read.
    """
    own = system.files.of_layer(LAYER)
    taking = [storage for storage, content in _folders(system) if "snippets" in content.split(",")]
    return sorted(taking, key=lambda storage: (storage.script not in own, storage.name != "local"))


def _folders(system: System) -> Iterator[tuple[Storage, str]]:
    """The storages that are folders of this node's alone, each with the kinds of its content, as its option has
    them."""
    node = pmxcfs.this_node(system).name
    for section in sections(system.files.need_text(STORAGES)):
        options = section.options
        nodes = re.split(r"[\s;,]+", options["nodes"]) if "nodes" in options else [node]
        is_off = any(options.get(key, "0") != "0" for key in ("shared", "disable"))
        if section.kind == "dir" and not is_off and node in nodes and (path := options.get("path", "").rstrip("/")):
            yield Storage(section.name, f"{path}/snippets"), options.get("content", "")


def need_storage(system: System) -> Storage:
    """The first of these; where there is none, local, which takes them after `switch_on`.

    :raises Failure: local can't, either: it isn't there, is for other nodes, or has none of its kinds of content named.
    """
    locals_ = [storage for storage, content in _folders(system) if storage.name == "local" and content]
    for storage in [*storages(system), *locals_]:
        return storage
    # Without the option, its kinds are Proxmox VE's default.
    kinds = {folder.name: f"{content},snippets" for folder, content in _folders(system) if content}
    ways = [f" (on the host: `pvesm set {name} --content {content}`)" for name, content in kinds.items()]
    raise Failure(
        "a storage of this host (a folder) that takes snippets",
        f"none takes snippets, by {STORAGES}",
        "a VM names the script that hands it its card by such a storage",
        f"add snippets to the content of one{''.join(ways[:1])}, or in the web "
        "interface: Datacenter -> Storage -> local -> Edit -> Content; then run `pulumi up` again",
    )


def switch_on(system: System) -> None:
    """Has local take snippets where no storage does; what it took is noted before.

    :raises Failure: it can't be changed.
    """
    if storages(system):
        return
    if system.files.planning:
        system.files.plan_file("changed", f"{STORAGES}: the storage local takes snippets")
        return
    found = _CONTENT.search(system.files.need_text(STORAGES))
    before = found[1] if found else ""
    system.files.remember(_SWITCHED)
    system.files.note(_SWITCHED, before.encode())
    _set_content(system, before, f"{before},snippets")


def switch_off(system: System) -> None:
    """Has local take what it took before `switch_on`, unless a guest of the cluster names a script there. What somebody
    has added since stays.

    :raises Failure: it can't be changed, or a guest's configuration can't be read.
    """
    if not (before := system.files.line(_SWITCHED)):
        return
    if system.files.planning:
        system.files.plan_file("given back", f"{STORAGES}: the storage local takes snippets no more")
        return
    paths = [f"{pmxcfs.NODES}/{node}/{kind}/{guest}.conf" for node, kind, guest in pmxcfs.guests(system)]
    if using := [path for path in paths if "local:snippets/" in system.files.need_text(path)]:
        system.log.say(f"note: the storage local goes on to take snippets: {using[0]} names one there")
    else:
        found = _CONTENT.search(system.files.need_text(STORAGES))
        now = _kinds(found[1]) if found else []
        left = ",".join(kind for kind in now if kind != "snippets")
        if left and "snippets" in now:
            _set_content(system, ",".join(now), before if {*_kinds(left)} == {*_kinds(before)} else left)
    system.files.remove(_SWITCHED)


def _kinds(content: str) -> list[str]:
    return re.split(r"[\s,]+", content.strip())


def _set_content(system: System, expected: str, wanted: str) -> None:
    """Changes what local takes, where that is still as expected. Proxmox VE writes the kinds in any order."""
    content = system.files.need(STORAGES) or b""
    text = content.decode("utf-8", "surrogateescape")
    found = _CONTENT.search(text)
    if found is None or {*_kinds(found[1])} != {*_kinds(expected)}:
        return
    new, read = text[: found.start(1)] + wanted + text[found.end(1) :], hashlib.sha256(content).hexdigest()
    words = ("-e", installed.TEXTS["cluster_write"], str(system.files.at(STORAGES)), read)
    # By standard input: every user of this host may read a program's arguments.
    done = system.run.ask("perl", *words, stdin=new.encode("utf-8", "surrogateescape"), seconds=_WRITE_SECONDS)
    said = done.all_text.rpartition("\n")[2]  # before it each second: trying to acquire cfs lock …
    if done.status != 0:
        raise Failure(
            f"the storage local with the content {wanted}",
            f"{STORAGES} can't be written: {said or 'no answer'}",
            "a VM names the script that hands it its card by a storage that takes snippets",
            f"`pvesm set local --content {wanted}` on the host, then run the same again",
        )
    system.files.changed = True


def named(system: System, vmid: str) -> str:
    """The hookscript that a VM's configuration names.

    :raises Failure: it can't be read.
    """
    return named_of(guest_conf.lines_of_vm(system, vmid))


def named_of(lines: Iterable[str]) -> str:
    """The same of a configuration's lines; of several the last one counts."""
    return guest_conf.option_of(lines, "hookscript").rpartition("\n")[2]


def is_homelabs(name: str) -> bool:
    """Whether that is our hookscript, by whichever storage."""
    return name.endswith(f":snippets/{FILE}")


def names_hook(system: System, vmid: str) -> bool:
    """Whether a VM names ours, by a storage that has it: one whose hookscript isn't found doesn't start.

    :raises Failure: its configuration can't be read.
    """
    name = named(system, vmid)
    return any(name == storage.volume and system.files.exists(storage.script) for storage in storages(system))


def set_hook(system: System, vmid: str, storage: Storage | None) -> None:
    """Has the VM name it, by this storage; None: no more.

    :raises Failure: `qm` doesn't do it.
    """
    words = ("--hookscript", storage.volume) if storage else ("--delete", "hookscript")
    done = system.run.do("qm", "set", vmid, *words, seconds=_SET_SECONDS)
    if done.status != 0:
        raise Failure(
            f"VM {vmid} with the hookscript {storage.volume}" if storage else f"VM {vmid} without homelab's hookscript",
            done.text or f"qm set ended with status {done.status}",
            "without it the VM would not get its card from the containers; with one that is gone it doesn't start",
            "correct what qm says, then run the same again (`pulumi up --refresh` writes a script that is gone)",
        )
    system.files.changed = True


def here(system: System) -> list[str]:
    """The VMs of this node that name ours; those that aren't the settings', too: a clone, or one that was restored, has
    brought the name along.

    :raises Failure: a configuration can't be read.
    """
    return [vmid for vmid in pmxcfs.guest_ids(system, guest_conf.VMS) if is_homelabs(named(system, vmid))]


def restore_hook(system: System, vmid: str) -> str:
    """Gives a VM its hookscript again, if it has none: after a snapshot's rollback or a restored backup, or where a
    person has deleted it. Without it, the VM's next start would take the card from its driver, which may then wait for
    ever. What was done, in words; empty: nothing.

    :raises Failure: its configuration can't be read.
    """
    lines = guest_conf.lines_of_vm(system, vmid) if system.files.exists(f"{HOOKED}/{vmid}") else []
    if not lines or named_of(lines) or guest_conf.option_of(lines, "lock"):
        return ""
    storage = next((storage for storage in storages(system) if system.files.exists(storage.script)), None)
    if storage is None:
        return ""
    lost = f"VM {vmid} had lost its hookscript (a rollback, a restored backup, or it was deleted by hand)"
    try:
        set_hook(system, vmid, storage)
    except Failure as failure:
        return f"{lost}, and can't be given it again: {failure.found}"
    return (
        f"{lost}: it names it again, since its start without it can hang NVIDIA's driver. To be rid of it for good, "
        "take the card out of the VM in the settings and run `pulumi up`"
    )
