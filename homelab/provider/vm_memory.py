"""That a VM ran when this program shut it down, and is to run again: noted on its host before that (`power/<vmid>`),
until it runs again.

Whoever has switched a VM off since wants it off. So a note counts only where all of this is certain, and is forgotten
where not: it is of this very VM, no older than an hour, of this boot of this node, no start of the VM on this node has
ended well since, and Proxmox VE has no shutdown of it since but for the tasks that are noted here: the owner's are
root@pam's as well as this program's. But for the VM's identity that is decided on the host, for containers as well
(remote_scripts/shared/guest_tasks.py). `Machine.converge` asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from homelab.errors import HomelabError
from homelab.remote import ledger, ssh
from homelab.text import tell
from homelab.vm.config import same_vm
from remote_scripts.layers import vm_owed, vm_starts
from remote_scripts.tools.plain import of_plain

if TYPE_CHECKING:
    from homelab.provider.base import StackTexts
    from homelab.remote.ssh import Session
    from homelab.settings import Host


def note_that_it_ran(
    session: Session,
    vmid: int,
    guest: str,
    identity: str,
    *,
    off: bool,
    tasks: Sequence[str] = (),
    at: int | None = None,
    seen: vm_starts.Answer | None = None,
) -> None:
    """Notes that the VM is to run again.

    :param guest: its name in the settings.
    :param identity: tells it from another VM (vm.config.identity).
    :param off: is it off already, by this program? Else it is shut down next.
    :param tasks: UPIDs of this program's that shut it down.
    :param at: when it ran, in seconds since 1970 by the node's clock; None: when `seen` was.
    :param seen: the host, as it was asked; None: it is asked now.
    """
    host = seen or starts(session, vmid, 0)
    about: dict[str, object] = {"identity": identity, "guest": guest, "at": host.now if at is None else at}
    ledger.note(session, ledger.of_power(vmid), {**about, "boot": host.boot, "off": off, "tasks": [*tasks]})


def is_owed_since(session: Session, vmid: int, guest: str, identity: Callable[[], str]) -> int | None:
    """When it was noted that the VM is to run again, in seconds since 1970, if that counts; a note that doesn't is
    forgotten.

    :param guest: as of `note_that_it_ran`.
    :param identity: as of `note_that_it_ran`.
    :raises HomelabError: as `Session.run`.
    """
    noted = ledger.noted(session, ledger.of_power(vmid))
    if noted is None:
        return None
    at = int(noted["at"])
    if same_vm(str(noted["identity"]), identity()):
        boot, off, tasks = str(noted["boot"]), noted["off"] is True, tuple(map(str, noted["tasks"]))
        owed = vm_owed.Wanted(vmid=vmid, at=at, boot=boot, tasks=tasks, off=off)
        why = str(session.ask("read", "vm_owed", owed)["why"])
    else:
        why = "that this is still the same VM isn't certain"
    if why:
        tell(
            f"{guest}: VM {vmid} ran when an earlier run was to shut it down; {why}: whether it runs is left to you, "
            f"and vms.{guest}.power"
        )
        ledger.forget(session, ledger.of_power(vmid))
        return None
    return at


def taken_along(stack: StackTexts, left: str, session: Session, vmid: int, guest: str, identity: str) -> None:
    """Takes along what counts on the host that the VM has left, unless it was started here since.

    :param left: in the settings. One that doesn't answer can't say.
    :param session: with the host where it is now.
    :param guest: as of `note_that_it_ran`.
    :param identity: as of `note_that_it_ran`.
    """
    try:
        at = is_owed_since(ssh.Session(stack.host(left)), vmid, guest, lambda: identity)
    except HomelabError:
        return
    if at is not None and not starts(session, vmid, at + 1).started:
        note_that_it_ran(session, vmid, guest, identity, off=True, at=at)


def starts(session: Session, vmid: int, since: int) -> vm_starts.Answer:
    """What a host has of the VM's starts.

    :param since: in seconds since 1970; an earlier start doesn't count.
    :raises HomelabError: as `Session.ask`.
    """
    wanted = vm_starts.Wanted(vmid=vmid, since=since)
    return of_plain(vm_starts.Answer, session.ask("read", "vm_starts", wanted))


class VmMemory:
    """The same for a VM that is being changed, as `Machine` asks for it. `here`: is the VM on the node of that host?
    Elsewhere, nothing of it is certain.
    """

    def __init__(self, host: Host, vmid: int, guest: str, *, here: bool) -> None:
        self._host, self._vmid, self._guest, self._here = host, vmid, guest, here
        # The host at the first of the notes, which all say that it ran then.
        self._seen: vm_starts.Answer | None = None

    def keep(self, identity: str, tasks: Sequence[str] = ()) -> None:
        """See Memory."""
        if self._here:
            session = ssh.Session(self._host)
            self._seen = self._seen or starts(session, self._vmid, 0)
            note_that_it_ran(session, self._vmid, self._guest, identity, off=False, tasks=tasks, seen=self._seen)

    def recalls(self, identity: Callable[[], str]) -> bool:
        """See Memory."""
        session = ssh.Session(self._host)
        return self._here and is_owed_since(session, self._vmid, self._guest, identity) is not None

    def forget(self) -> None:
        """See Memory."""
        if self._here:
            try:
                ledger.forget(ssh.Session(self._host), ledger.of_power(self._vmid))
            except HomelabError as error:  # its start, which is among the node's tasks, says the same
                tell(
                    f"{self._guest}: the note on {self._host.address} that VM {self._vmid} ran couldn't be taken "
                    f"away, which does no harm: {error.found}"
                )
