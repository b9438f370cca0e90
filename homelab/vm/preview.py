"""The plan for a host's VMs, from a reading of the host. It refuses in a preview what an `up` would refuse, with the
same messages."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from homelab.cards import graphics, group_gates
from homelab.errors import HomelabError
from homelab.facts.guests import GuestConfig
from homelab.facts.host import HostFacts
from homelab.findings import JudgedGuest
from homelab.guest.mark import goes_away, made_as
from homelab.host import ha
from homelab.host.plan import Wanted
from homelab.properties import mark_of
from homelab.settings import Container, Host, Vm
from homelab.shapes import CardPlan
from homelab.vm import refusals
from homelab.vm.cards import VmCard, Wish, offered
from homelab.vm.plan import SeenVm, change_to, changes, judge_vm, seen_of, users_of
from remote_scripts.pve.guest_kinds import VM


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


def judge(name: str, vm: Vm, wish: Wish, seen: SeenVm, facts: HostFacts, stack: str = "") -> JudgedGuest:
    """A VM of the settings, as `judge_vm` has one that is there. One whose cards aren't all found isn't judged: its
    host says which.

    :param name: its, in the settings.
    :param stack: PROJECT/STACK: a card is taken from VMs that have it from this stack, and from no others.
    """
    title = f"VM {vm.vmid} to be as vms.{name} says"
    if absent := [*refusals.absent(VM, vm.vmid, f"vms.{name}", facts, stack, is_made=vm.create is not None)]:
        steps = [f"VM {vm.vmid}: not there -> created" if vm.create else f"VM {vm.vmid} isn't there"]
        return JudgedGuest(title=title, steps=steps, against=absent)
    if len(wish.cards) < len(vm.gpus):
        return JudgedGuest(title=title, runs=seen.runs, will_run=seen.runs)
    kept = (f"vms.{name}.gpus ({use.gpu})" for use in vm.gpus if use.driver == "keep")
    keep = [error for place in kept for error in graphics.keep_refused(facts, place)]
    if facts.guests.config(vm.vmid) is None:
        taken = refusals.of_users({}, wish, users_of(seen, wish.cards, facts), facts)
        return JudgedGuest(title=title, steps=[f"VM {vm.vmid}: not there -> created"], against=[*keep, *taken])
    judged = judge_vm(seen, wish, facts, stack)
    return replace(judged, against=[*keep, *judged.against])


def lines(
    name: str, vm: Vm, wish: Wish, judged: JudgedGuest, facts: HostFacts, restarted: Collection[int] = ()
) -> list[str]:
    """A VM's lines of a host's plan; others as of `judge`.

    :param restarted: ids of the guests that the host's restart stops, and starts again.
    """
    its_cards = ", ".join(card.in_place_of("") for card in wish.cards) or "no card"
    found = [f"  VM {vm.vmid} ({name}): created with {its_cards}"]
    if config := facts.guests.config(vm.vmid):
        # What changes of the rest of one that was made here, its own resource says.
        same = "no change" if vm.create is None else "no change for its cards"
        same += "; the host's restart stops it, and starts it again" if vm.vmid in restarted else ""
        found = [
            _head(name, config, judged, same="what is noted of it is renewed" if judged.steps else same),
            *(f"    {step}" for step in judged.steps),
            *(copy_first(vm) if judged.change else []),
            *(f"    {line}" for line in (*judged.remarks, *judged.met)),
        ]
    for card in wish.cards:
        # Its owner's option may name one, which it keeps.
        its_options = facts.options_of(card.slot, vm.vmid).values()
        has_file = bool(card.romfile) or any({"romfile", "legacy-igd"} & option.keys() for option in its_options)
        slot = facts.place_of(card.slot.partition(";")[0])
        found += [f"    {remark}" for remark in graphics.rom_remarks(facts, card.gpu, slot, has_file=has_file)]
    return found


def leaving(
    facts: HostFacts, wanted: Collection[int], stack: str, undone: Mapping[int, Vm | Container]
) -> dict[str, JudgedGuest]:
    """The guests of this stack that the settings don't have any more, by their places there.

    :param wanted: ids of those that the settings have.
    :param stack: PROJECT/STACK.
    :param undone: by their ids, those of the settings that a `destroy` undoes.
    """
    found = {}
    for config in sorted(facts.guests.configs, key=lambda one: one.id):
        owners_stack, _, name = facts.note_of(config.id).owner.rpartition("/")
        guest = undone.get(config.id)
        made = made_as(mark_of(stack), config.described) if guest is None or guest.create else ""  # else it is adopted
        if not stack or config.id in wanted or not (owners_stack == stack or (made and guest)):
            continue
        kind, runs, name = config.guest_kind, config.id in facts.guests.running, name or made
        goes = bool(made) and (guest is None or goes_away(guest.create))
        named = f"{kind.label} {config.id} ({config.name or name})"
        change = change_to(seen_of(facts, config.id), Wish(name, config.id, []))
        # Whether one was protected that the settings don't have any more, the state alone knows.
        deleted = "deleted with its disks" + ("" if guest else ", unless it was protected")
        found[f"{'vms' if kind is VM else 'containers'}.{name}"] = JudgedGuest(
            title=f"{named} {'gone' if goes else 'as it was before'}",
            steps=[deleted] if goes else changes(change, config.options),
            against=ha.refused_to_change(facts, kind, config.id) if change and not goes else [],
            held=[*refusals.locked(kind, config.id, config.name or name, config.values.get("lock"))],
            runs=runs,
            will_run=runs and not goes,
            change=change,
            guest=config.id,
            is_deleted=goes,
            remarks=["it stays, as it is protected, if it was at the last `pulumi up`"] * (made != "" and not goes),
        )
    return found


def leaving_lines(place: str, judged: JudgedGuest, facts: HostFacts, why: str) -> list[str]:
    """Such a guest's lines of a host's plan."""
    config = facts.guests.config(judged.guest)
    assert config is not None
    name, kind = place.partition(".")[2], config.guest_kind
    if judged.is_deleted:
        return [f"  {kind.label} {config.id} ({config.name or name}) is {judged.steps[0]}"]
    return [
        _head(name, config, judged),
        *(f"    {line}" for line in (*judged.steps, *judged.remarks)),
        f"    {place} {why}: the {kind.label} has back what it was before",
    ]


def split_groups(facts: HostFacts, want: Wanted, name: str, vms: Mapping[str, Vm]) -> Iterator[HomelabError]:
    """Refusals of a card for a VM while another VM has one of the same IOMMU group: the first VM that starts takes the
    whole group.

    :param vms: of the host, by name.
    """
    uses = [(place, vm.vmid, use.gpu) for place, vm in vms.items() for use in vm.gpus if use.gpu in want.gpus]
    for (place, vmid, gpu), (other, other_vmid, card) in itertools.combinations(uses, 2):
        slot, others_slot = want.gpus[gpu]["slot"], want.gpus[card]["slot"]
        group = {device.address for device in facts.others_in_group(slot)}
        is_one = group & {device.address for device in facts.functions(others_slot)}
        if name in (place, other) and vmid != other_vmid and is_one:
            yield HomelabError(
                wanted=f"{gpu} ({facts.card(slot)}) for VM {vmid} (vms.{place}) while VM {other_vmid} (vms.{other}) "
                f"has {card}",
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


def _head(guest: str, config: GuestConfig, judged: JudgedGuest, same: str = "no change") -> str:
    """What is done with a guest.

    :param same: said where nothing is changed in it, and it goes on running or not.
    """
    power = POWER[judged.runs, judged.will_run] if judged.change or judged.runs != judged.will_run else same
    if judged.change and judged.runs and judged.will_run and {*judged.change} <= {*judged.waits}:
        power = "it isn't restarted: the new form of its option counts from its next start on"
    state = "running" if judged.runs else "off"
    return f"  {config.guest_kind.label} {config.id} ({config.name or guest}), {state}: {power}"
