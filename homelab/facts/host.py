"""A host's reading (remote_scripts/layers/read_host.py) as types, and the parsing of the texts in it.

Pure: no Pulumi, no SSH. The tests parse captures of real machines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from homelab.errors import HomelabError, elsewhere
from homelab.facts import acs, names
from homelab.facts.classes import AUDIO, DISPLAY, USB_C
from homelab.facts.devices import Device
from homelab.facts.guests import CardUser, GuestConfig, Guests, NoteT, guest_note
from homelab.properties import slot_of
from remote_scripts.containers.card_nodes import DrmNodes, HostNodes
from remote_scripts.notes.container_note import ContainerNote
from remote_scripts.notes.guest_note import Note, is_another
from remote_scripts.pve import vm_conf
from remote_scripts.pve.container_conf import paths_of
from remote_scripts.pve.guest_kinds import CONTAINER, VM, Kind
from remote_scripts.reading import answer
from remote_scripts.reading.answer import Answer, Holder


class Cluster(answer.Cluster):
    """The cluster of the host, its node in it, and where the guests are."""

    @property
    def described(self) -> str:
        """`, node of the cluster home`; empty for a host that is alone."""
        return f", node of the cluster {self.name}" if self.name else ""

    def elsewhere(self, wanted: str, guest: int) -> HomelabError | None:
        """The error for a guest, VM or container, that is on another node; None: it is here, or nowhere."""
        kind, node = self.guests.get(guest, ("", self.node))
        kind = "lxc" if kind == "lxc" else "qemu"
        return elsewhere(wanted, kind, guest, self.node, node) if node != self.node else None

    @cached_property
    def guests(self) -> dict[int, tuple[str, str]]:
        """Id of each guest of the cluster -> its kind, vm or lxc, and its node."""
        places = (line.split("/") for line in self.places.splitlines())
        return {
            int(file.removesuffix(".conf")): ("lxc" if folder == "lxc" else "vm", node) for node, folder, file in places
        }


@dataclass(frozen=True, kw_only=True)
class HostFacts(Answer):
    """One reading of a host, with what follows from it.

    Not from the layer's answer: `systems`: `host` or a container's id -> its reading (homelab/reading/systems.py), or
    why it couldn't be read; `chosen_functions`: slot -> addresses of the functions that the settings name for the card
    in it (gpus.X.functions); `planned_words`: this program's words about the IOMMU for the next boot, None: those that
    are configured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    devices: list[Device]
    guests: Guests
    cluster: Cluster
    systems: Mapping[str, object] = field(default_factory=dict)
    chosen_functions: dict[str, list[str]] = field(default_factory=dict)
    planned_words: str | None = None

    @property
    def next_cmdline(self) -> str:
        """The kernel command line of the next boot."""
        return self.cmdline.configured if self.planned_words is None else f"{self.cmdline.others} {self.planned_words}"

    @property
    def vgpu_signs(self) -> list[str]:
        """By what NVIDIA's licensed vGPU driver shows on the host."""
        loaded = ["the module nvidia_vgpu_vfio is loaded"] if "nvidia_vgpu_vfio" in self.modules else []
        return loaded + ["/usr/bin/nvidia-vgpu-mgr is there"] * self.vgpu_manager

    @property
    def own_words(self) -> set[str]:
        """The words that this program has configured on the kernel command line."""
        return {*self.cmdline.configured.split()} - {*self.cmdline.others.split()}

    @cached_property
    def by_address(self) -> dict[str, Device]:
        return {device.address: device for device in self.devices}

    @property
    def display_devices(self) -> list[Device]:
        """The display controllers, without virtual functions (SR-IOV)."""
        return [device for device in self.devices if device.class_code.startswith(DISPLAY) and not device.physfn]

    def in_slot(self, slot: str) -> list[Device]:
        """All functions of a slot, of a card or not."""
        return [device for device in self.devices if device.slot == slot]

    def functions(self, place: str) -> list[Device]:
        """The functions of the card in a slot, in their order: what makes it a card, and the companions that are its
        own (ADR 12, ADR 22).

        In a slot without a card: all of them.

        :param place: the slot; or a single function: then that one.
        """
        if place in self.by_address:
            return [self.by_address[place]]
        slot = self.in_slot(place)
        displays = [device for device in slot if device.is_display and not device.physfn]
        if not displays:
            return slot
        if place in self.chosen_functions:
            chosen_addresses = set(self.chosen_functions[place])
            return [device for device in self.around(place) if device.address in chosen_addresses]
        own = [device for device in slot if _is_part(device, displays[0], slot)]
        return own + self._behind_own_switch(displays[0])

    def display_of(self, slot: str) -> Device | None:
        """The graphics function of the card in a slot; None: there is none. A virtual one is a card by itself."""
        return next((one for one in self.functions(slot) if one.is_display and not one.physfn), None)

    def reset_methods(self, address: str) -> list[str] | None:
        """The kernel's methods to reset a function, in the order in which it tries them; None: unknown."""
        state = self.card_states.get(address)
        return None if state is None or state.reset_method is None else state.reset_method.split()

    def resets_of(self, functions: Sequence[Device]) -> str:
        """`flr, bus`, or `0000:01:00.0 by flr, bus; 0000:01:00.1 by none` where they differ; empty: no method is
        known."""
        found = {device.address: self.reset_methods(device.address) for device in functions}
        texts = {address: ", ".join(names) or "none" for address, names in found.items() if names is not None}
        return "; ".join({*texts.values()} if len({*texts.values()}) == 1 else map(" by ".join, texts.items()))

    def around(self, place: str) -> list[Device]:
        """The functions that gpus.X.functions may name for the card in a slot: the slot's, and those behind the card's
        own switch; no bridges and no virtual functions."""
        slot = [device for device in self.in_slot(place) if not device.is_bridge and not device.physfn]
        displays = [device for device in slot if device.is_display]
        return slot + (self._behind_own_switch(displays[0]) if displays else [])

    def _behind_own_switch(self, display: Device) -> list[Device]:
        """The other functions behind the PCIe switch on the card itself, without bridges and the card's slot.

        Intel's Arc has its audio there (Linux shows 03:00.0 and 04:00.0). A switch is the card's where it is the same
        maker's, below a root port, and nothing is behind it but that maker's bridges and audio functions, and the card.
        """
        companions: list[Device] = []
        for address in display.ancestors[:-1]:  # the last one is the root port: the board's
            bridge = self.by_address.get(address)
            if bridge is None or not bridge.is_bridge or bridge.vendor != display.vendor:
                break
            behind = [device for device in self.devices if address in device.ancestors]
            others = [device for device in behind if not device.is_bridge and device.slot != display.slot]
            if any(device.vendor != display.vendor for device in behind if device.slot != display.slot) or any(
                device.physfn or not device.class_code.startswith(AUDIO) for device in others
            ):
                break
            companions = others
        return companions

    @cached_property
    def _cards(self) -> list[str]:
        return sorted({device.slot for device in self.devices if device.is_display and not device.physfn})

    def place_of(self, part: str) -> str:
        """The slot of the card that a slot or function of a configuration belongs to; of a function in a card's slot
        that isn't the card's, the function.

        :param part: a slot or an address.
        """
        slot = slot_of(part)
        if part in self.by_address and self.by_address[part].physfn:
            return part  # a virtual function is a card of its own
        functions = [self.by_address[part]] if part in self.by_address else self.in_slot(slot)
        if slot in self._cards:
            return slot if part not in self.by_address or functions[0] in self.functions(slot) else part
        owners = [
            place for place in self._cards if functions and all(device in self.functions(place) for device in functions)
        ]
        return owners[0] if owners else slot

    def path_of(self, place: str) -> str:
        """The whole card as Proxmox VE names it: its slot, or, if the slot has other functions, too, the card's
        functions joined by `;`. The graphics function is the first of them, and a mapping then offers only that one
        (ADR 12)."""
        functions = self.functions(place)
        if not functions or functions == self.in_slot(place):
            return place
        return ";".join(device.address for device in sorted(functions, key=lambda device: not device.is_display))

    def users_of(self, place: str) -> list[CardUser]:
        """The VMs that have the card, or a function of it."""
        return self.guests.users_of(self.path_of(place), self.cluster.node)

    def options_of(self, place: str, vmid: int) -> dict[str, dict[str, str]]:
        """The hostpci options by which a VM has the card, or a function of it: name -> properties."""
        config = self.guests.config(vmid)
        return {} if config is None else self.guests.options_of(config, self.path_of(place), self.cluster.node)

    def places_of(self, option: dict[str, str]) -> list[str]:
        """The slots and functions that a hostpci option may give."""
        return vm_conf.places(option, self.guests.mapping_entries, self.cluster.node)

    def bound_by_homelab(self, place: str) -> bool:
        """Whether this program's word binds the card, or a function of it, in this boot or the next one."""
        words = (bound_by_word(self.cmdline.running), bound_by_word(self.cmdline.configured))
        return any(word.get(device.address) == device.id for word in words for device in self.functions(place))

    def given_by_homelab(self, place: str, vmid: int) -> bool:
        """Whether a VM has the card, or a function of it, by an option that this program has set."""
        config, note = self.guests.config(vmid), self.note_of(vmid)
        lines = [*config.devices(current=True), *config.devices(current=False)] if config else []
        own = [(key, value) for key, value in lines if note.has_set(key, value)]
        return bool(self.guests.options_in(own, self.path_of(place), self.cluster.node))

    def note_of(self, guest: int) -> Note:
        """What is noted of a guest of this host; nothing, where that is of an earlier one of its id."""
        config = self.guests.config(guest)
        return self.container_note(guest) if config and config.kind == "lxc" else self._noted(VM, guest, Note)

    def container_note(self, ctid: int) -> ContainerNote:
        """The same of a container."""
        return self._noted(CONTAINER, ctid, ContainerNote)

    def _noted(self, kind: Kind, guest: int, form: type[NoteT]) -> NoteT:
        config, note = self.guests.config(guest), guest_note(self.ledger, kind, guest, form)
        return form() if is_another(note, config.options if config else {}) else note

    def containers_with(self, slot: str) -> list[GuestConfig]:
        """The containers whose configuration names the card's node: NVIDIA's, or one in /dev/dri."""
        card_addresses = {device.address for device in self.functions(slot)}
        nvidia_nodes = {
            address: [f"/dev/nvidia{minor}"]
            for address, minor in self.nvidia_minors.items()
            if address in card_addresses
        }
        return self.containers_having(nvidia_nodes or {address: self.drm_nodes(address) for address in card_addresses})

    @property
    def card_nodes(self) -> HostNodes:
        """The cards' device nodes that there are now."""
        return HostNodes(self.nodes, self.drm, self.nvidia_minors)

    def drm_nodes(self, address: str) -> list[str]:
        """A function's nodes in /dev/dri."""
        drm_node = self.drm.get(address, DrmNodes())
        return [f"/dev/dri/{name}" for name in (drm_node.card, drm_node.render) if name]

    def containers_having(
        self, nodes: Mapping[str, list[str]], named: Mapping[str, list[str]] | None = None
    ) -> list[GuestConfig]:
        """The containers whose configuration gives them one of these device nodes.

        :param nodes: of cards' functions, by address.
        :param named: the same, of those that count where a line names the node itself, and not its folder alone.
        """
        paths, named_paths = (
            [path for address, names in found.items() for path in paths_of(names, address)]
            for found in (nodes, named or {})
        )
        containers = (config for config in self.guests.configs if config.kind == "lxc")
        return [config for config in containers if config.container.names_card(paths, named_paths)]

    def pluggable(self, address: str) -> bool:
        """Whether the function, or a bridge above it, can be pulled out while the host runs."""
        device = self.by_address[address]
        bridges = [self.by_address[bridge] for bridge in device.ancestors if bridge in self.by_address]
        return any(function.removable for function in (device, *bridges))

    def narrow_link(self, addresses: Iterable[str]) -> str:
        """How many lanes a card's PCIe link has, where card and slot have more: `x1 of x8`; else empty. A card at rest
        has a slower link, and no narrower one (Linux, ABI/testing/sysfs-bus-pci: current_link_width)."""
        for device in map(self.by_address.get, addresses):
            slot = self.by_address.get(next(iter(device.ancestors), "")) if device else None
            if device and slot and 0 < device.lanes[0] < (most := min(device.lanes[1], slot.lanes[1])):
                return f"x{device.lanes[0]} of x{most}"
        return ""

    def holders_of(self, addresses: Iterable[str]) -> list[Holder]:
        """The processes and the console that have one of these functions open."""
        address_set = set(addresses)
        return [holder for holder in self.holders if address_set.intersection(holder.devices)]

    def bound_by_hand(self) -> set[str]:
        """Addresses of the functions that are on vfio-pci by other configuration than this program's: `vfio-pci.ids=`,
        modprobe.d, driverctl.

        Configuration and driver are both needed: the configuration alone may never have had an effect, and a starting
        VM may have left the driver alone.
        """
        kept = {device.address for device in self.devices if self.kept_by_hand(device)}
        return kept - bound_by_word(self.cmdline.running).keys()

    def kept_by_hand(self, device: Device) -> bool:
        """Whether a function is on vfio-pci and other configuration than this program's binds it, even if this
        program's word does so, too."""
        return device.driver == "vfio-pci" and bool(self.who_binds([device]))

    def named_at_next_boot(self, device: Device) -> bool:
        """Whether other configuration than this program's names the function for the next boot, with or without
        effect."""
        return any(map(device.is_named, self.ids_by_others().values())) or bool(self.override_files(device))

    def ids_by_others(self, words: str = "") -> dict[str, str]:
        """Files and words, not this program's, that give ids to vfio-pci in the next boot -> the ids.

        :param words: of another command line that count as well.
        """
        by_word = _ids_by_word(f"{self.cmdline.others} {words}")
        return self.vfio_files | {f"{word} on the kernel command line": ids for word, ids in by_word.items()}

    def override_files(self, device: Device) -> list[str]:
        """Files of driverctl that put the function on vfio-pci at each boot. Older versions name theirs without
        `pci-`."""
        files = (f"/etc/driverctl.d/{prefix}{device.address}" for prefix in ("pci-", ""))
        return [path for path in files if path in self.vfio_mentions]

    def who_binds(self, devices: Collection[Device]) -> list[str]:
        """Files and words, not this program's, that give these functions to vfio-pci, in this boot or the next one."""
        sources = self.ids_by_others(self.cmdline.running)
        by_ids = [source for source, ids in sources.items() if any(device.is_named(ids) for device in devices)]
        return [*by_ids, *dict.fromkeys(path for device in devices for path in self.override_files(device))]

    def others_in_group(self, place: str) -> list[Device]:
        """The other functions of the card's IOMMU groups, which a VM's start with the card takes from the host; without
        bridges, which stay."""
        card_addresses = {device.address for device in self.functions(place)}
        return [
            device for device in self.group_of(place) if device.address not in card_addresses and not device.is_bridge
        ]

    def group_of(self, slot: str, override: acs.Override | None = None) -> list[Device]:
        """Every function in the IOMMU group or groups of this card in the next boot, the card's own included.

        While the IOMMU is off, the kernel's groups are predicted (acs.grouped). If the override is another one than
        the running kernel's, the current groups are split, or joined, by the same rule.

        There may be too many predicted ones; the reading after the reboot has the real groups.

        :param override: another one than the next boot's.
        """
        override = self.acs_override if override is None else override
        card = self.functions(slot)
        groups = {device.group for device in card if device.group is not None}
        current_group = [device for device in self.devices if device.group in groups]
        if groups and override == self.acs_running:
            return current_group
        group_names = acs.grouped(self.devices, override)
        card_groups = {group_names[device.address] for device in card}
        predicted = {address for address, group in group_names.items() if group in card_groups}
        if groups:  # splitting takes nothing in, and what is joined keeps what it has
            current_addresses = {device.address for device in current_group}
            predicted = predicted | current_addresses if self.acs_running - override else predicted & current_addresses
        return [device for device in self.devices if device.address in predicted]

    @property
    def acs_running(self) -> acs.Override:
        """The override of the running kernel."""
        return acs.override(self.cmdline.running, self.kernel)

    @property
    def acs_override(self) -> acs.Override:
        """The override of the next boot's kernel."""
        return acs.override(self.next_cmdline, self.kernel)

    def mapped_one_to_one(self, slot: str) -> list[str]:
        """The memory that the firmware wants mapped 1:1 for functions of the card's groups, `0x…-0x…`, as the kernel
        says. Empty if the next boot makes other groups: then the reading after that boot tells."""
        if self.acs_override != self.acs_running:
            return []
        groups = {device.group for device in self.functions(slot) if device.group is not None}
        return list(dict.fromkeys(region for group in sorted(groups) for region in self.iommu.direct.get(group, ())))

    @cached_property
    def _lspci_names(self) -> dict[str, str]:
        """Address -> name and id, as `lspci -Dnn` prints them: `Ethernet Controller I226-V [8086:125c]`; empty: lspci
        wasn't run."""
        return {address: f"{name}, {ids}" for address, name, ids in names.LINE.findall(self.lspci)}

    @cached_property
    def _models(self) -> dict[str, str]:
        return names.of_lspci(self.lspci)

    def model(self, device: Device) -> str:
        """The name of a card's model, `RTX 5090`; empty: unknown."""
        return names.model(device.id, self._models.get(device.address, ""))

    def card(self, place: str) -> str:
        """A card's name for messages: `RTX 5090 [10de:2b85] at 0000:01:00`; `place` itself if there is no function.

        :param place: its slot, or a function in it, or several, joined by `;`.
        """
        functions = self.functions(place.partition(";")[0])
        if not functions:
            return place
        display = next((device for device in functions if device.is_display), functions[0])
        return names.card(display.id, place, self._models.get(display.address, ""), display.kind)

    def describe(self, device: Device) -> str:
        """A function for messages: address, kind, name or id, and what depends on it."""
        uses = [use for name in device.behind.split() for use in self._uses(name)]
        otherwise = f"{model}, {device.id}" if device.is_display and (model := self.model(device)) else device.id
        name = self._lspci_names.get(device.address, otherwise)
        return f"{device.address} {device.kind} [{name}]" + (f" ({', '.join(uses)})" if uses else "")

    def _uses(self, name: str) -> list[str]:
        """What depends on a disk or network interface: its own name, and mounts such as `/ on nvme0n1p2`."""
        parents: dict[str, str] = {}
        uses = [name]
        for line in self.disks.splitlines():
            # lsblk -r keeps the columns' places: an empty column is two spaces in a row.
            child, parent, kind, mountpoint = [*line.split(" "), "", "", ""][:4]
            parents[child] = parents.get(parent, parent) if parent else child
            if parents[child] == name and (mountpoint or kind == "zfs_member"):
                uses.append(f"{mountpoint or 'ZFS'} on {child}")
        return uses


