"""The plan for a host's VMs, from a reading of the host. It refuses in a preview what an `up` would refuse, with the
same messages."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.errors import HomelabError
from homelab.host import fabric, gates, graphics, options
from homelab.host.facts import HostFacts, noted_in
from homelab.host.plan import Wanted
from homelab.settings import Container, Host, Vm
from homelab.shapes import CardPlan, Record
from homelab.vm import files
from homelab.vm.config import Change, VmCard, Wish, change_to, check, identity, recorded, same_vm, taken_over


def wish_of(name: str, vm: Vm, host: Host, cards: Mapping[str, CardPlan]) -> Wish:
    """What the settings want of a VM; without cards that the host doesn't have.

    :param name: the VM's in the settings.
    :param cards: plans of the host's cards, by name.
    """
    vm_cards = [
        VmCard(
            **{**use.model_dump(mode="json"), **({"driver": "keep"} if cards[use.gpu]["keep"] else {})},
            mapping=host.mapping_of(use.gpu),
            slot=cards[use.gpu]["path"],
        )
        for use in vm.gpus
        if use.gpu in cards
    ]
    return Wish(name, vm.vmid, vm_cards, vm.machine, vm.display, vm.allow_shared_onboot)


def describe(
    name: str, facts: HostFacts, host: Host, want: Wanted, vms: dict[str, Vm]
) -> tuple[str, list[HomelabError]]:
    """The plan's lines, and refusals.

    A running VM that has a card which another one is to get is no refusal here: only a run knows whether this stack
    gave it that card, and so may take it.

    :param name: the host's name in the settings.
    :param want: the host's plan.
    :param vms: those of this host, by name.
    """
    configs = {config.id: config.values for config in facts.guests.configs if config.kind == "vm"}
    lines = [files.describe(host)] if host.downloads else []
    keeping = [f"vms.{guest}.gpus ({use.gpu})" for guest, vm in vms.items() for use in vm.gpus if use.driver == "keep"]
    errors = [error for place in keeping for error in options.refused(facts, place, options.KEEP)]
    errors += _split_groups(name, facts, host, want, vms)
    errors += _split_boards(facts, host, want, vms)
    for guest, vm in vms.items():
        wish = wish_of(guest, vm, host, want.gpus)
        if vm.vmid in configs:
            vm_lines, vm_errors = _of_existing(host.node or name, facts, vm, wish, configs[vm.vmid])
            errors += vm_errors
        elif (elsewhere := facts.cluster.elsewhere(f"VM {vm.vmid}, as vms.{guest}", vm.vmid)) is not None:
            vm_lines = []
            errors.append(elsewhere)
        elif vm.create is None:
            vm_lines = []
            errors.append(_missing(guest, vm, configs))
        else:
            its_cards = ", ".join(card.hostpci for card in wish.cards) or "no card"
            vm_lines = [f"  VM {vm.vmid} ({guest}): created with {its_cards}"]
        lines += vm_lines
        for use in vm.gpus:
            if use.gpu in want.gpus:
                slot = want.gpus[use.gpu]["slot"]
                remarks = graphics.rom_remarks(facts, use.gpu, slot, romfile=use.romfile, legacy_igd=use.legacy_igd)
                if use.legacy_igd:
                    errors += graphics.legacy(facts, f"gpus.{use.gpu}", slot)
                    remarks = [*remarks, *graphics.legacy_remarks(facts, use.gpu, slot)]
                lines += [f"    {remark}" for remark in remarks]
    return "\n".join(lines), errors


def _of_existing(
    node: str, facts: HostFacts, vm: Vm, wish: Wish, config: dict[str, str]
) -> tuple[list[str], list[HomelabError]]:
    """The plan's lines for a VM that is there, and refusals.

    :param node: the host's name in Proxmox VE.
    :param config: the VM's current configuration.
    """
    users = {card.gpu: facts.guests.users_of(card.slot, node) for card in wish.cards}
    others = [user for of_card in users.values() for user in of_card if user.vmid != vm.vmid and user.running]
    refusals, remarks = check(
        config, wish, {gpu: [user for user in of_card if user not in others] for gpu, of_card in users.items()}
    )
    noted = noted_in(facts.ledger, f"vm/{vm.vmid}")
    # The whole record, as the state has it: what was changed since is drift.
    is_same = noted is not None and same_vm(str(noted.get("identity", "")), identity(config))
    record: Record = noted.get("record", {}) if noted is not None and is_same else {}
    certain = noted is not None or not facts.cluster.name
    more_refusals, more_remarks = taken_over(config, wish, record, facts.guests, node, certain=certain)
    change = change_to(config, *recorded(config, wish, record))
    lines = [
        _line(wish.vm, vm, config, change, running=vm.vmid in facts.guests.running),
        *(copy_first(vm) if change else []),
        *(f"    {other} runs with a card of it now: refused, unless it was given by this stack" for other in others),
        *(f"    {remark}" for remark in (*more_remarks, *remarks)),
    ]
    return lines, [*refusals, *more_refusals]


def _split_boards(facts: HostFacts, host: Host, want: Wanted, vms: dict[str, Vm]) -> list[HomelabError]:
    """Refusals of cards that NVSwitches join, for several VMs; the host's gate checks that all of them go to VMs."""
    errors = []
    for vm in vms.values():
        slots = {use.gpu: want.gpus[use.gpu]["slot"] for use in vm.gpus if use.gpu in want.gpus}
        for gpu, slot in slots.items():
            errors += fabric.refused(facts, gpu, host.gpus[gpu], slot, list(slots.values()))
    return errors


