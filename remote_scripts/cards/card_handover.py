"""One card that is handed over: it goes to a VM that starts, and comes back; what was cut short is brought to an end.

A run may be killed, or lose its power, at any call. What a step does is recorded before it is done, a step looks at
what a function has now, and so each can be done again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from remote_scripts.cards import card_users
from remote_scripts.cards.handed_over import RecordedCard, RefusedError
from remote_scripts.cards.handover_containers import CardContainers
from remote_scripts.cards.handover_driver import CardDriver
from remote_scripts.guests.start_conditions import Start, why_not
from remote_scripts.notes import handover, owed
from remote_scripts.notes.card import Card
from remote_scripts.pve import guests
from remote_scripts.pve.container_conf import ContainerConf
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.processes import ScanError, processes_using
from remote_scripts.tools.system import System

#: How long what came to nothing is tried again each time the timer comes, and what then lies between two tries: each
#: start that fails is a task in Proxmox VE's log.
RETRY_SECONDS, PAUSE_SECONDS = 1800, 600
#: The longest time between two visits of the timer's.
_TIMER_SECONDS = 120


class CardHandover:
    """The handover of one card. Its caller holds the host's lock for every change.

    :raises Failure: the card's record can't be read.
    """

    def __init__(self, system: System, card: Card) -> None:
        self._system = system
        self.card = RecordedCard(system, card)
        self._driver = CardDriver(self.card)
        self.containers = CardContainers(self.card, self._driver)

    def refusal(self, vmid: str, found: str, next: str) -> Failure:
        """What a VM's start ends with."""
        return Failure(
            f"gpus.{self.card.name} for VM {vmid}, which starts",
            found,
            "a card that is still in use makes NVIDIA's driver wait for ever, so it is taken only when nothing uses it",
            next,
        )

    # Before a VM's start.

    def need_startable(self, vmid: str) -> None:
        """:raises Failure: something stands against the VM's start, and the card is yet to be taken for it."""
        record = self.card.record
        has_it = record.vm == vmid and record.state in ("VM", "RETURNING")
        # By other configuration, there is nothing to hand over.
        is_bound = record.state in ("HOST", "HELD") and self.card.is_on_vfio()
        if has_it or is_bound or not card_users.names_card(self.card, vmid):
            return
        if found := why_not(Start(self._system, VM, int(vmid)), "hook"):
            self.card.say(f"VM {vmid} doesn't get it: {found}")
            raise self.refusal(vmid, found, "nothing was changed; start the VM again when that has ended")

    # To a VM.

    def take(self, vmid: str) -> None:
        """The card goes to a VM that starts.

        :raises Failure: it didn't work: everything is as before, or the card is HELD, STUCK or DEAD.
        """
        if self._is_kept(vmid):
            return
        self.finish()
        record = self.card.record
        if record.state == "VM":
            raise self.refusal(vmid, f"VM {record.vm} has it since {record.at}", "shut that VM down first")
        if record.state not in ("HOST", "HELD"):
            found = f"{record.state}: {record.why or 'a step of it is still at work'}"
            raise self.refusal(vmid, found, "start the VM again when that has ended (STUCK, DEAD: see homelab doctor)")
        # Bound at boot by other configuration, such as before `up` has made another use of it.
        if self.card.is_on_vfio():
            self.card.say(f"VM {vmid} starts, and the card is on vfio-pci already, not by this program: it stays there")
            return
        # Once more: a run may have begun since the first look.
        self.need_startable(vmid)
        try:
            users = card_users.need_possible(self.card)
            card_users.need_unused(self.card, users)
            persistence = self._driver.persistence()
        except RefusedError as error:
            self.card.rest("HELD", f"VM {vmid} didn't get it: {error}")
            next = "nothing was changed; mend that, and start the VM again"
            raise self.refusal(vmid, str(error), next) from error
        if users:
            owed.noted(self._system)  # what can't be read takes no container, and nothing was changed yet
        try:
            self._drain(vmid, users, persistence)
            card_users.need_unused(self.card)
            self._driver.bind_to_vfio()
            self.card.need_saved(state="VM", why="")
        except RefusedError as error:
            if self.card.record.state == "STUCK":
                next = "reboot the host when it suits you; its containers stay off until then"
                raise self.refusal(vmid, self.card.record.why, next) from error
            self.return_card(f"VM {vmid} didn't get it: {error}")
            next = (
                f"what was stopped is started again ({handover.STORY}); end what has the card, and start the VM again"
            )
            raise self.refusal(vmid, str(error), next) from error
        self.card.say(f"VM {vmid} has it")

    def _is_kept(self, vmid: str) -> bool:
        """The VM that had it last starts again (`qm reboot`, or before the way back has begun): it is all there
        already.
        """
        record = self.card.record
        if record.state not in ("VM", "RETURNING") or record.vm != vmid or record.boot != boot_id(self._system):
            return False
        power = guests.power_of(self._system, "qm", vmid)
        if power == "unknown" and record.state == "VM":
            found = f"it isn't known whether VM {vmid} runs (`qm status {vmid}`)"
            raise self.refusal(vmid, found, "start the VM again")
        if power in ("on", "unknown"):
            return False
        is_there = self.card.is_on_vfio() and self.card.is_alive() and not self._driver.is_active()
        if is_there and self.card.save(state="VM", why=""):
            self.card.say(f"VM {vmid} keeps it")
            return True
        # This start holds the VM's lock, by which `finish` would take it for one that goes on.
        record.state = "RETURNING"
        return False

    def _drain(self, vmid: str, users: Mapping[str, ContainerConf], persistence: Mapping[str, str]) -> None:
        self.card.need_saved(state="DRAINING", vm=vmid, why="", modules=(), d3cold=(), **persistence)
        shut = f"; containers {' '.join(users)} are shut down for it" if users else ""
        self.card.say(f"VM {vmid} starts and gets it{shut}")
        for ctid, conf in users.items():
            self.containers.shut_down(ctid, conf)
        self._driver.drain()

    # Back to the host.

    def return_card(self, why: str = "") -> None:
        """The card comes back to the host, from wherever it was left, and its containers are started again; else its
        record says what it is.

        :param why: a VM didn't get it.
        """
        # After that state all of them have gone off, and nobody need say so.
        if self.card.record.state == "DRAINING" and (ctid := self.containers.shutting_down()):
            self.card.say(f"container {ctid} is still going off: it is started after that")
            return
        if not self._driver.is_bound() and not self._take_back(why):
            return
        attach = self._driver.attach()
        if not attach.is_done:
            self.card.say(attach.output)
        # A driver that took the card by itself, as its module was loaded, hasn't its other functions yet.
        if attach.is_done or not (attach.waits or self.card.driver == "nvidia"):
            self._restore_users(why)

    def _take_back(self, why: str) -> bool:
        """Takes it from vfio-pci; whether that is done."""
        if not self.card.is_alive():
            self.card.rest(
                "DEAD",
                f"its configuration space doesn't read as it should after VM {self.card.record.vm}: no driver is "
                "let near it, and its containers stay off",
            )
            return False
        if not self._has_vm_let_go():
            return False
        # HELD, it has been away for as long as that.
        if self.card.record.state != "HELD" and not self.card.save(state="RETURNING", why=why):
            self.card.say("its state can't be noted: the disk is full")
        return self._driver.release()

    def _has_vm_let_go(self) -> bool:
        """QEMU must have let go: to take a device from vfio-pci while it has it waits for its end."""
        if not (nodes := self.card.group_nodes()):
            return True
        try:
            devices = [self._system.files.at(node).stat().st_rdev for node in nodes]
            numbers = {f"{os.major(device):x}:{os.minor(device):x}" for device in devices}
            processes = processes_using(self._system, nodes[0], numbers, self.card.mapped_as())
        except (ScanError, OSError) as error:
            self.card.say(f"it stays where it is for now: {error}")
            return False
        if processes:
            why = f"it stays where it is for now: {' '.join(processes)} still has it"
            if self.card.record.state == "VM":
                self.card.rest("VM", why)  # maybe for days: it is said once
            else:
                self.card.say(why)
        return not processes

    def _restore_users(self, why: str) -> None:
        """The card is with its driver: once that answers for it, its containers have it as before."""
        self.card.record.owed = True
        query = self._driver.query()
        if not query.is_done:
            found = (
                f"NVIDIA's driver doesn't get along with it (driver: {self.card.driver}; nvidia-smi: "
                f"{query.output or 'no answer'}); its containers stay off"
            )
            self.card.rest("HELD", f"{why}; {found} until it answers".removeprefix("; "))
            return
        self.containers.restore()
        if why:
            self.card.rest("HELD", why)
        else:
            self.card.say("it is with the host again")
            self.card.remove()

    # What was cut short.

    def finish(self) -> None:
        """Brings to an end what was cut short: after a hook or a service that was killed, a start that failed (for
        which Proxmox VE calls no hook), a reboot of the host. What is at rest, and a VM that runs, stays.
        """
        record = self.card.record
        if record.state != "HOST" and record.boot != boot_id(self._system):
            # The drivers have taken everything anew. Which containers run, onboot decides, and what is owed to them.
            self.card.say(f"the host has been started since (it was {record.state}): the card is with it")
            self.card.remove()
            return
        if record.state in ("HOST", "HELD"):
            return
        # A VM that runs has its card for days.
        if record.state == "VM":
            why = card_users.why_vm_keeps(self.card, record)
            if why is not None:
                self.card.rest("VM", why)
                return
        if self._driver.is_active():
            # A write that waits in the kernel may be of a caller that was killed.
            if record.state != "STUCK" and record.age >= _TIMER_SECONDS:
                self.card.mark_stuck("a step on its way")
            return
        if record.state in ("DRAINING", "DETACHED"):
            self.card.say(f"the way to VM {record.vm} was cut short")
            self.return_card()
        elif record.state == "STUCK":
            self.return_card("what waited in the kernel has come to an end")
        else:
            self.return_card(record.why if record.state == "RETURNING" else "")

    def retry(self) -> None:
        """Tries again what came to nothing: a driver that didn't answer. A card that a user has given to another driver
        since stays there.
        """
        record = self.card.record
        if record.state != "HELD" or not record.owed or record.boot != boot_id(self._system):
            return
        if record.age >= RETRY_SECONDS and record.age % PAUSE_SECONDS >= _TIMER_SECONDS:
            return
        is_ours = self.card.driver in ("", "nvidia") and self.card.has_expected_ids()
        if is_ours and not self._driver.is_active():
            self.return_card()
