"""The tree of what is judged of a host: itself, its cards' mappings, its guests, and what is installed for cards. Pure.

Each part is judged by its subject's own function, which a refresh of its resource asks, too. Whether a part's refusals
count, the steps say: `up` refuses what it would do, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from homelab.cards.mapping import judge_mapping
from homelab.container import makers
from homelab.container import plan as container_plan
from homelab.container.plan import ContainerWish
from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.findings import Judged, JudgedGuest, Stage
from homelab.host import ha
from homelab.host.judge import JudgedHost, judge_host
from homelab.host.plan import PlannedFile, PlannedReboot, Wanted
from homelab.nvidia import judge
from homelab.nvidia.preview import Stack, refuse_off
from homelab.settings import Container, Host, Vm
from homelab.vm import preview
from homelab.vm.cards import Wish
from homelab.vm.plan import judge_vm, seen_of
from remote_scripts.notes.container_note import Cards

JudgedT = TypeVar("JudgedT", bound=Judged)


@dataclass(frozen=True)
class Settings:
    """What the settings want of a host."""

    name: str
    """The host's in the settings."""
    host: Host
    vms: dict[str, Vm] = field(default_factory=dict)
    """Those of this host, by their names in the settings."""
    containers: dict[str, Container] = field(default_factory=dict)
    """The same."""
    stack: str = ""
    """PROJECT/STACK, whose guests may lose what they have from it; empty: it isn't known."""
    changed: Collection[str] = ()
    """The names of guests whose settings aren't those of the last `up`, as far as that is known."""
    is_whole: bool = True
    """Whether they say all that is wanted of the host, so that a card that they lack leaves. They don't where only its
    address is known, or while `homelab init` has questions left."""

    @property
    def guests(self) -> dict[int, Vm | Container]:
        """All of them, by their ids."""
        guests: list[Vm | Container] = [*self.vms.values(), *self.containers.values()]
        return {guest.guest_id: guest for guest in guests}


@dataclass(frozen=True)
class Tree:
    """What is judged of a host and all on it."""

    wanted: Settings
    facts: HostFacts
    """The reading that all of it is judged by."""
    host: JudgedHost
    mappings: dict[str, Judged]
    """By the cards' names in the settings."""
    vms: dict[str, tuple[Wish, JudgedGuest]]
    """By their names in the settings."""
    containers: dict[str, tuple[ContainerWish, JudgedGuest]]
    """The same. While a shared card is with its VM, none is judged."""
    leaving: dict[str, JudgedGuest]
    """Guests of the stack that the settings don't have any more, by their places there."""
    systems: dict[str, Judged] = field(default_factory=dict)
    """What is installed for cards on the host and in guests, by their places (`hosts.NAME`, `vms.NAME`)."""
    stacks: list[Stack] = field(default_factory=list)
    """NVIDIA's on these, with what apt says there."""
    others: list[HomelabError] = field(default_factory=list)
    """What else stands against any change of the host: its API, new guests, guests that are off."""
    is_changed: bool = False
    """`up` has a step of its own, such as another setting."""
    unread: list[str] = field(default_factory=list)
    """What couldn't be looked into, a sentence each."""
    files: list[PlannedFile] = field(default_factory=list)
    """Those that will be written, changed or given back, where the host was asked."""
    reboot: PlannedReboot | None = None
    """Whether the host will be rebooted; None: it wasn't asked."""

    @property
    def want(self) -> Wanted:
        """The host's plan."""
        return self.host.want

    def told(self, part: JudgedT) -> JudgedT:
        """A part, of which is refused what stands against it, whichever part has steps."""
        return replace(part, others_change=self.has_steps, restarts=self.restarts)

    def _parts(self) -> Iterator[Judged]:
        yield from self.mappings.values()
        yield from (judged for _, judged in self.vms.values())
        yield from (judged for _, judged in self.containers.values())
        yield from self.leaving.values()
        yield from self.systems.values()

    def parts(self) -> Iterator[Judged]:
        """All of it but the host itself."""
        return map(self.told, self._parts())

    @property
    def restarts(self) -> bool:
        """Whether the host restarts, or its owner is to restart it."""
        return self.reboot is not None and self.reboot.reboot != "no"

    @property
    def has_steps(self) -> bool:
        """Whether the next `up` does anything."""
        return self.is_changed or bool(self.host.steps) or any(part.steps for part in self._parts())

    @property
    def refusals(self) -> list[HomelabError]:
        """Why `up` does nothing. A host that is refused itself says so alone: what is on it follows from that."""
        if of_host := self.told_host.refusals:
            return of_host
        return [*self.parts_refused, *(self.others if self.has_steps else ())]

    @property
    def parts_refused(self) -> list[HomelabError]:
        """What refuses a step of a part, each once."""
        found = {str(error): error for part in self.parts() for error in part.refusals}
        return [*found.values()]

    @property
    def told_host(self) -> JudgedHost:
        """The host, whose refusals stand against a step of any part."""
        return self.told(self.host)

    @property
    def of_reboot(self) -> list[str]:
        """The reboot in few words: one or none."""
        return [f"reboot: {self.reboot.in_short(self.want.gpus)}"] if self.reboot and self.restarts else []

    def of_vm(self, vmid: int) -> tuple[str, JudgedGuest] | None:
        """A VM of the settings, with its name there."""
        found = ((name, self.told(judged)) for name, (wish, judged) in self.vms.items() if wish.vmid == vmid)
        return next(found, None)

    def of_container(self, ctid: int) -> tuple[str, ContainerWish, JudgedGuest] | None:
        """The same of a container."""
        every = self.containers.items()
        found = ((name, wish, self.told(judged)) for name, (wish, judged) in every if wish.ctid == ctid)
        return next(found, None)


