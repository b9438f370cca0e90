"""`python -m homelab switch CARD --to vm:NAME|containers`: hands a shared card to a VM, by starting it, or back to the
containers, by shutting the VM down.

What is done is the host's (ADR 30): this starts or shuts down the VM there, as Proxmox VE's own buttons do, and tells
the story as it is written. With `--rehearse` nothing is done: who has the card, what would be shut down for it, and
what stands against it. Exit status: 0, the card is where it was to be, or nothing stands against it; 1, it isn't, or
something does; 2, it couldn't be tried.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TypedDict, cast

from homelab.cli import stack_options
from homelab.doctor.stack import StackFile
from homelab.errors import HomelabError, raise_all
from homelab.host import gates, ha, handover, plan
from homelab.host.facts import HandedOver, HostFacts
from homelab.remote import scripts, ssh
from homelab.remote.proxmox.machine import HA_SECONDS
from homelab.settings import Host, Settings, Shutdown, Vm

WELL, NOT_SWITCHED, UNREADABLE = 0, 1, 2
# How often the story is asked for what is new: a host tells nobody.
POLL_SECONDS = 1.0
# A handover's own steps have time limits, which are shorter together. The way back begins within two minutes, at the
# latest by the host's timer. A VM's own shutdown comes on top of that.
SWITCH_SECONDS = 1800.0
CONTAINERS = "containers"


def _target(text: str) -> str | None:
    """The VM's name; None: the containers."""
    if text == CONTAINERS:
        return None
    kind, _, name = text.partition(":")
    if kind != "vm" or not name:
        raise argparse.ArgumentTypeError("expected vm:NAME, of a VM in the settings, or containers")
    return name


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = argparse.ArgumentParser(
        prog="python -m homelab switch",
        description="Hands a shared card to a VM, by starting it, or back to the containers, by shutting the VM down.",
        epilog="Exit status: 0 it is where it was to be, 1 it isn't, 2 it couldn't be tried.",
    )
    found.add_argument("card", help="a name under hosts.NAME.gpus, with use: shared")
    found.add_argument("--to", type=_target, required=True, metavar="vm:NAME|containers", help="who is to have it")
    found.add_argument(
        "--rehearse", action="store_true", help="changes nothing: says who has the card, and what prevents the switch"
    )
    found.add_argument("--host", help="one of homelab:hosts, where several have a card of that name")
    found.add_argument(
        "--identity", metavar="FILE", help="log in with this private key instead of what the settings say"
    )
    stack_options.add(found)
    return found


def _host_with(
    found: StackFile, guests: Settings, card: str, wanted: str | None, identity: str | None
) -> tuple[str, Host]:
    """The host whose card it is.

    :raises HomelabError: none has a shared card of that name, or several have.
    """
    shared = [name for name, host in guests.hosts.items() if card in host.hands_over and wanted in (None, name)]
    if len(shared) == 1:
        return found.host(shared[0], identity)
    every = [f"{name}: {', '.join(host.hands_over) or 'none'}" for name, host in guests.hosts.items()]
    uses = {host.gpus[card].use for host in guests.hosts.values() if card in host.gpus}
    raise HomelabError(
        wanted=f"gpus.{card}, a card that containers and VMs have in turn (use: shared)",
        found=f"hosts with one of that name: {', '.join(shared)}"
        if shared
        else f"{f'it has use: {uses.pop()}' if uses else 'no such card'}; shared cards of the settings: "
        f"{'; '.join(every)}",
        why="the host hands over only what the settings share",
        next=f"say which: --host {shared[0]}"
        if shared
        else "name one of these, or set use: shared for the card and run `pulumi up`",
    )


def _vm_of(guests: Settings, host_name: str, card: str, name: str) -> Vm:
    takers = {
        one: vm for one, vm in guests.vms.items() if vm.host == host_name and card in (use.gpu for use in vm.gpus)
    }
    if name not in takers:
        raise HomelabError(
            wanted=f"vms.{name}, which may take gpus.{card} of {host_name}",
            found=f"VMs that may: {', '.join(takers) or 'none'}",
            why="the host gives a card only to VMs that have it in the settings",
            next=f"name one of these, or add {card} to vms.{name}.gpus and run `pulumi up`",
        )
    return takers[name]


class Rehearsed(TypedDict):
    """What rehearse_card.sh answers."""

    stands: str
    refused: str
    containers: list[str]
    ends: list[str]
    holders: list[str]
    way: str


