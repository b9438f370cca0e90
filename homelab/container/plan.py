"""The plan for containers from a reading of the host: the driver's cards that each gets, and the refusals.

Pure functions, so that a preview and an `up` refuse the same things with the same words.
"""

from __future__ import annotations

from dataclasses import dataclass

from homelab.container import libraries, makers, other_makers
from homelab.errors import HomelabError, unlocking
from homelab.host import gates, ha
from homelab.host.classes import NVIDIA
from homelab.host.facts import CardUser, GuestConfig, HostFacts
from homelab.host.plan import Wanted, returns_to_driver
from homelab.properties import slot_of
from homelab.settings import Container, Host, Vm
from homelab.vm.plan import UNFINISHED, others_waiting, restart_carries_out
from homelab.vm.preview import POWER, copy_first, of_leaving
from remote_scripts.shared.container_note import Cards, refused_to_stack
from remote_scripts.shared.guest_kinds import CONTAINER


@dataclass(frozen=True)
class DriverCards:
    """The cards of NVIDIA's driver, or those that it has once the cards for VMs are bound.

    `slots`: number of /dev/nvidiaN -> slot; `predicted`: whether a reboot comes first, at which the driver counts its
    cards anew; `unavailable`: slot of another card -> who has it, for messages; `card_names`: slot -> the card's name
    in messages.
    """

    slots: dict[int, str]
    predicted: bool
    unavailable: dict[str, str]
    card_names: dict[str, str]

    @property
    def text(self) -> str:
        """The cards and those that are unavailable, for a message."""
        numbered = (
            ", ".join(f"{number} ({self.card_names.get(slot, slot)})" for number, slot in sorted(self.slots.items()))
            or "none"
        )
        unavailable = "; ".join(
            f"{self.card_names.get(slot, slot)} {reason}" for slot, reason in sorted(self.unavailable.items())
        )
        when = " at its next start" if self.predicted else ""
        return f"the driver has{when} {numbered}" + (f"; {unavailable}" if unavailable else "")


def cards(facts: HostFacts, want: Wanted, vms: dict[str, Vm], node: str, *, driver_comes: bool = False) -> DriverCards:
    """NVIDIA's cards of a host, by what the driver has or is going to have.

    :param vms: the host's, by name.
    :param node: the host's name in Proxmox VE.
    :param driver_comes: whether this program installs the host's driver, before a container needs it.
    """
    holders = {use.gpu: f"vms.{name}" for name, vm in vms.items() for use in vm.gpus}
    graphics = [device for device in facts.display_devices if device.vendor == NVIDIA]
    unavailable: dict[str, str] = {}
    for gpu, card in want.gpus.items():
        if card["use"] == "vm":
            holder = f"which {holders[gpu]} has" if gpu in holders else "which is for a VM (use: vm)"
            unavailable[card["slot"]] = f"is gpus.{gpu}, {holder}"
    gpu_names = {card["slot"]: gpu for gpu, card in want.gpus.items()}
    for device in graphics:
        if device.slot in unavailable:
            continue
        name = f"gpus.{gpu_names[device.slot]}, " if device.slot in gpu_names else ""
        card_users = facts.users_of(device.slot, node)
        users = ", ".join(str(user) for user in card_users)
        if device.driver == "vfio-pci" and not returns_to_driver(device.slot, facts, want):
            unavailable[device.slot] = f"is {name}bound to vfio-pci" + (f" for {users}" if users else "")
        elif (
            users
            and device.slot not in _slots_of_use(want, "shared")
            and not _was_shared(device.slot, card_users, facts)
        ):
            unavailable[device.slot] = f"is {name}given to {users}"
    card_names = {device.slot: facts.card(device.slot) for device in graphics}
    numbers_now = {address.rpartition(".")[0]: number for address, number in facts.nvidia_minors.items()}
    staying_slots = [device.slot for device in graphics if device.slot not in unavailable]
    leaves = any(slot in numbers_now for slot in _slots_of_use(want, "vm"))
    returns = any(returns_to_driver(slot, facts, want) for slot in staying_slots)
    comes = any(slot not in numbers_now for slot in staying_slots) and (driver_comes or returns)
    if not leaves and not comes:
        unavailable |= {
            device.slot: f"is on {device.driver or 'no driver'}"
            for device in graphics
            if device.slot not in {*unavailable, *numbers_now}
        }
        return DriverCards(
            {number: slot for slot, number in numbers_now.items() if slot not in unavailable},
            False,
            unavailable,
            card_names,
        )
    # At a boot the driver numbers the cards in the order in which it finds them.
    in_order = sorted(staying_slots, key=lambda slot: (slot not in numbers_now, numbers_now.get(slot, 0), slot))
    return DriverCards(dict(enumerate(in_order)), True, unavailable, card_names)


def _was_shared(slot: str, users: list[CardUser], facts: HostFacts) -> bool:
    """Whether a card was shared until this run, whose settings have it for containers alone: the host has it now, and
    only VMs name it that are off and got it from this program. This run takes it out of them; until then their
    hookscript keeps it.

    :param users: the guests whose configuration names the card.
    """
    return facts.handover.enabled and all(
        not user.running and facts.given_by_homelab(slot, user.vmid) for user in users
    )