def _split_groups(name: str, facts: HostFacts, host: Host, want: Wanted, vms: dict[str, Vm]) -> list[HomelabError]:
    """Refusals of two cards of one IOMMU group for two VMs: the first VM that starts takes the whole group."""
    uses = [(vm_name, vm, use.gpu) for vm_name, vm in vms.items() for use in vm.gpus if use.gpu in want.gpus]
    errors = []
    for number, (guest, vm, gpu) in enumerate(uses):
        slot = want.gpus[gpu]["slot"]
        group = {device.address for device in facts.others_in_group(slot)}
        others = [
            (f"VM {other.vmid} (vms.{other_guest})", other_gpu, want.gpus[other_gpu]["slot"])
            for other_guest, other, other_gpu in uses[number + 1 :]
            if other.vmid != vm.vmid
        ]
        vmids = {planned.vmid for planned in vms.values()}
        foreign = {device.slot for device in facts.display_devices if device.address in group}
        others += [
            (f"{user}, which runs,", place, place)
            for place in sorted(foreign)
            for user in facts.users_of(place, host.node or name)
            if user.running and user.vmid not in vmids
        ]
        for holder, card, place in others:
            if group & {device.address for device in facts.functions(place)}:
                errors.append(
                    HomelabError(
                        wanted=f"{gpu} ({facts.card(slot)}) for VM {vm.vmid} (vms.{guest}) while {holder} has {card}",
                        found=f"both cards are in one {gates.predicted(facts)}IOMMU group",
                        why="the VM that starts first takes the whole group; the other one can't start as long as "
                        "it runs",
                        next="give both cards to the same VM, or put one of them into a slot with a group of its own",
                    )
                )
    return errors


def copy_first(guest: Vm | Container) -> list[str]:
    """The plan's line with the command that backs up an adopted guest; homelab records the guest's configuration alone.
    Empty for a created guest."""
    return [] if guest.create else [f"    to back it up first: `vzdump {guest.guest_id}` on the host"]


# Whether a VM runs, before and after an `up` -> what is done with it.
_POWER = {
    (True, True): "it is shut down and started again",
    (True, False): "it is shut down",
    (False, True): "it is started",
    (False, False): "its options change",
}


def _line(guest: str, vm: Vm, config: dict[str, str], change: Change, *, running: bool) -> str:
    will_run = running if vm.wanted_power == "keep" else vm.wanted_power == "running"
    power = _POWER[running, will_run] if change or running != will_run else "no change"
    line = f"  VM {vm.vmid} ({config.get('name', guest)}), {'running' if running else 'off'}: {power}"
    return "\n".join([line, *_before_and_after(config, change)])


def _before_and_after(config: dict[str, str], change: Change) -> list[str]:
    """Lines of the options that change, with their current and their future values."""
    return [
        f"    {sign} {key}: {values[key]}"
        for key in sorted({*change.keys})
        for sign, values in (("-", config), ("+", change.values))
        if key in values
    ]


def _missing(guest: str, vm: Vm, configs: dict[int, dict[str, str]]) -> HomelabError:
    names = ", ".join(f"{vmid} ({values.get('name', '')})" for vmid, values in sorted(configs.items()))
    return HomelabError(
        wanted=f"VM {vm.vmid}, to be adopted as vms.{guest}",
        found=f"no such VM on the host; there are: {names or 'none'}",
        why="a card can't be given to a VM that isn't there",
        next=f"correct vms.{guest}.vmid, or describe the VM under vms.{guest}.create",
    )
