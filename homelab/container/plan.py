"""The plan for containers from a reading of the host: the driver's cards that each gets, and the refusals.

Pure functions, so that a preview and an `up` refuse the same things with the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from homelab.container import libraries, makers, other_makers
from homelab.errors import HomelabError
from homelab.facts.guests import CardUser, GuestConfig, guest_note
from homelab.facts.host import HostFacts
from homelab.findings import JudgedGuest
from homelab.host import ha
from homelab.host.plan import returns_to_driver
from homelab.properties import slot_of
from homelab.settings import Container, Vm
from homelab.shapes import CardPlan, SharedCard
from homelab.vm import refusals
from homelab.vm.cards import is_to_run
from homelab.vm.plan import UNFINISHED, carries_out, changes, others_waiting, power_steps
from homelab.vm.preview import POWER, copy_first
from remote_scripts.containers.card_nodes import missing, nodes_of, renumbered
from remote_scripts.containers.container_text import decided
from remote_scripts.notes.container_note import Cards, ContainerNote
from remote_scripts.pve.container_conf import conf_text
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.properties import differing


@dataclass(frozen=True)
class DriverCards:
    """The cards of NVIDIA's driver, or those that it has once the cards for VMs are bound.

    `facts`: of their host; `slots`: number of /dev/nvidiaN -> slot; `predicted`: whether a reboot comes first, at which
    the driver counts its cards anew; `unavailable`: slot of another card -> who has it, for messages.
    """

    facts: HostFacts
    slots: dict[int, str]
    predicted: bool
    unavailable: dict[str, str]

    @property
    def text(self) -> str:
        """The cards and those that are unavailable, for a message."""
        named = self.facts.card
        numbered = ", ".join(f"{number} ({named(slot)})" for number, slot in sorted(self.slots.items()))
        unavailable = "".join(f"; {named(slot)} {reason}" for slot, reason in sorted(self.unavailable.items()))
        when = " at its next start" if self.predicted else ""
        return f"the driver has{when} {numbered or 'none'}{unavailable}"


def cards(
    facts: HostFacts,
    gpus: Mapping[str, CardPlan],
    vms: Mapping[str, Vm],
    vfio_words: str = "",
    *,
    driver_comes: bool = False,
) -> DriverCards:
    """NVIDIA's cards of a host, by what the driver has or is going to have.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    :param vms: the host's, by name.
    :param vfio_words: of its next boot.
    :param driver_comes: whether this program installs the host's driver, before a container needs it.
    """
    holders = {use.gpu: f"vms.{name}" for name, vm in vms.items() for use in vm.gpus}
    graphics = [device for device in facts.display_devices if device.is_nvidia]
    unavailable: dict[str, str] = {}
    for gpu, card in gpus.items():
        if card["use"] == "vm":
            holder = f"which {holders[gpu]} has" if gpu in holders else "which is for a VM (use: vm)"
            unavailable[card["slot"]] = f"is gpus.{gpu}, {holder}"
    gpu_names = {card["slot"]: gpu for gpu, card in gpus.items()}
    shared_slots = _slots_of_use(gpus, "shared")
    for device in graphics:
        if device.slot in unavailable:
            continue
        name = f"gpus.{gpu_names[device.slot]}, " if device.slot in gpu_names else ""
        card_users = facts.users_of(device.slot)
        users = ", ".join(str(user) for user in card_users)
        if device.driver == "vfio-pci" and not returns_to_driver(device.slot, facts, gpus, vfio_words):
            unavailable[device.slot] = f"is {name}bound to vfio-pci" + (f" for {users}" if users else "")
        elif users and device.slot not in shared_slots and not _was_shared(device.slot, card_users, facts):
            unavailable[device.slot] = f"is {name}given to {users}"
    numbers_now = {address.rpartition(".")[0]: number for address, number in facts.nvidia_minors.items()}
    staying_slots = [device.slot for device in graphics if device.slot not in unavailable]
    leaves = any(slot in numbers_now for slot in _slots_of_use(gpus, "vm"))
    returns = any(returns_to_driver(slot, facts, gpus, vfio_words) for slot in staying_slots)
    comes = any(slot not in numbers_now for slot in staying_slots) and (driver_comes or returns)
    if leaves or comes:
        # At a boot the driver numbers the cards in the order in which it finds them.
        in_order = sorted(staying_slots, key=lambda slot: (slot not in numbers_now, numbers_now.get(slot, 0), slot))
        return DriverCards(facts, dict(enumerate(in_order)), True, unavailable)
    drivers = {device.slot: device.driver or "no driver" for device in graphics}
    without = {slot: f"is on {driver}" for slot, driver in drivers.items() if slot not in {*unavailable, *numbers_now}}
    slots = {number: slot for slot, number in numbers_now.items() if slot not in unavailable}
    return DriverCards(facts, slots, False, {**unavailable, **without})


def _was_shared(slot: str, users: list[CardUser], facts: HostFacts) -> bool:
    # Whether a card was shared until this run, whose settings give it to containers alone. The host has it now, and the
    # only VMs that name it are off and got it from this program. This run takes it out of them; until then their
    # hookscript keeps it.
    return facts.handover.enabled and all(
        not user.running and facts.given_by_homelab(slot, user.vmid) for user in users
    )


def _slots_of_use(gpus: Mapping[str, CardPlan], use: str) -> list[str]:
    return [card["slot"] for card in gpus.values() if card["use"] == use]


def numbers(
    name: str, container: Container, driver_cards: DriverCards, gpus: Mapping[str, CardPlan]
) -> tuple[list[int], list[HomelabError]]:
    """The numbers of NVIDIA's cards that a container gets, ascending, and an error for each that it can't have.

    :param name: the container's, in the settings.
    :param gpus: the host's cards of the settings, as HostProbe has them.
    """
    if container.numbers == "all":
        none = [_refused(name, "all cards of the driver", "", driver_cards)]
        return sorted(driver_cards.slots), [] if driver_cards.slots else none
    by_slot = {slot: number for number, slot in driver_cards.slots.items()}
    others, assigned = makers.other_cards(container, gpus), container.numbers or []
    slots = {gpu: gpus[gpu]["slot"] if gpu in gpus else "" for gpu in container.cards if gpu not in others}
    errors = [
        _refused(
            name,
            f"gpus.{gpu}",
            f"gpus.{gpu} ({driver_cards.facts.card(slot)}) isn't one of NVIDIA's, or its driver hasn't taken it; ",
            driver_cards,
        )
        for gpu, slot in slots.items()
        if slot not in by_slot
    ]
    there = [number for number in assigned if number in driver_cards.slots]
    gone = [number for number in assigned if number not in there]
    errors += [_refused(name, f"card {number} (gpuAssignment)", "", driver_cards) for number in gone]
    return sorted([*there, *(by_slot[slot] for slot in slots.values() if slot in by_slot)]), errors


def _refused(name: str, what: str, detail: str, driver_cards: DriverCards) -> HomelabError:
    return HomelabError(
        wanted=f"{what} for containers.{name}",
        found=f"{detail}{driver_cards.text}",
        why="a container gets a card from the host's driver: it can't have a card that isn't there, is on vfio-pci "
        "or is a VM's",
        next="see `nvidia-smi -L` on the host; correct gpuAssignment, or name cards with use: lxc in gpus",
    )


@dataclass(frozen=True)
class ContainerWish:
    """What a container is to be.

    `name`: its in the settings; `power`: what it is to be afterwards, running, stopped, or `keep`; `is_made`: whether
    it is made where there is none; `shared`: its cards of other makers than NVIDIA, by their names in the settings;
    `refused`: what stands against its cards and their packages.
    """

    name: str
    ctid: int
    cards: Cards
    power: str = "keep"
    is_made: bool = False
    shared: Mapping[str, SharedCard] = field(default_factory=dict)
    refused: Sequence[HomelabError] = ()


def wish_of(
    name: str,
    container: Container,
    facts: HostFacts,
    gpus: Mapping[str, CardPlan],
    driver_cards: DriverCards,
    *,
    after_boot: bool = False,
) -> ContainerWish:
    """What the settings want of a container, as far as it can have it.

    :param name: the container's, in the settings.
    :param gpus: its host's cards of the settings, as HostProbe has them.
    :param driver_cards: as of `cards`.
    :param after_boot: whether a reboot comes first, which gives cards back to their drivers.
    """
    other_cards = makers.other_cards(container, gpus)
    wanted = container.numbers if container.gpus is None else [gpu for gpu in container.gpus if gpu not in other_cards]
    chosen, refused = numbers(name, container, driver_cards, gpus)
    if wanted and facts.nvidia.trouble and facts.nvidia.trouble[0] and not driver_cards.predicted:
        no_driver = HomelabError(
            wanted=f"NVIDIA's driver loaded on the host, for containers.{name}",
            found=facts.nvidia.trouble[0],
            why="a container shares a card with the host's driver: without it there are no device nodes to give it",
            next=facts.nvidia.trouble[1],
        )
        chosen, refused = [], [no_driver]
    shared, others_refused = other_makers.shared(name, container, facts, gpus, after_boot=after_boot)
    software_refused = [*libraries.refusals(name, container, facts, gpus), *_mounted(name, container, facts)]
    slots = [driver_cards.slots[number] for number in chosen]
    functions = [device.address for device in facts.display_devices if device.slot in slots]
    return ContainerWish(
        name,
        container.ctid,
        makers.cards_of(container, chosen, functions, shared),
        container.wanted_power,
        container.create is not None,
        shared,
        [*refused, *others_refused, *software_refused],
    )


def _mounted(name: str, container: Container, facts: HostFacts) -> Iterator[HomelabError]:
    """The refusal of NVIDIA's software in a container that has the host's by its owner's lines: rename(2), by which
    dpkg puts each file in its place, fails for one that is mounted."""
    config = facts.guests.config(container.ctid)
    if config and container.nvidia and (mounts := config.nvidia_mounts):
        yield HomelabError(
            wanted=f"containers.{name}.nvidia, whose packages apt installs in container {container.ctid}",
            found=f"mounted there from the host by lines of its own (lxc.mount.entry): {', '.join(mounts)}",
            why="they are the host's files, so of its driver's version already, and apt can't replace a mounted file",
            next=f"take nvidia out of containers.{name}; or take these lines out of the container, and restart it",
        )


def as_given(name: str, ctid: int, facts: HostFacts, power: str = "keep") -> ContainerWish:
    """A container as it was given its cards last, by the numbers that these have now."""
    cards, there = facts.container_note(ctid).given.cards or Cards(), facts.card_nodes
    now = renumbered(there, cards)
    return ContainerWish(name, ctid, now if len(now.minors) == len(cards.minors) else cards, power)


def judge_container(wish: ContainerWish, facts: HostFacts, stack: str = "") -> JudgedGuest:
    """What is planned for a container, and what is judged of it.

    :param facts: of its host.
    :param stack: PROJECT/STACK; empty: it isn't known.
    """
    config, note = facts.guests.config(wish.ctid), facts.container_note(wish.ctid)
    place, runs = f"containers.{wish.name}", wish.ctid in facts.guests.running
    title = f"container {_title(config) if config else wish.ctid} to be as {place} says"
    absent = [*refusals.absent(CONTAINER, wish.ctid, place, facts, stack, is_made=wish.is_made)]
    if config is None or absent:
        steps = [
            f"container {wish.ctid}: not there -> created" if wish.is_made else f"container {wish.ctid} isn't there"
        ]
        return JudgedGuest(title=title, steps=steps, against=[*absent, *wish.refused])
    there, remarks = facts.card_nodes, list[str]()
    will_run = runs if facts.guests.unlisted else is_to_run(runs, wish.power)
    options, change = dict[str, str | None](), dict[str, str | None]()
    lacking = missing(there, nodes_of(there, wish.cards))
    if not lacking and not wish.refused:  # else nothing is written
        new = decided(there, conf_text(config.lines), note, wish.cards, note.given.groups)
        options, change = dict(new.options), differing(new.target, config.options)
    steps = [f"not on the host now: {', '.join(lacking)}"] if lacking and not wish.refused else []
    steps += _shown(change, config)
    steps += power_steps(runs, will_run)
    steps += [UNFINISHED] * note.is_under_way
    if not note and guest_note(facts.ledger, CONTAINER, wish.ctid, ContainerNote):
        steps.append(f"container {wish.ctid} isn't the container that was given its cards")
    if wish.refused and note.given.cards != wish.cards:
        steps.append("its cards aren't those that it was given")
    if change and runs and (waiting := others_waiting(config, note)):
        remarks = [carries_out(waiting)]
    name, lock = f"container {_title(config)}", config.values.get("lock")
    of_others = [*refusals.of_other_stack(CONTAINER, wish.ctid, wish.name, note, stack)]
    steps += ["another stack has given it its cards"] * bool(of_others)
    return JudgedGuest(
        title=title,
        steps=steps,
        against=[
            *(ha.refused_to_change(facts, CONTAINER, wish.ctid) if steps else ()),
            *of_others,
            *wish.refused,
        ],
        held=[*refusals.locked(CONTAINER, wish.ctid, name, lock)],
        remarks=remarks,
        runs=runs,
        will_run=will_run,
        options=options,
        change=change,
    )


def _shown(change: Mapping[str, str | None], config: GuestConfig) -> list[str]:
    """What is written. Of a new device the path: for whom it is, its groups say, which are asked of it once it has its
    cards.
    """
    new = {key: value and value.partition(",")[0] for key, value in change.items() if key not in config.options}
    return changes({**change, **new}, config.options)


def _title(config: GuestConfig) -> str:
    return f"{config.id} ({config.values.get('hostname', '')})"


def lines(name: str, container: Container, wish: ContainerWish, judged: JudgedGuest, facts: HostFacts) -> list[str]:
    """A container's lines of a host's plan.

    :param name: its, in the settings.
    """
    nvidias = [*(f"/dev/nvidia{number}" for number in wish.cards.minors), "nvidiactl", "nvidia-uvm"]
    own = [", ".join(nvidias)] if wish.cards.minors else []
    devices = "; ".join([*own, *other_makers.lines(facts, wish.shared)]) or "no card"
    packages = [f"    packages inside for its cards: {', '.join(container.libraries)}"] * bool(container.libraries)
    config, note = facts.guests.config(container.ctid), facts.container_note(wish.ctid)
    if config is None:
        return [f"  container {container.ctid} ({name}): created with {devices}", *packages]
    power = judged.runs, judged.will_run
    # One whose nodes aren't there keeps the lines that it has.
    acts = judged.change or note.before or power[0] is not power[1] or note.given.cards != wish.cards
    gone = makers.addresses(note.given.cards or Cards()) - makers.addresses(wish.cards)
    return [
        f"  container {_title(config)}, {'running' if judged.runs else 'off'}: {devices}",
        *(f"    - {facts.card(slot)}" for slot in sorted({slot_of(address) for address in gone if judged.steps})),
        *([f"    {POWER[power]}"] if acts and judged.steps else []),
        *(f"    {line}" for line in (*judged.steps, *judged.remarks, *judged.met)),
        *(copy_first(container) if judged.change else []),
        *packages,
    ]
