"""The plan for a host's VMs, from a reading of the host. It refuses in a preview what an `up` would refuse, with the
same messages."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping

from homelab.cards import graphics, group_gates, options
from homelab.errors import HomelabError
from homelab.facts.guests import GuestConfig
from homelab.facts.host import HostFacts
from homelab.findings import JudgedGuest
from homelab.host import ha
from homelab.host.plan import Wanted
from homelab.settings import Container, Host, Vm
from homelab.shapes import CardPlan
from homelab.storage import files
from homelab.vm import refusals
from homelab.vm.cards import VmCard, Wish, is_to_run, offered
from homelab.vm.plan import SeenVm, change_to, changes, judge_vm, seen_of, users_of
from remote_scripts.pve.guest_kinds import VM, Kind


def wish_of(name: str, vm: Vm, host: Host, cards: Mapping[str, CardPlan]) -> Wish:
    """What the settings want of a VM; without cards that the host doesn't have.

    :param name: the VM's in the settings.
    :param cards: plans of the host's cards, by name.
    """
    vm_cards = [
        VmCard(**{**use.model_dump(mode="json"), **offered(host, use.gpu, cards[use.gpu])})
        for use in vm.gpus
        if use.gpu in cards
    ]
    return Wish(name, vm.vmid, vm_cards, vm.machine, vm.display, vm.wanted_power)


def describe(
    facts: HostFacts, host: Host, want: Wanted, vms: dict[str, Vm], stack: str = ""
) -> tuple[str, list[HomelabError]]:
    """The plan's lines, and refusals.

    :param want: the host's plan.
    :param vms: those of this host, by name.
    :param stack: PROJECT/STACK: a card is taken from VMs that have it from this stack, and from no others.
    """
    lines = [files.describe(host)] if host.downloads else []
    keeping = [f"vms.{guest}.gpus ({use.gpu})" for guest, vm in vms.items() for use in vm.gpus if use.driver == "keep"]
    errors = [error for place in keeping for error in options.keep_refused(facts, place)]
    errors += _split_groups(facts, want, vms)
    for guest, vm in vms.items():
        wish = wish_of(guest, vm, host, want.gpus)
        seen = seen_of(facts, vm.vmid, wish.takes(host.hands_over), stack)
        if refused := refusals.absent(VM, vm.vmid, f"vms.{guest}", facts, is_made=vm.create is not None):
            errors += refused
        elif config := facts.guests.config(vm.vmid):
            judged = judge_vm(seen, wish, facts)
            lines += _of_existing(vm, wish, seen, config, judged)
            errors += judged.refusals
        else:
            its_cards = ", ".join(card.in_place_of("") for card in wish.cards) or "no card"
            lines.append(f"  VM {vm.vmid} ({guest}): created with {its_cards}")
            errors += refusals.of_users({}, wish, users_of(seen, wish.cards, facts), facts)
        for use in vm.gpus:
            if use.gpu in want.gpus:
                slot = want.gpus[use.gpu]["slot"]
                # Its owner's option may name one, which it keeps.
                its_options = facts.options_of(slot, vm.vmid).values()
                has_file = bool(use.romfile) or any({"romfile", "legacy-igd"} & option.keys() for option in its_options)
                remarks = graphics.rom_remarks(facts, use.gpu, slot, has_file=has_file)
                lines += [f"    {remark}" for remark in remarks]
    leaving_lines, leaving_errors = of_leaving(facts, VM, [vm.vmid for vm in vms.values()], stack)
    return "\n".join([*lines, *leaving_lines]), [*errors, *leaving_errors]


def _of_existing(vm: Vm, wish: Wish, seen: SeenVm, config: GuestConfig, judged: JudgedGuest) -> list[str]:
    """The plan's lines for a VM that is there."""
    will_run, renewed = is_to_run(seen.runs, wish.power), bool(judged.steps)
    # What changes of the rest of one that was made here, its own resource says.
    same = "no change" if vm.create is None else "no change for its cards"
    same = "what is noted of it is renewed" if renewed else same
    return [
        _head(wish.vm, config, changed=bool(judged.change), running=seen.runs, will_run=will_run, same=same),
        *(f"    {step}" for step in judged.steps),
        *(copy_first(vm) if judged.change else []),
        *(f"    {line}" for line in (*judged.remarks, *judged.met)),
    ]