class Switch:
    """One switch of a card, on an open connection. `vm`: that is to have it; None: the containers are; `vms`: those of
    the host, by name."""

    def __init__(
        self, session: ssh.Session, host: Host, card: str, vm: Vm | None, vms: dict[str, Vm], facts: HostFacts
    ) -> None:
        self._session, self._host, self._card, self._vm, self._facts = session, host, card, vm, facts
        self._vms = vms
        has_it = handover.state_of(facts, card).get("vm", "")
        self._off = next((one.shutdown for one in vms.values() if str(one.vmid) == has_it), Shutdown())
        self._told = 0
        self._state: dict[str, str] = {}

    async def rehearse(self) -> int:
        """Says what would be done, and what stands against it."""
        handover.switch_refused(self._facts, self._host, self._card, self._vm, rehearsed=True)
        now = handover.said(self._facts, self._card) or "with the host"
        print(f"gpus.{self._card} is {now}. Nothing is done.")
        if self._vm is None:
            return self._rehearse_return()
        slots, errors = gates.resolve(self._facts, self._host.gpus)
        raise_all(errors)
        shared = {name: plan.card_plan(self._facts, self._host, name, slots[name]) for name in self._host.hands_over}
        text = scripts.rehearse_card(handover.lines_of(self._host, self._vms, shared), self._card, self._vm.vmid)
        found = cast(Rehearsed, scripts.answer(await self._session.run("rehearse", text, 300)))
        if found["stands"]:
            print(f"{found['stands']}.")
        for ctid in found["containers"]:
            print(f"  would be shut down, and started again afterwards: container {ctid}")
        for holder in found["ends"]:
            print(f"  has the card open, and ends with that: {holder}")
        for holder in found["holders"]:
            print(f"  has the card open, and prevents it: {holder}")
        if found["refused"]:
            print(f"  prevents it: {found['refused']}")
        if found["refused"] or found["holders"]:
            print(f"VM {self._vm.vmid} would not get it; everything would stay as it is.")
            return NOT_SWITCHED
        if found["stands"]:
            return WELL
        print(f"  then its driver would let go of it: {found['way']}")
        print(f"Nothing prevents VM {self._vm.vmid} from taking it.")
        return WELL

    def _rehearse_return(self) -> int:
        about = handover.state_of(self._facts, self._card)
        if about.get("state") != "VM":
            print("No VM has it: there is nothing to give back.")
            return WELL
        print(f"  would be shut down, for at most {self._off.timeout} s: VM {about['vm']}")
        for ctid in about.get("containers", "").split():
            print(f"  would be started again: container {ctid}")
        return WELL

    async def carry_out(self) -> int:
        """Starts the VM, or shuts it down, and waits for where the card comes to rest."""
        handover.switch_refused(self._facts, self._host, self._card, self._vm)
        about = handover.state_of(self._facts, self._card)
        if (
            self._vm is not None
            and (about.get("state"), about.get("vm")) == ("VM", str(self._vm.vmid))
            and self._vm.vmid in self._facts.guests.running
        ):
            print(f"gpus.{self._card} is {handover.said(self._facts, self._card)} already.")
            return WELL
        if self._vm is None and about.get("state", "HELD") == "HELD":
            print(f"gpus.{self._card} is with the host already" + (f": {about['why']}" if about.get("why") else "."))
            return NOT_SWITCHED if about.get("containers") else WELL
        await self._look(quiet=True)
        if self._vm is not None:
            return await self._to_vm(self._vm)
        return await self._to_containers(int(about["vm"]))

    async def _to_vm(self, vm: Vm) -> int:
        print(f"starting VM {vm.vmid}")
        well, said = await self._while_told("start_vm", vm.vmid)
        if well and ha.service(self._facts, "vm", vm.vmid) is not None:
            await self._until_ha_came(vm.vmid)
        if well and self._state.get("state") == "VM" and self._state.get("vm") == str(vm.vmid):
            print(f"VM {vm.vmid} runs, with gpus.{self._card}.")
            return WELL
        if well and self._state.get("state") == "HELD":
            print(f"gpus.{self._card} is {self._where()}", file=sys.stderr)
        elif well:
            print(
                f"VM {vm.vmid} runs, and hasn't taken gpus.{self._card}: does its configuration name the card?",
                file=sys.stderr,
            )
        else:
            print(said, file=sys.stderr)
            print(f"gpus.{self._card} is {self._where()}", file=sys.stderr)
        return NOT_SWITCHED

    async def _until_ha_came(self, vmid: int) -> None:
        """Until HA has started the VM, or its start was refused: what asks HA for it ends at once."""
        before = handover.since(handover.state_of(self._facts, self._card))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HA_SECONDS):
                while (self._state.get("state"), self._state.get("vm")) != ("VM", str(vmid)):
                    if self._state.get("state") in ("HELD", "STUCK", "DEAD") and handover.since(self._state) > before:
                        return
                    await asyncio.sleep(POLL_SECONDS)
                    await self._look()

    async def _to_containers(self, vmid: int) -> int:
        asked: float | None = None
        ended = False
        until = time.monotonic() + SWITCH_SECONDS
        runs = "yes" if vmid in self._facts.guests.running else "no"
        while self._state.get("state", "HELD") not in ("HELD", "STUCK", "DEAD"):
            has_it = self._state["state"] == "VM"
            ended = ended or (asked is not None and runs == "no")
            if has_it and self._state.get("vm") != str(vmid):
                return self._stays(f"gpus.{self._card} is {self._where()} now, which has been started meanwhile")
            if has_it and runs == "yes" and ended:
                return self._stays(
                    f"VM {vmid} had gone off, and runs again with gpus.{self._card}: something has started it, such "
                    "as HA or a reboot from inside"
                )
            if has_it and runs == "yes" and asked is None:
                if not await self._shut_down(vmid):
                    return NOT_SWITCHED
                asked = time.monotonic()
                until = asked + self._off.timeout + SWITCH_SECONDS
            elif (
                has_it
                and runs == "yes"
                and asked is not None
                and time.monotonic() > asked + self._off.timeout + HA_SECONDS
            ):
                return self._still_runs(vmid)
            elif time.monotonic() > until:
                return self._stays(
                    f"gpus.{self._card} is still {self._where()}; the card comes back by itself once nothing holds "
                    f"VM {vmid}, such as a backup or a lock (`qm config {vmid}`)"
                )
            else:
                await asyncio.sleep(POLL_SECONDS)
            runs = await self._look(vmid)
        if self._state:
            return self._stays(f"gpus.{self._card} is {self._where()}")
        print(f"gpus.{self._card} is with the host and its containers.")
        return WELL

    async def _shut_down(self, vmid: int) -> bool:
        print(f"shutting VM {vmid} down, for which it has {self._off.timeout} s")
        well, said = await self._while_told("shut_down_vm", vmid, SWITCH_SECONDS + self._off.timeout)
        if not well:
            print(said, file=sys.stderr)
            self._still_runs(vmid)
        return well

    def _still_runs(self, vmid: int) -> int:
        return self._stays(
            f"VM {vmid} hasn't gone off, and keeps gpus.{self._card}: shut it down from inside, or stop it in "
            "Proxmox VE, and the card comes back by itself"
        )

    def _stays(self, why: str) -> int:
        print(why, file=sys.stderr)
        return NOT_SWITCHED

    async def _while_told(self, verb: str, vmid: int, seconds: float = SWITCH_SECONDS) -> tuple[bool, str]:
        """Has something done on the host within so many `seconds`, and tells the story meanwhile. Did it work, and what
        does it say?"""
        script = scripts.switch_card(self._card, vmid, self._off.timeout, cut=self._off.otherwise == "stop")
        doing = asyncio.create_task(self._session.run(verb, script, seconds))
        while not (await asyncio.wait({doing}, timeout=POLL_SECONDS))[0]:
            await self._look()
        await self._look()
        answer = scripts.answer(await doing)
        return answer["well"] == "yes", str(answer["said"])

    async def _look(self, vmid: int = 0, *, quiet: bool = False) -> str:
        """Reads what is new of the story, and what is noted of the card now. Does VM `vmid` run: yes, no, unknown?"""
        text = scripts.switch_card(self._card, vmid, self._off.timeout, self._told)
        found = scripts.answer(await self._session.run("story", text))
        self._told = int(found["size"])
        noted = HandedOver(cards={self._card: str(found["state"])}).of_card(self._card)
        self._state = noted if noted.get("state") else {}
        for line in [] if quiet else str(found["story"]).splitlines():
            print(f"  {line}", flush=True)
        return str(found["runs"])

    def _where(self) -> str:
        facts = self._facts.model_copy(
            update={"handover": HandedOver(cards={self._card: "\n".join(f"{k}={v}" for k, v in self._state.items())})}
        )
        return handover.said(facts, self._card) or "with the host"


async def _switch(host: Host, card: str, vm: Vm | None, vms: dict[str, Vm], *, rehearse: bool) -> int:
    async with ssh.connect(host) as session:
        facts = await session.read(guests=True)
        one = Switch(session, host, card, vm, vms, facts)
        return await (one.rehearse() if rehearse else one.carry_out())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    try:
        found = stack_options.read(arguments)
        guests = found.guests()
        name, host = _host_with(found, guests, arguments.card, arguments.host, arguments.identity)
        vm = None if arguments.to is None else _vm_of(guests, name, arguments.card, arguments.to)
        vms = {one: about for one, about in guests.vms.items() if about.host == name}
        return asyncio.run(_switch(host, arguments.card, vm, vms, rehearse=arguments.rehearse))
    except HomelabError as error:
        print(error, file=sys.stderr)
        return UNREADABLE