def _slots_of_use(want: Wanted, use: str) -> list[str]:
    """The slots of the cards that have a use in the settings.

    :param use: `vm`, `lxc`, `host` or `shared`.
    """
    return [card["slot"] for card in want.gpus.values() if card["use"] == use]


def numbers(
    name: str, container: Container, driver_cards: DriverCards, want: Wanted
) -> tuple[list[int], list[HomelabError]]:
    """The numbers of NVIDIA's cards that a container gets, ascending, and an error for each that it can't have.

    :param name: the container's, in the settings.
    """
    if container.numbers == "all":
        none = [_refused(name, "all cards of the driver", "", driver_cards)]
        return sorted(driver_cards.slots), [] if driver_cards.slots else none
    by_slot = {slot: number for number, slot in driver_cards.slots.items()}
    chosen: list[int] = []
    errors: list[HomelabError] = []
    other_cards = makers.other_cards(container, want.gpus)
    for gpu in container.cards:
        slot = want.gpus[gpu]["slot"] if gpu in want.gpus else ""
        if gpu in other_cards:
            continue
        if slot in by_slot:
            chosen.append(by_slot[slot])
        else:
            card = f"gpus.{gpu} ({driver_cards.card_names.get(slot, slot)})"
            detail = f"{card} isn't one of NVIDIA's, or its driver hasn't taken it; "
            errors.append(_refused(name, f"gpus.{gpu}", detail, driver_cards))
    for number in container.numbers or []:
        if number in driver_cards.slots:
            chosen.append(number)
        else:
            errors.append(_refused(name, f"card {number} (gpuAssignment)", "", driver_cards))
    return sorted(chosen), errors


def _refused(name: str, what: str, detail: str, driver_cards: DriverCards) -> HomelabError:
    return HomelabError(
        wanted=f"{what} for containers.{name}",
        found=f"{detail}{driver_cards.text}",
        why="a container gets a card from the host's driver: it can't have a card that isn't there, is on vfio-pci "
        "or is a VM's",
        next="see `nvidia-smi -L` on the host; correct gpuAssignment, or name cards with use: lxc in gpus",
    )


def functions(slots: list[str], facts: HostFacts) -> list[str]:
    """Addresses of the cards' display functions, which tell their device nodes in /dev/dri."""
    return [device.address for device in facts.display_devices if device.slot in slots]


def check(
    name: str, container: Container, facts: HostFacts, driver_cards: DriverCards, want: Wanted
) -> tuple[list[int], list[HomelabError]]:
    """The numbers of NVIDIA's cards that a container gets, ascending, and every reason to refuse it.

    :param name: the container's, in the settings.
    """
    chosen, refused = of_driver(name, container, facts, driver_cards, want)
    return chosen, [*gates.readable(facts), *_container_refusals(name, container, facts), *refused]


def of_driver(
    name: str, container: Container, facts: HostFacts, driver_cards: DriverCards, want: Wanted
) -> tuple[list[int], list[HomelabError]]:
    """The same, without what is refused of the container itself."""
    other_cards = makers.other_cards(container, want.gpus)
    wanted = container.numbers if container.gpus is None else [gpu for gpu in container.gpus if gpu not in other_cards]
    if not wanted:
        return [], []
    if facts.nvidia.trouble and facts.nvidia.trouble[0] and not driver_cards.predicted:
        return [], [
            HomelabError(
                wanted=f"NVIDIA's driver loaded on the host, for containers.{name}",
                found=facts.nvidia.trouble[0],
                why="a container shares a card with the host's driver: without it there are no device nodes to give it",
                next=facts.nvidia.trouble[1],
            )
        ]
    return numbers(name, container, driver_cards, want)


def refused_cards(gpus: list[str], facts: HostFacts, host: Host, want: Wanted, node: str) -> list[HomelabError]:
    """Why a container could not have these cards after the next `up`.

    :param node: the host's name in Proxmox VE.
    """
    container = Container.model_validate({"host": "host", "ctid": 100, "gpus": gpus})
    driver_cards = cards(facts, want, {}, node, driver_comes=host.nvidia is not None)
    others = other_makers.shared("NAME", container, facts, want.gpus, node, after_boot=True)[1]
    return [*of_driver("NAME", container, facts, driver_cards, want)[1], *others]


def _container_refusals(name: str, container: Container, facts: HostFacts) -> list[HomelabError]:
    """Reasons not to change a container, whatever cards it gets."""
    config = facts.guests.config(container.ctid)
    if config is None:
        away = facts.cluster.elsewhere(f"container {container.ctid}, as containers.{name}", container.ctid)
        if away is not None:
            return [away]
        return [] if container.create else [_missing(name, container, facts)]
    label = f"container {container.ctid}, as containers.{name}"
    if config.kind != "lxc":
        return [
            HomelabError(
                wanted=label,
                found=f"{container.ctid} is a virtual machine ({config.values.get('name', 'without a name')})",
                why="cards are shared with containers; a VM gets one whole",
                next=f"correct containers.{name}.ctid, or describe the VM under homelab:vms",
            )
        ]
    if lock := config.values.get("lock"):
        return [
            HomelabError(
                wanted=f"{label}, free to be changed",
                found=f"it is locked: {lock}",
                why="something else works on it now (a backup, a snapshot, a migration)",
                next=f"{unlocking('lxc', container.ctid, lock)}; then run `pulumi up` again",
            )
        ]
    return []