def of_leaving(
    facts: HostFacts, kind: Kind, wanted: Collection[int], stack: str
) -> tuple[list[str], list[HomelabError]]:
    """The plan's lines for guests of this stack that the settings don't have any more, and refusals.

    :param wanted: ids of those that the settings have.
    """
    lines, errors = list[str](), list[HomelabError]()
    for name, config, change in leaving(facts, kind, wanted, stack):
        running = config.id in facts.guests.running
        lines += [_head(name, config, changed=bool(change), running=running, will_run=running)]
        lines += [f"    {step}" for step in changes(change, config.options)]
        lines.append(
            f"    {'vms' if kind is VM else 'containers'}.{name} isn't in the settings any more: the {kind.label} "
            "has back what it was before; one that was made here is removed, unless it is protected"
        )
        errors += ha.refused_to_change(facts, kind, config.id) if change else []
    return lines, errors


def leaving(
    facts: HostFacts, kind: Kind, wanted: Collection[int], stack: str
) -> list[tuple[str, GuestConfig, dict[str, str | None]]]:
    """These guests by their ids: each one's name in the settings that had it, and what is changed in it; the arguments
    as of `of_leaving`.
    """
    noted = [(config, facts.note_of(config.id).owner.rpartition("/")) for config in facts.guests.configs]
    return [
        (name, config, change_to(seen_of(facts, config.id), Wish(name, config.id, [])))
        for config, (owners_stack, _, name) in sorted(noted, key=lambda one: one[0].id)
        if config.guest_kind is kind and config.id not in wanted and stack and owners_stack == stack
    ]


def _split_groups(facts: HostFacts, want: Wanted, vms: dict[str, Vm]) -> Iterator[HomelabError]:
    """Refusals of two cards of one IOMMU group for two VMs: the first VM that starts takes the whole group."""
    uses = [(name, vm.vmid, use.gpu) for name, vm in vms.items() for use in vm.gpus if use.gpu in want.gpus]
    for (name, vmid, gpu), (other, other_vmid, card) in itertools.combinations(uses, 2):
        slot, place = want.gpus[gpu]["slot"], want.gpus[card]["slot"]
        group = {device.address for device in facts.others_in_group(slot)}
        if vmid != other_vmid and group & {device.address for device in facts.functions(place)}:
            yield HomelabError(
                wanted=f"{gpu} ({facts.card(slot)}) for VM {vmid} (vms.{name}) while VM {other_vmid} (vms.{other}) has "
                f"{card}",
                found=f"both cards are in one {group_gates.predicted(facts)}IOMMU group",
                why="the VM that starts first takes the whole group; the other one can't start as long as it runs",
                next="give both cards to the same VM, or put one of them into a slot with a group of its own",
            )


def copy_first(guest: Vm | Container) -> list[str]:
    """The plan's line with the command that backs up an adopted guest; homelab records the guest's configuration alone.
    Empty for a created guest."""
    return [] if guest.create else [f"    to back it up first: `vzdump {guest.guest_id}` on the host"]


#: Whether a guest runs, before and after an `up` -> what is done with it.
POWER = {
    (True, True): "it is shut down and started again",
    (True, False): "it is shut down",
    (False, True): "it is started",
    (False, False): "its options change",
}


def _head(
    guest: str, config: GuestConfig, *, changed: bool, running: bool, will_run: bool, same: str = "no change"
) -> str:
    """What is done with a guest.

    :param same: said where nothing is changed in it, and it goes on running or not.
    """
    power = POWER[running, will_run] if changed or running != will_run else same
    state = "running" if running else "off"
    return f"  {config.guest_kind.label} {config.id} ({config.name or guest}), {state}: {power}"
