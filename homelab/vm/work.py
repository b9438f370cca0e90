"""The work on a VmCards. What the VM is to have is decided here (homelab/vm/plan.py), by what the host says of it; the
host brings it into force, and keeps what was there before (remote_scripts/layers/guest_cards.py).
"""

from __future__ import annotations

from dataclasses import replace

from homelab.errors import HomelabError, NotStartedError, elsewhere, raise_all
from homelab.findings import JudgedGuest
from homelab.host import gates, ha
from homelab.remote.ledger import stack_of
from homelab.remote.proxmox import guest_address
from homelab.resources.work import started
from homelab.resources.work.api import ApiWork
from homelab.resources.work.vm_transaction import VmTransaction
from homelab.text import tell
from homelab.vm.cards import Wish
from homelab.vm.plan import UNFINISHED, SeenVm, judge_vm
from homelab.vm.resource import VmCards
from remote_scripts.both.guest_cards import Answer, Wanted


class VmCardsWork(ApiWork[VmCards.Inputs, VmCards.Outputs]):
    """See the module."""

    resource = VmCards

    def id(self, inputs: VmCards.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VmCards.Inputs) -> VmCards.Outputs:
        return self.update(inputs, inputs, VmCards.Outputs())

    def update(self, inputs: VmCards.Inputs, before: VmCards.Inputs, outputs: VmCards.Outputs) -> VmCards.Outputs:
        host, vmid = self.host(inputs), inputs.vmid
        places = [] if inputs.power == "stopped" else [card.slot for card in inputs.cards]
        facts = started.awake(host, vmid, places)
        same_id = [vm for vm in self.stack.vms(inputs.host).values() if vm.vmid == vmid]
        begun: VmCards.Outputs | None = None

        def decided(seen: Answer) -> JudgedGuest:
            nonlocal begun
            if seen.node != inputs.node:
                raise elsewhere(f"VM {vmid} given its cards", "qemu", vmid, inputs.node, seen.node)
            judged = judge_vm(_seen(seen), _wish(inputs), facts, self._stack)
            refused = [*gates.readable(facts), *gates.guests_listed(facts), *judged.refusals]
            raise_all([*refused, *(ha.refused_under_ha(facts, host, same_id) if judged.steps else ())])
            begun = replace(outputs, guest_name=seen.config.get("name", inputs.vm), state="", drift=[UNFINISHED])
            for remark in judged.remarks if judged.change else ():
                tell(f"{inputs.vm}: {remark}")
            return judged

        wanted = self._wanted(inputs)
        wanted = replace(wanted, terms=replace(wanted.terms, power=inputs.power))
        try:
            done = self._transaction(inputs).apply(wanted, decided)
            if done.started:
                started.require_cards(host, inputs.vm, vmid, facts, done.log)
            address = inputs.address or ""
            if address == "agent":
                address = (
                    guest_address.by_agent(self.api(inputs), vmid, inputs.vm) if done.runs else outputs.guest_address
                )
        except HomelabError as error:
            error.outputs = begun
            if isinstance(error, NotStartedError):
                raise started.explained(error, host, vmid, places) from error
            raise
        return VmCards.Outputs(
            guest_name=done.config.get("name", inputs.vm),
            state="running" if done.runs else "stopped",
            guest_address=address,
            starts=outputs.starts + done.started,
        )

    def read(self, inputs: VmCards.Inputs, outputs: VmCards.Outputs) -> VmCards.Outputs:
        vmid, facts = inputs.vmid, self.facts_of_refresh(inputs)
        seen = self._transaction(inputs).read(self._wanted(inputs))
        notes = list[str]()
        if not seen.node:
            drift = [f"VM {vmid} isn't there"]
        elif not seen.is_here or seen.node != inputs.node:
            drift = [elsewhere("", "qemu", vmid, inputs.node, seen.node).found]
        else:
            judged = judge_vm(_seen(seen, outputs.state), _wish(inputs), facts, self._stack)
            drift, notes = judged.steps, judged.met
        for line in drift:
            tell(f"{inputs.vm}: drift: {line}")
        for line in notes:
            tell(f"{inputs.vm}: note: {line}")
        return replace(outputs, drift=drift)

    @property
    def _stack(self) -> str:
        """PROJECT/STACK."""
        return stack_of(self.urn)

    def delete(self, inputs: VmCards.Inputs, outputs: VmCards.Outputs) -> None:
        left = self._transaction(inputs).revert(replace(self._wanted(inputs), goes_away=inputs.goes_away))
        if left.node and not left.is_here:
            wanted = f"what VM {inputs.vmid} was given for its cards taken out of it"
            moved = elsewhere(wanted, "qemu", inputs.vmid, inputs.node, left.node)
            self.stack.leave_moved(inputs.vm, "vms", inputs.vmid, left.node, moved)

    def _transaction(self, inputs: VmCards.Inputs) -> VmTransaction:
        return VmTransaction(self.host(inputs), inputs.vm)

    def _wanted(self, inputs: VmCards.Inputs) -> Wanted:
        """But for the options, and for whether the VM is to run."""
        return Wanted(vmid=inputs.vmid, terms=self.terms(inputs.vm, inputs.shutdown))


def _wish(inputs: VmCards.Inputs) -> Wish:
    return Wish(inputs.vm, inputs.vmid, inputs.cards, inputs.machine, inputs.display, inputs.power)


def _seen(answer: Answer, state: str = "running") -> SeenVm:
    """:param state: of `Outputs`."""
    is_under_way = answer.is_under_way or not state
    now = (answer.config, answer.base, answer.originals)
    return SeenVm(*now, runs=answer.runs, is_under_way=is_under_way, is_another=answer.is_another)
