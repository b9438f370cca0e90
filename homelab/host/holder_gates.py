"""The gates of a card that goes to the host's driver while something else has it: other configuration binds it, or a
VM's configuration names it. With the steps that release it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from homelab.cards import released
from homelab.cards.group_gates import new_entries
from homelab.errors import HomelabError
from homelab.facts.guests import CardUser
from homelab.facts.host import HostFacts
from homelab.host import ha
from homelab.settings import Gpu, Host


def bound_by_hand(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> Iterator[HomelabError]:
    """A gate: a card that stays with the host isn't bound to vfio-pci by other configuration than this program's, or
    takeOver lets this program's word count instead."""
    for name, slot in slots.items():
        if host.gpus[name].use != "vm":
            yield from _card_bound_by_hand(facts, host, name, slot)


def _card_bound_by_hand(facts: HostFacts, host: Host, name: str, slot: str) -> Iterator[HomelabError]:
    # Also those that homelab's word binds, too (takeOver): the other configuration binds them once that word is gone.
    bound = [device for device in facts.functions(slot) if facts.kept_by_hand(device)]
    gpu, kept_reason = host.gpus[name], released.why_still_bound(facts, bound)
    # Those that homelab's word has returned to the host's driver, and without takeOver won't any more.
    returned = [] if host.take_over or released.ids_in_effect(facts) is None else facts.functions(slot)
    returned = [device for device in returned if device not in bound and facts.named_at_next_boot(device)]
    bound += returned
    if bound and (kept_reason or not host.take_over):
        by_ids = ",".join(facts.ids_by_others(facts.cmdline.running).values())
        ids = sorted({device.id for device in bound if device.is_named(by_ids)})
        steps = [f"take {', '.join(ids)} out there, {new_entries(facts)}, `update-initramfs -u -k all`"] if ids else []
        # If no loaded driver of the host takes the card, driverctl fails and keeps its file, unless it is told not to
        # look for a driver.
        steps += [
            f"`driverctl --noprobe unset-override {device.address}` while no VM runs with it"
            for device in bound
            if facts.override_files(device)
        ]
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with the host's driver (use: {gpu.use})",
            found=f"{', '.join(device.address for device in bound)} "
            f"on vfio-pci{' from the next start on' if returned else ''}, by {', '.join(facts.who_binds(bound))}"
            + (f"; {kept_reason}" if host.take_over else ""),
            why="this program didn't write that and doesn't remove it, so the host's driver would not get the card",
            next=(
                ""
                if kept_reason
                else "set takeOver: true for the host: a word of this program's then counts instead, until "
                "`pulumi destroy`; or "
            )
            + f"{', '.join(steps)}, reboot, and run `pulumi up` again; or set gpus.{name}.use: vm",
        )


def out_of_vms(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: a card that goes back to the host's driver is in no VM's configuration.

    The host restarts before a card is taken out of a VM, and a VM that starts with the host would take the card from
    that driver.
    """
    return _still_in_vm(facts, name, gpu, slot, facts.users_of(slot))


def without_hook(
    facts: HostFacts, host: Host, slots: Mapping[str, str], hooked: Mapping[str, Collection[int]]
) -> Iterator[HomelabError]:
    """A gate: a VM that starts with the host and has a card that is going to be handed over (use: shared) gets the
    hookscript before the restart.

    :param hooked: card's name -> ids of the adopted VMs that may take it, which get the hookscript before the host
        restarts.
    """
    for name, slot in slots.items():
        if host.gpus[name].use == "shared":
            users = facts.users_of(slot)
            starting = [user for user in users if user.onboot or ha.is_kept_started(facts, user.vmid)]
            unhooked = [user for user in starting if user.vmid not in hooked.get(name, ())]
            yield from _still_in_vm(facts, name, host.gpus[name], slot, unhooked)


def _still_in_vm(facts: HostFacts, name: str, gpu: Gpu, slot: str, users: list[CardUser]) -> Iterator[HomelabError]:
    if users and (facts.bound_by_homelab(slot) or any(map(facts.kept_by_hand, facts.functions(slot)))):
        wanted = f"gpus.{name} ({facts.card(slot)}) with the host's driver from its next start on (use: {gpu.use})"
        yield _release_first(facts, slot, users, wanted)


def left_with_vm(
    facts: HostFacts, host: Host, slots: Mapping[str, str], before: Collection[str]
) -> Iterator[HomelabError]:
    """A gate: a card that the settings no longer name, and that NVIDIA's driver is going to have, is in no VM's
    configuration.

    :param slots: of all cards that the settings name.
    :param before: slots of the cards that they named for VMs until now.
    """
    if not (host.nvidia or facts.nvidia.version or facts.nvidia.installed):
        return
    leaving = {
        device.slot
        for device in facts.display_devices
        if device.is_nvidia
        and device.slot in before
        and device.slot not in slots.values()
        and not facts.named_at_next_boot(device)  # that keeps it on vfio-pci
    }
    for slot in sorted(leaving):
        if users := facts.users_of(slot):
            wanted = (
                f"{facts.card(slot)} with NVIDIA's driver from the host's next start on, since no card of gpus is it"
            )
            yield _release_first(facts, slot, users, wanted)


def _release_first(facts: HostFacts, slot: str, users: list[CardUser], wanted: str) -> HomelabError:
    """The refusal of a card that VMs have, with the steps by which the user takes it out of them before the host
    restarts."""
    options = {user: ", ".join(_option_lines(facts, slot, user)) for user in users}
    holders = "; ".join(f"{user} has it ({lines or 'it runs with it'})" for user, lines in options.items())
    by_hand = "; ".join(_release_by_hand(facts, slot, user) for user in users)
    is_given = any(facts.given_by_homelab(slot, user.vmid) for user in users)
    return HomelabError(
        wanted=wanted,
        found=f"it is bound for VMs, and {holders}",
        why="the host restarts before a card is taken out of a VM: a VM that starts then would take the card from its "
        "new driver; nothing was changed",
        next="first have it in gpus with use: vm, without a container, take it out of the VM's gpus, and run `pulumi "
        f"up`, which takes out what it gave. Of a VM that has the card still: {by_hand}. After that set what you have "
        "set now: a second `pulumi up` restarts the host"
        if is_given
        else f"{by_hand}; then run `pulumi up` again",
    )


def _option_lines(facts: HostFacts, slot: str, user: CardUser) -> list[str]:
    """The options by which a VM has the card, as lines of its configuration."""
    config = facts.guests.config(user.vmid)
    keys = facts.options_of(slot, user.vmid)
    return [f"{key}: {config.values.get(key) or config.current[key]}" for key in keys] if config else []


def _release_by_hand(facts: HostFacts, slot: str, user: CardUser) -> str:
    keys = ",".join(facts.options_of(slot, user.vmid))
    command = f"; note that line, which nothing else keeps: `qm set {user.vmid} --delete {keys}`" if keys else ""
    return f"shut {user} down, if it runs, and take the card out of it{command}"
