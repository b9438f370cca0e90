"""The hookscript of a VM that may take a card from this host's containers (layers/handover.py).

Changes the VM's option hookscript, where it has none, or ours by a storage that hasn't the script any more.
"""

from __future__ import annotations

from remote_scripts.both.hookscript import Wanted
from remote_scripts.pve import hookscripts
from remote_scripts.pve.hookscripts import HOOKED
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Changed
from remote_scripts.tools.system import System, changes, plans


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` would change.

    :raises Failure: as of `apply`.
    """
    if _lacks_it(system, str(wanted.vmid)):
        system.files.plan_file("new", f"VM {wanted.vmid}'s option hookscript")


@changes
def apply(system: System, wanted: Wanted) -> Changed:
    """:raises Failure: there is no such VM, it has another hookscript, or `qm` doesn't set it."""
    files, vmid, holder = system.files, str(wanted.vmid), wanted.holder
    storage = hookscripts.need_storage(system) if _lacks_it(system, vmid) else None
    # Before it has it: by that it is known that the VM is to have it.
    files.remember(f"{HOOKED}/{vmid}")
    files.note(f"{HOOKED}/{vmid}", f"{holder}\n".encode())
    if storage is not None:
        hookscripts.set_hook(system, vmid, storage)
    return Changed(files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Takes it away, where it still is ours."""
    vmid = str(wanted.vmid)
    # An entry that got another name, or adopts what it had made, is undone under the old one after the new one has
    # applied.
    noted = system.files.line(f"{HOOKED}/{vmid}")
    if noted and noted != wanted.holder:
        system.log.say(f"note: VM {vmid} keeps its hookscript: another entry of the settings wants it now")
        return Changed(False)
    if hookscripts.is_homelabs(hookscripts.named(system, vmid)):
        hookscripts.set_hook(system, vmid, None)
    system.files.remove(f"{HOOKED}/{vmid}")
    return Changed(system.files.changed)


def _lacks_it(system: System, vmid: str) -> bool:
    name = hookscripts.named(system, vmid)
    if hookscripts.is_homelabs(name):
        return not hookscripts.names_hook(system, vmid)
    if name:
        raise Failure(
            f"VM {vmid} with the hookscript that hands it its card",
            f"it has one already: {name}",
            "a VM has one hookscript, and what that one does is not known here",
            f"take it out (`qm set {vmid} --delete hookscript`), or give the VM a card with use: vm; then run `pulumi "
            "up` again",
        )
    return True