def _missing(name: str, container: Container, facts: HostFacts) -> HomelabError:
    containers = [_title(config) for config in facts.guests.configs if config.kind == "lxc"]
    return HomelabError(
        wanted=f"container {container.ctid}, to be adopted as containers.{name}",
        found=f"no such container on the host; there are: {', '.join(containers) or 'none'}",
        why="cards can't be given to a container that isn't there",
        next=f"correct containers.{name}.ctid, or describe the container under containers.{name}.create; or take "
        f"containers.{name} out of the settings, if the container was removed",
    )


def _title(config: GuestConfig) -> str:
    return f"{config.id} ({config.values.get('hostname', '')})"


def describe(
    facts: HostFacts,
    want: Wanted,
    containers: dict[str, Container],
    vms: dict[str, Vm],
    node: str,
    *,
    driver_comes: bool = False,
    stack: str = "",
) -> tuple[str, list[HomelabError]]:
    """The plan's lines, and the refusals.

    :param containers: the host's, by name.
    :param vms: the host's, by name.
    :param node: the host's name in Proxmox VE.
    :param driver_comes: whether this program installs the host's driver, before a container needs it.
    :param stack: PROJECT/STACK, whose containers may leave the settings.
    """
    lines: list[str] = []
    errors: list[HomelabError] = []
    driver_cards = cards(facts, want, vms, node, driver_comes=driver_comes)
    for name, container in containers.items():
        chosen, refused = check(name, container, facts, driver_cards, want)
        shared, other_refusals = other_makers.shared(name, container, facts, want.gpus, node, after_boot=True)
        errors += [*refused, *other_refusals, *libraries.refusals(name, container, facts, want.gpus)]
        devices = "; ".join([*([_devices(chosen)] if chosen else []), *other_makers.lines(facts, shared)]) or "no card"
        config = facts.guests.config(container.ctid)
        if config is None:
            lines.append(f"  container {container.ctid} ({name}): created with {devices}")
        else:
            runs = "running" if container.ctid in facts.guests.running else "off"
            lines.append(f"  container {_title(config)}, {runs}: {devices}")
            slots = [driver_cards.slots[number] for number in chosen]
            wanted = makers.cards_of(container, chosen, functions(slots, facts), shared)
            nodes = [f"/dev/nvidia{number}" for number in chosen]
            nodes += [node for card in shared.values() for node in card["nodes"]]
            changed, in_the_way = _of_existing(container, config, facts, wanted, nodes, stack)
            lines += changed
            errors += in_the_way
        if container.libraries:
            lines.append(f"    packages inside for its cards: {', '.join(container.libraries)}")
    leaving = of_leaving(facts, CONTAINER, [container.ctid for container in containers.values()], stack)
    return "\n".join([*lines, *leaving[0]]), [*errors, *leaving[1]]


def _of_existing(
    container: Container, config: GuestConfig, facts: HostFacts, cards: Cards, nodes: list[str], stack: str
) -> tuple[list[str], list[HomelabError]]:
    """The plan's lines for a container that is there, and refusals.

    :param cards: that it is to have.
    :param nodes: of these, as far as they are known.
    :param stack: PROJECT/STACK; empty: it isn't known.
    """
    ctid, note = container.ctid, facts.container_note(container.ctid)
    if stack and (refused := refused_to_stack(note, ctid, stack)):
        return [], [HomelabError(**vars(refused))]
    given = note.given.cards
    drift = [line for shared in facts.containers if shared.id == ctid for line in shared.drift]
    # One that was given nothing yet may have all of them by its owner's lines.
    has_all = all(any(entry.gives(node) for entry in config.container.entries) for node in nodes)
    is_changed = not has_all if given is None else bool(drift) or given != cards
    running, power = ctid in facts.guests.running, container.wanted_power
    will_run = running if power == "keep" else power == "running"
    if not is_changed and running is will_run:
        return [], []
    gone = makers.addresses(given or Cards()) - makers.addresses(cards)
    lines = [f"    - {facts.card(slot)}" for slot in sorted({slot_of(address) for address in gone})]
    lines.append(f"    {POWER[running, will_run]}")
    lines += [f"    {UNFINISHED}"] if note.is_under_way else []
    if others := others_waiting(config, note) if running and is_changed else ():
        lines.append(f"    {restart_carries_out(others)}")
    lines += copy_first(container) if is_changed else []
    return lines, ha.refused_to_change(facts, CONTAINER, ctid)


def _devices(chosen: list[int]) -> str:
    return ", ".join(f"/dev/nvidia{number}" for number in chosen) + ", nvidiactl, nvidia-uvm"