def judged(facts: HostFacts, wanted: Settings) -> Tree:
    """Judges a host and what is on it by one reading.

    :param facts: with its guests.
    """
    host, stack = wanted.host, wanted.stack
    of_host = judge_host(facts, host, wanted.vms.values(), stack=stack, is_whole=wanted.is_whole)
    want, slots = of_host.want, {name: card["slot"] for name, card in of_host.want.gpus.items()}
    return Tree(
        wanted=wanted,
        facts=facts,
        host=replace(of_host, remarks=[*of_host.remarks, *_with_own_lines(facts, wanted, slots)]),
        mappings={name: judge_mapping(facts, host, name, slots[name]) for name in slots if host.gpus[name].may_leave},
        vms=_vms(facts, wanted, want),
        containers=_containers(facts, wanted, want),
        leaving=preview.leaving(facts, wanted.guests, stack, {}),
        systems=judged_systems(wanted, facts),
    )


def _vms(facts: HostFacts, wanted: Settings, want: Wanted) -> dict[str, tuple[Wish, JudgedGuest]]:
    host, found = wanted.host, dict[str, tuple[Wish, JudgedGuest]]()
    for name, vm in wanted.vms.items():
        wish = preview.wish_of(name, vm, host, want.gpus)
        seen = seen_of(facts, vm.vmid, wish.takes(host.hands_over), wanted.stack)
        of_it = preview.judge(name, vm, wish, seen, facts, wanted.stack)
        further = [*preview.split_groups(facts, want, name, wanted.vms), *ha.refused_under_ha(facts, host, [vm])]
        found[name] = wish, replace(of_it, against=[*of_it.against, *further])
    return found


def _containers(facts: HostFacts, wanted: Settings, want: Wanted) -> dict[str, tuple[ContainerWish, JudgedGuest]]:
    host, found = wanted.host, dict[str, tuple[ContainerWish, JudgedGuest]]()
    cards = container_plan.cards(facts, want.gpus, wanted.vms, want.vfio_words, driver_comes=host.nvidia is not None)
    uncompared = JudgedGuest(title="", remarks=[f"not compared with the settings: {facts.handover.away}"])
    for name, container in wanted.containers.items():
        wish = container_plan.wish_of(name, container, facts, want.gpus, cards, after_boot=True)
        if facts.handover.away:
            found[name] = wish, uncompared
            continue
        of_it = container_plan.judge_container(wish, facts, wanted.stack)
        under_ha = ha.refused_under_ha(facts, host, [], [container])
        found[name] = wish, replace(of_it, against=[*of_it.against, *under_ha])
    return found


def _with_own_lines(facts: HostFacts, wanted: Settings, slots: Mapping[str, str]) -> Iterator[str]:
    """Remarks on containers that have a card in turn by lines of their own: who starts its VM takes them down."""
    for name in (one for one in wanted.host.hands_over if one in slots):
        known = [one.ctid for one in wanted.containers.values() if name in one.cards or one.numbers]
        for config in facts.containers_with(slots[name]):
            given = makers.addresses(facts.container_note(config.id).given.cards or Cards())
            if config.id not in known and given.isdisjoint(one.address for one in facts.functions(slots[name])):
                who = f"gpus.{name}: container {config.id} ({config.name}) has it by lines of its own, too"
                yield f"{who}: a start of the card's VM shuts the container down, until the card is back"


def judged_systems(wanted: Settings, facts: HostFacts, of_nvidia: Sequence[Stack] = ()) -> dict[str, Judged]:
    """What is judged of each system on which the settings want something, as far as it was read.

    :param of_nvidia: NVIDIA's stacks on them, with what apt says.
    """
    found = facts.systems
    against = {stack.name: stack.errors for stack in of_nvidia}

    def of(place: str, system: str, what: str, stage: Stage, guest: Vm | Container | Host) -> Judged:
        libraries = isinstance(guest, Container) and bool(guest.libraries)
        errors = against.get(place, [])
        return judge.judge_system(what, found.get(system), guest.nvidia, errors, libraries=libraries, stage=stage)

    places: dict[str, Judged] = {}
    if wanted.host.nvidia:
        place = f"hosts.{wanted.name}"
        places[place] = of(place, "host", f"NVIDIA's stack on {wanted.host.node_name}", Stage.HOST, wanted.host)
    for section, label, guests in (("vms", "VM", wanted.vms), ("containers", "container", wanted.containers)):
        for name, guest in guests.items():
            if guest.nvidia or (isinstance(guest, Container) and guest.libraries):
                place, what = f"{section}.{name}", f"what is installed in {label} {guest.guest_id} for its cards"
                places[place] = of(place, str(guest.guest_id), what, Stage.INSIDE, guest)
            off = [*refuse_off(facts, guest, place)] if guest.nvidia else []
            if off and isinstance(guest, Container):
                places[place].against.extend(off)
            elif off:
                # Whether a VM has a step, the settings alone tell; all else waits until it runs.
                steps = ["packages: the settings have changed"] if name in wanted.changed else []
                places[place] = replace(places[place], steps=steps, held=off)
    return places


def owners_vm(facts: HostFacts, vmid: int) -> JudgedGuest:
    """A VM that the settings don't have, by its owner's own lines."""
    seen = seen_of(facts, vmid)
    return judge_vm(replace(seen, base=seen.config, is_another=False), Wish("<name>", vmid, []), facts)
