"""`homelab switch CARD --to VM|containers`: hands a shared card to a VM, by starting it, or back to the
containers, by shutting the VM down.

What is done is the host's (ADR 30): this starts or shuts down the VM there, as Proxmox VE's own buttons do, and tells
the story as it is written. With `--rehearse` nothing is done: who has the card, what would be shut down for it, and
what stands against it. Exit status: 0, the card is where it was to be, or nothing stands against it; 1, it isn't, or
something does; 2, it couldn't be tried.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from homelab.cli import stack_options
from homelab.cli.whereabouts import named
from homelab.doctor.stack import StackFile
from homelab.errors import HomelabError, raise_all
from homelab.host import gates, ha, handover, plan
from homelab.host.facts import HostFacts
from homelab.host.named import meant
from homelab.init.ask import say
from homelab.remote import ssh
from homelab.settings import Host, Settings, Shutdown, Vm
from remote_scripts.layers.switch_card import Answer, Rehearsal, Story, Wanted
from remote_scripts.shared.reading.answer import HandedOver
from remote_scripts.tools.plain import of_plain

WELL, NOT_SWITCHED = 0, 1
# Seconds between two readings of the story: a host sends no events.
POLL_SECONDS = 1.0
# How long HA may take to begin a start or stop: two minutes where an idle node has to get its lock first.
HA_SECONDS = 180
# A handover's own steps have time limits, which are shorter together. The way back begins within two minutes, at the
# latest by the host's timer. A VM's own shutdown comes on top of that.
SWITCH_SECONDS = 1800.0
CONTAINERS = "containers"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab switch",
        description="Hands a shared card to a VM, by starting it, or back to the containers, by shutting the VM down.",
        epilog="Exit status: 0 the card is where you want it, 1 it isn't, 2 the switch couldn't be tried.",
    )
    parser.add_argument("card", help="the card's name under hosts.NAME.gpus; it has use: shared")
    parser.add_argument("--to", required=True, metavar="VM|containers", help="who should get it: a VM by id or name")
    parser.add_argument(
        "--rehearse", action="store_true", help="change nothing; say who has the card, and what prevents the switch"
    )
    parser.add_argument("--host", help="name of the host, if several have a card of that name")
    parser.add_argument("--identity", metavar="FILE", help="log in with this private key, not as the settings say")
    stack_options.add(parser)
    return parser


def _host_with(
    file: StackFile, settings: Settings, card: str, wanted: str | None, identity: str | None
) -> tuple[str, Host]:
    """The host that has the shared card, with its name in the settings.

    :raises HomelabError: none has a shared card of that name, or several have.
    """
    shared = [name for name, host in settings.hosts.items() if card in host.hands_over and wanted in (None, name)]
    if len(shared) == 1:
        return file.host(shared[0], identity)
    by_host = [f"{name}: {', '.join(host.hands_over) or 'none'}" for name, host in settings.hosts.items()]
    uses = {host.gpus[card].use for host in settings.hosts.values() if card in host.gpus}
    raise HomelabError(
        wanted=f"gpus.{card}, a card that containers and VMs have in turn (use: shared)",
        found=f"hosts with one of that name: {', '.join(shared)}"
        if shared
        else f"{f'it has use: {uses.pop()}' if uses else 'no such card'}; shared cards of the settings: "
        f"{'; '.join(by_host)}",
        why="the host hands over only what the settings share",
        next=f"say which: --host {shared[0]}"
        if shared
        else "name one of these, or set use: shared for the card and run `pulumi up`",
    )


def _vm_of(settings: Settings, host_name: str, card: str, text: str, facts: HostFacts) -> Vm:
    takers = {vm_name: vm for vm_name, vm in settings.vms.items() if vm.host == host_name and card in vm.cards}
    there = [config for config in facts.guests.configs if config.kind == "vm"]
    ids = {one.id for one in meant(text, named(takers, {}), there)}
    for vm in takers.values():
        if ids == {vm.vmid}:
            return vm
    raise HomelabError(
        wanted=f"{text}, as a VM which may take gpus.{card} of {host_name}",
        found=f"VMs that may: {', '.join(takers) or 'none'}",
        why="the host gives a card only to VMs that have it in the settings",
        next=f"name one of these, or add {card} to the VM's gpus and run `pulumi up`",
    )


class Switch:
    """One switch of a card. `vm`: that is to have it; None: the containers are; `vms`: those of
    the host, by name."""

    def __init__(
        self, session: ssh.Session, host: Host, card: str, vm: Vm | None, vms: dict[str, Vm], facts: HostFacts
    ) -> None:
        self._session, self._host, self._card, self._vm, self._facts = session, host, card, vm, facts
        self._vms = vms
        self._record = handover.record_of(facts, card)
        self._shutdown = next(
            (holder.shutdown for holder in vms.values() if str(holder.vmid) == self._record.vm), Shutdown()
        )
        self._story_size = 0

    def rehearse(self) -> int:
        """Prints what a switch would do, and what prevents it; returns the exit status."""
        handover.switch_refused(self._facts, self._card, self._vm, rehearsed=True)
        state = handover.state_text(self._facts, self._card) or "with the host"
        print(f"gpus.{self._card} is {state}. Nothing is done.")
        if self._vm is None:
            return self._rehearse_return()
        if self._record.state not in ("HOST", "HELD"):
            return WELL if self._record.vm == str(self._vm.vmid) else NOT_SWITCHED
        slots, errors = gates.resolve(self._facts, self._host.gpus)
        raise_all(errors)
        shared = {name: plan.card_plan(self._facts, self._host, name, slots[name]) for name in self._host.hands_over}
        cards = handover.cards_of(self._host, self._vms, shared)
        wanted = Wanted(card=self._card, vmid=self._vm.vmid, cards=cards)
        answer = of_plain(Rehearsal, self._session.ask("plan", "switch_card", wanted, 300))
        if answer.stands:
            print(f"{answer.stands}.")
            return WELL
        for ctid in answer.containers:
            print(f"  would be shut down, and started again afterwards: container {ctid}")
        if answer.refused:
            print(f"  prevents it: {answer.refused}")
            print(f"VM {self._vm.vmid} would not get it; everything would stay as it is.")
            return NOT_SWITCHED
        print(f"  then its driver would let go of it: {answer.way}")
        print(f"Nothing prevents VM {self._vm.vmid} from taking it.")
        return WELL

    def _rehearse_return(self) -> int:
        if self._record.state != "VM":
            print("No VM has it: there is nothing to give back.")
            return WELL
        print(f"  would be shut down, for at most {self._shutdown.timeout} s: VM {self._record.vm}")
        for ctid in self._record.containers:
            print(f"  would be started again: container {ctid}")
        return WELL

    def carry_out(self) -> int:
        """Starts the VM, or shuts it down, and waits until the handover has ended; returns the exit status."""
        handover.switch_refused(self._facts, self._card, self._vm)
        record = self._record
        if (
            self._vm is not None
            and (record.state, record.vm) == ("VM", str(self._vm.vmid))
            and self._vm.vmid in self._facts.guests.running
        ):
            print(f"gpus.{self._card} is {handover.state_text(self._facts, self._card)} already.")
            return WELL
        if self._vm is None and record.state in ("HOST", "HELD"):
            print(f"gpus.{self._card} is with the host already" + (f": {record.why}" if record.why else "."))
            return NOT_SWITCHED if record.containers else WELL
        self._read_story(quiet=True)
        if self._vm is not None:
            return self._to_vm(self._vm)
        return self._to_containers(int(record.vm))

    def _to_vm(self, vm: Vm) -> int:
        print(f"starting VM {vm.vmid}")
        well, message = self._run_and_tell(Wanted(card=self._card, vmid=vm.vmid, start=True))
        if well and ha.service(self._facts, "vm", vm.vmid) is not None:
            self._wait_for_ha(vm.vmid)
        if well and self._record.state == "VM" and self._record.vm == str(vm.vmid):
            print(f"VM {vm.vmid} runs, with gpus.{self._card}.")
            return WELL
        if well and self._record.state == "HELD":
            print(f"gpus.{self._card} is {self._where()}", file=sys.stderr)
        elif well:
            print(
                f"VM {vm.vmid} runs, and hasn't taken gpus.{self._card}: does its configuration name the card?",
                file=sys.stderr,
            )
        else:
            print(message, file=sys.stderr)
            print(f"gpus.{self._card} is {self._where()}", file=sys.stderr)
        return NOT_SWITCHED

    def _wait_for_ha(self, vmid: int) -> None:
        """Waits until HA has started the VM, or its start was refused: a start by HA returns at once."""
        before = handover.record_of(self._facts, self._card).since
        until = time.monotonic() + HA_SECONDS
        while (self._record.state, self._record.vm) != ("VM", str(vmid)) and time.monotonic() < until:
            if self._record.state in ("HELD", "STUCK", "DEAD") and self._record.since > before:
                return
            time.sleep(POLL_SECONDS)
            self._read_story()

    def _to_containers(self, vmid: int) -> int:
        asked_at: float | None = None
        ended = False
        until = time.monotonic() + SWITCH_SECONDS
        runs = "yes" if vmid in self._facts.guests.running else "no"
        while self._record.state not in ("HOST", "HELD", "STUCK", "DEAD"):
            vm_has_it = self._record.state == "VM"
            ended = ended or (asked_at is not None and runs == "no")
            if vm_has_it and self._record.vm != str(vmid):
                return self._not_switched(f"gpus.{self._card} is {self._where()} now, which has been started meanwhile")
            if vm_has_it and runs == "yes" and ended:
                return self._not_switched(
                    f"VM {vmid} had gone off, and runs again with gpus.{self._card}: something has started it, such "
                    "as HA or a reboot from inside"
                )
            if vm_has_it and runs == "yes" and asked_at is None:
                if not self._shut_down(vmid):
                    return NOT_SWITCHED
                asked_at = time.monotonic()
                until = asked_at + self._shutdown.timeout + SWITCH_SECONDS
            elif (
                vm_has_it
                and runs == "yes"
                and asked_at is not None
                and time.monotonic() > asked_at + self._shutdown.timeout + HA_SECONDS
            ):
                return self._still_runs(vmid)
            elif time.monotonic() > until:
                return self._not_switched(
                    f"gpus.{self._card} is still {self._where()}; the card comes back by itself once nothing holds "
                    f"VM {vmid}, such as a backup or a lock (`qm config {vmid}`)"
                )
            else:
                time.sleep(POLL_SECONDS)
            runs = self._read_story(vmid)
        if self._record.state != "HOST":
            return self._not_switched(f"gpus.{self._card} is {self._where()}")
        print(f"gpus.{self._card} is with the host and its containers.")
        return WELL

    def _shut_down(self, vmid: int) -> bool:
        print(f"shutting VM {vmid} down, for which it has {self._shutdown.timeout} s")
        wanted = Wanted(
            card=self._card,
            vmid=vmid,
            seconds_off=self._shutdown.timeout,
            cut=self._shutdown.otherwise == "stop",
        )
        well, message = self._run_and_tell(wanted, SWITCH_SECONDS + self._shutdown.timeout)
        if not well:
            print(message, file=sys.stderr)
            self._still_runs(vmid)
        return well

    def _still_runs(self, vmid: int) -> int:
        return self._not_switched(
            f"VM {vmid} hasn't gone off, and keeps gpus.{self._card}: shut it down from inside, or stop it in "
            "Proxmox VE, and the card comes back by itself"
        )

    def _not_switched(self, why: str) -> int:
        print(why, file=sys.stderr)
        return NOT_SWITCHED

    def _run_and_tell(self, wanted: Wanted, seconds: float = SWITCH_SECONDS) -> tuple[bool, str]:
        """Starts a VM, or shuts it down, and prints the handover's story meanwhile.

        :param seconds: how long that may take.
        :returns: whether it worked, and its output.
        """
        plain = self._session.ask("apply", "switch_card", wanted, seconds, meanwhile=self._read_story)
        self._read_story()
        answer = of_plain(Answer, plain)
        return answer.well, answer.said

    def _read_story(self, vmid: int = 0, *, quiet: bool = False) -> str:
        """Reads the story's new lines, prints them unless `quiet`, and reads the card's state.

        :returns: whether VM `vmid` runs: yes, no or unknown.
        """
        wanted = Wanted(card=self._card, vmid=vmid, known=self._story_size)
        answer = of_plain(Story, self._session.ask("read", "switch_card", wanted))
        self._story_size = answer.size
        self._record = answer.record
        for line in [] if quiet else answer.story.splitlines():
            say(f"  {line}")
        return answer.runs

    def _where(self) -> str:
        facts = replace(self._facts, handover=HandedOver(cards={self._card: self._record}))
        return handover.state_text(facts, self._card) or "with the host"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    file = stack_options.read(arguments)
    settings = file.guests()
    name, host = _host_with(file, settings, arguments.card, arguments.host, arguments.identity)
    vms = {vm_name: guest for vm_name, guest in settings.vms.items() if guest.host == name}
    session = ssh.Session(host)
    facts = session.read(guests=True)
    vm = None if arguments.to == CONTAINERS else _vm_of(settings, name, arguments.card, arguments.to, facts)
    switch = Switch(session, host, arguments.card, vm, vms, facts)
    return switch.rehearse() if arguments.rehearse else switch.carry_out()