def _is_part(device: Device, display: Device, slot: list[Device]) -> bool:
    """Whether a function is a part of the card that `display` makes, and not only in its slot (ADR 12).

    A processor's graphics share their slot with its security processor, USB controllers and the board's audio; these
    are the board's. The maker tells them apart: AMD's graphics and their audio are 1002, what else is there 1022.
    """
    same = device.vendor == display.vendor
    if device.physfn:
        return False
    if device.is_display:
        return same
    if device.class_code.startswith(AUDIO):
        # An audio function of another maker is the card's where the slot is nothing but a card's: function 0, and 1.
        numbers = [device.address[-2:] for device in slot if not device.physfn]
        return same or (numbers == [".0", ".1"] and display.address.endswith(".0"))
    return same and display.is_nvidia and device.class_code.startswith(USB_C)


def _ids_by_word(cmdline: str) -> dict[str, str]:
    """Words that give ids to vfio-pci -> the ids; a value, or a whole word, may be quoted."""
    ids_by_word = {}
    for word in cmdline.split():
        name, _, value = word.partition("=")
        if name.lstrip('"').replace("-", "_") == "vfio_pci.ids":
            ids_by_word[word] = value.strip('"')
    return ids_by_word


def bound_by_word(cmdline: str) -> dict[str, str]:
    """Address -> vendor:device, from `homelab.vfio=0000:01:00.0=10de:2b85,…`; the last such word counts, as in the
    initramfs."""
    bound: dict[str, str] = {}
    for word in cmdline.split():
        if word.startswith("homelab.vfio="):
            pairs = (pair.partition("=") for pair in word.removeprefix("homelab.vfio=").split(","))
            bound = {address: ids for address, _, ids in pairs}
    return bound


_READING = TypeAdapter(HostFacts)


def parse(reading: Mapping[str, object]) -> HostFacts:
    """The reading that the layer read_host has answered.

    :raises HomelabError: it has another shape.
    """
    try:
        return _READING.validate_python(reading)
    except ValidationError as error:
        problem = error.errors()[0]
        raise HomelabError(
            wanted="the reading of a host, as this program's part there gives it",
            found=f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}",
            why="nothing can be decided about a host that can't be read",
            next="this is a fault of the program: report it",
        ) from error
