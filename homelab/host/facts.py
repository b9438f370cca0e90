"""What read_host.sh saw on a host, as types; parsing of the texts that it passes on.

Pure: no Pulumi, no SSH. The tests feed it captures of real machines.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from homelab.errors import HomelabError, elsewhere
from homelab.host import acpi, acs, container_conf, names, vfio_ids
from homelab.host.classes import AUDIO, BRIDGES, CARRIERS, DISPLAY, GRAPHICS, NVIDIA, USB_C
from homelab.host.container_conf import ContainerConf
from homelab.properties import functions_of, overlap, slot_of
from homelab.properties import parse as parse_properties

# Names of classes, the most exact one counts (pci.ids).
_KINDS = {
    "00": "device older than PCI's classes", "01": "storage controller", "0100": "SCSI controller", "0101": "IDE controller",
    "0104": "RAID controller", "0105": "ATA controller", "0106": "SATA controller", "0107": "SAS controller",
    "0108": "NVMe disk", "02": "network card", "0280": "wireless network card", "03": "graphics card",
    "04": "multimedia device", "0400": "video device", "0401": "audio device", "0403": "audio device",
    "0480": "audio coprocessor", "05": "memory controller", "0580": "memory device", "06": "bridge", "0600": "host bridge",
    "0601": "ISA bridge", "0604": "PCI bridge", "0680": "bridge", "07": "communication controller",
    "0700": "serial port", "0703": "modem", "08": "system device", "0805": "SD card reader", "0806": "IOMMU", "09": "input device",
    "0a": "docking station", "0b": "processor", "0c": "serial bus controller", "0c00": "FireWire controller",
    "0c03": "USB controller", "0c04": "Fibre Channel controller", "0c05": "SMBus", "0c06": "InfiniBand controller",
    "0c80": "USB-C port controller", "0d": "wireless controller", "0d11": "Bluetooth controller", "0e": "I/O controller",
    "0f": "satellite receiver", "10": "encryption controller", "1080": "security processor", "11": "signal processor",
    "12": "accelerator", "13": "instrumentation device", "40": "coprocessor", "ff": "device without a class",
}  # fmt: skip


# A domain has more than four digits behind Intel's Volume Management Device.
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))


class Device(_Fact):
    """One PCI function. ``address`` is ``dddd:bb:ss.f``; ``class_code`` six hex digits; ``group`` its IOMMU group, if any."""

    address: str
    vendor: str
    device: str
    subsystem: str
    class_code: str = Field(alias="class")
    boot_vga: bool
    driver: str
    group: int | None
    acs: bool
    path: str
    behind: str
    # The physical function of a virtual one (SR-IOV), else empty; how many virtual functions it has now.
    physfn: str = ""
    vfs: int = 0
    # Can it be pulled out while the host runs (sysfs: removable)? True of what hangs on Thunderbolt or USB4.
    removable: bool = False
    # Which kind of PCIe device it is, as lspci says it, in lower case ("root port"). Empty: conventional PCI, or not asked.
    express: str = ""

    @property
    def slot(self) -> str:
        """``dddd:bb:ss``: what a card's functions share, and maybe others with them."""
        return self.address.rpartition(".")[0]

    @property
    def id(self) -> str:
        """``vendor:device``, four hex digits each."""
        return f"{self.vendor}:{self.device}"

    @property
    def is_bridge(self) -> bool:
        return self.class_code[:4] in BRIDGES

    @property
    def is_display(self) -> bool:
        """Is it what makes a card: a display controller, a 3D controller or an accelerator?"""
        return self.class_code.startswith(GRAPHICS)

    @property
    def may_carry(self) -> bool:
        """May disks or a network be behind it?"""
        return self.class_code.startswith(CARRIERS)

    @property
    def kind(self) -> str:
        """What it is, for a person."""
        names = (_KINDS.get(self.class_code[:digits]) for digits in (4, 2))
        return next((name for name in names if name), f"device of class {self.class_code[:4]}")

    @property
    def ancestors(self) -> list[str]:
        """Addresses of the bridges above it, nearest first (from the path in sysfs)."""
        return [part for part in self.path.split("/") if _ADDRESS.fullmatch(part)][-2::-1]


class CardState(_Fact):
    """A function of a card, as sysfs has it; None: there is no such file.

    ``divided``: vgpu (NVIDIA's vGPU driver) or mdev (mediated devices), empty: it isn't; ``reset_method``: the ways in which the kernel resets it, in
    their order; ``d3cold_allowed``: 0 or 1; ``control``: on or auto (power management); ``power_state``: such as D0; ``had``: by the name of one of
    these, the value that it had before this program set it (card_values.sh), and gets back once the settings no longer say it.
    """

    divided: str = ""
    reset_method: str | None = None
    d3cold_allowed: str | None = None
    control: str | None = None
    power_state: str | None = None
    had: dict[str, str] = {}


class CommandLines(_Fact):
    """Kernel command lines: running; configured for the next boot; the same without our words; generated by update-grub."""

    running: str
    configured: str
    others: str
    generated: str


class GroupFacts(_Fact):
    """An IOMMU group. ``type``: of its default domain, such as ``identity``; ``direct``: memory, ``0x…-0x…``, that the firmware wants mapped
    1:1 for one of its devices (Linux, ABI/testing/sysfs-kernel-iommu_groups: reserved_regions of the type ``direct``).
    """

    type: str = ""
    direct: list[str] = []


class IommuFacts(_Fact):
    """``tables``: ACPI tables that announce an IOMMU; ``groups``: how many groups there are; ``kernel_log``: dmesg lines.

    ``of_group``: what the kernel says of each group; ``acpi``: the tables, as base64; ``interrupts``: how the kernel's interrupts come,
    ``remapped`` by the IOMMU or ``plain`` (/proc/interrupts), empty: it can't be told.
    """

    tables: list[str]
    groups: int
    kernel_log: str
    of_group: dict[int, GroupFacts] = {}
    acpi: dict[str, str] = {}
    interrupts: str = ""

    def table(self, name: str) -> bytes:
        """An ACPI table; empty where it can't be read."""
        try:
            return base64.b64decode(self.acpi.get(name, ""), validate=True)
        except binascii.Error:
            return b""


class Managed(_Fact):
    """A file that this program wrote, and whether it still is what was written: ok, changed or missing."""

    layer: str
    path: str
    state: str


def noted_in(ledger: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """What is noted under that name. A note that can't be read counts as none: notes are written whole, so it was edited by hand.

    :param ledger: as of `HostFacts`.
    """
    try:
        note = json.loads(ledger.get(name, ""))
    except ValueError:
        return None
    return note if isinstance(note, dict) else None


class GuestConfig(_Fact):
    """``kind``: vm or lxc; ``lines``: those that matter for cards, as they stand in the file; after a line ``[PENDING]`` those that a running VM gets
    at its next start (PVE::QemuConfig)."""

    kind: str
    id: int
    lines: str

    @cached_property
    def container(self) -> ContainerConf:
        """The configuration of a container, as far as it was passed on."""
        return container_conf.parse(self.lines)

    @property
    def values(self) -> dict[str, str]:
        """Proxmox VE's own keys -> values, of a VM those of its next start, as its API tells them."""
        if self.kind == "lxc":
            return self.container.options
        coming = _pairs(self._parts[1])
        gone = re.findall(r"\w+", coming.pop("delete", ""))
        return {key: value for key, value in {**self.now, **coming}.items() if key not in gone}

    @property
    def now(self) -> dict[str, str]:
        """A VM's values as it is, while it runs."""
        return _pairs(self._parts[0])

    @property
    def _parts(self) -> tuple[str, str]:
        now, _, coming = f"\n{self.lines}\n".partition("\n[PENDING]\n")
        return now, coming


def _pairs(lines: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines.splitlines() if line)
    return {key: value.strip() for key, _, value in pairs}


class CardUser(_Fact):
    """A VM whose configuration names a card, or that runs with it.

    ``running``: it runs, and not only its next start gives it the card.
    """

    vmid: int
    name: str
    running: bool
    onboot: bool

    def __str__(self) -> str:
        return f"VM {self.vmid} ({self.name})"


class Guests(_Fact):
    """``running``: ids of the VMs and containers that run; ``configs``: the lines of guests' configurations that matter for cards.

    ``unlisted``: kinds (vm, lxc) of which the host didn't tell which run. ``mappings``: /etc/pve/mapping/pci.cfg; ``reservations``: which VM runs with
    which PCI function, as qemu-server notes it.
    """

    running: frozenset[int]
    unlisted: tuple[str, ...] = ()
    configs: list[GuestConfig]
    mappings: str
    reservations: str

    def config(self, vmid: int) -> GuestConfig | None:
        """The configuration of a VM or container; None: there is none of that id."""
        return next((config for config in self.configs if config.id == vmid), None)

    def users_of(self, path: str, node: str) -> list[CardUser]:
        """The VMs that have a function of ``path`` (as `HostFacts.path_of`), by address or by any mapping of this node that has it."""
        lines = (line.split() for line in self.reservations.splitlines())
        reserved = {int(words[1]) for words in lines if len(words) > 1 and overlap(words[0], path)} & self.running
        users = []
        for config in self.configs:
            values = config.values
            if config.kind == "vm" and (self.options_of(config, path, node) or config.id in reserved):
                has_it = config.id in reserved or bool(self._options_in(config.now, path, node))
                users.append(
                    CardUser(
                        vmid=config.id,
                        name=values.get("name", f"VM {config.id}"),
                        running=config.id in self.running and has_it,
                        onboot=values.get("onboot") == "1" and values.get("template") != "1",  # which never starts
                    )
                )
        return users

    def options_of(self, config: GuestConfig, path: str, node: str) -> dict[str, dict[str, str]]:
        """A VM's hostpci options that give it a function of ``path``, by address or by any mapping of this node that has it: name -> properties.

        Those of its next start count, and while it runs, those that it has now. (One that was shut down from inside keeps what waits for its start.)
        """
        now = config.now if config.id in self.running else {}
        return {**self._options_in(now, path, node), **self._options_in(config.values, path, node)}

    def _options_in(self, values: Mapping[str, str], path: str, node: str) -> dict[str, dict[str, str]]:
        found = {key: parse_properties(key, value) for key, value in values.items() if key.startswith("hostpci")}
        return {key: one for key, one in found.items() if overlap(";".join(self.places_of(one, node)), path)}

    @property
    def migrating(self) -> set[str]:
        """Ids of the PCI mappings whose devices migrate with a running VM (live-migration-capable)."""
        found, mapping = set(), ""
        for line in self.mappings.splitlines():
            mapping = mapping if line[:1].isspace() else line.strip()
            if line.split() in (["live-migration-capable", "1"], ["live-migration-capable", "yes"]):
                found.add(mapping)
        return found

    @property
    def mapping_entries(self) -> dict[str, list[dict[str, str]]]:
        """PCI mapping's id -> its entries, one a device and node (section configuration: PVE::SectionConfig)."""
        found: dict[str, list[dict[str, str]]] = {}
        entries: list[dict[str, str]] = []
        for line in self.mappings.splitlines():
            key, _, value = line.strip().partition(" ")
            if key and not line[:1].isspace():
                entries = found.setdefault(key, [])
            elif key == "map":
                entries.append(parse_properties("map", value))
        return found

    def places_of(self, option: dict[str, str], node: str) -> list[str]:
        """The slots and functions that a hostpci option may get."""
        if "mapping" not in option:
            return functions_of(option.get("host", ""))
        entries = self.mapping_entries.get(option["mapping"], [])
        return [part for entry in entries if entry.get("node") == node for part in functions_of(entry.get("path", ""))]


class HaFiles(_Fact):
    """What the HA manager goes by, texts of files below /etc/pve/ha: ``resources``, ``groups`` (before Proxmox VE 9), ``rules`` (since then), and
    ``status``, what it last made of its services, as JSON."""

    resources: str = ""
    groups: str = ""
    rules: str = ""
    status: str = ""


class Cluster(_Fact):
    """What Proxmox VE knows of the host's surroundings, where guests were asked for.

    ``node``: the host's name in it; ``name``: the cluster's, empty: the host is alone; ``places``: each guest's file below /etc/pve/nodes, such as ``pve2/qemu-server/203.conf``, a line each; ``users``:
    /etc/pve/user.cfg; ``certificate``: what the API shows, ``authority``: /etc/pve/pve-root-ca.pem, as PEM. ``quorate``: may
    /etc/pve be written?
    """

    node: str = ""
    name: str = ""
    places: str = ""
    users: str = ""
    authority: str = ""
    certificate: str = ""
    quorate: bool = True
    ha: HaFiles = HaFiles()

    @property
    def described(self) -> str:
        """`, node of the cluster home`; empty for a host that is alone."""
        return f", node of the cluster {self.name}" if self.name else ""

    def elsewhere(self, wanted: str, guest: int) -> HomelabError | None:
        """The error for a guest, VM or container, that is on another node; None: it is here, or nowhere."""
        kind, node = self._place_of(guest)
        return elsewhere(wanted, kind, guest, self.node, node) if node else None

    def node_of(self, guest: int) -> str:
        """The other node that a guest is on; empty: it is here, or nowhere."""
        return self._place_of(guest)[1]

    def _place_of(self, guest: int) -> tuple[str, str]:
        """qemu or lxc, and the other node."""
        for line in self.places.splitlines():
            node, _, rest = line.partition("/")
            folder, _, file = rest.partition("/")
            if file == f"{guest}.conf" and node != self.node:
                return "lxc" if folder == "lxc" else "qemu", node
        return "", ""


class NvidiaFacts(_Fact):
    """NVIDIA's driver on the host.

    ``version``: of the loaded one, empty: none. ``installed``: is there one for the running kernel, loaded or not? ``trouble``, ``uvm_trouble``: what keeps the driver, and nvidia-uvm, from being there,
    and what mends it; empty where nothing does. ``dev_trouble``: the same of dev[n] options for containers. ``missing_nodes``: device nodes that it serves and that aren't in /dev.
    ``nodes_enabled``: is our service that makes them at boot enabled?
    """

    version: str = ""
    installed: bool = False
    trouble: list[str] = []
    uvm_trouble: list[str] = []
    missing_nodes: list[str] = []
    nodes_enabled: bool = False
    dev_trouble: list[str] = []


class HandedOver(_Fact):
    """What hands cards from containers to VMs: is it switched on, which VMs have lost its hookscript, and which took it to another node ("103 on pve2"); of each card that isn't simply with the host, the
    lines of its state (lib/handover/state.sh); ``away``: which cards a VM has, or are on their way, or are lost, in words."""

    enabled: bool = False
    lost_hooks: list[str] = []
    moved_hooks: list[str] = []
    away: str = ""
    cards: dict[str, str] = {}

    def of_card(self, name: str) -> dict[str, str]:
        """What is noted of a card: `state`, `vm`, `since` (seconds), `why`, `containers`, …"""
        pairs = (line.partition("=") for line in self.cards.get(name, "").splitlines())
        return {key: value for key, _, value in pairs}


class TurnedAway(_Fact):
    """A VM that was started while a run was at work, and didn't get its card: when (``at``, by the host's clock), and whose run it was."""

    vm: int
    at: str
    run: str

    def __str__(self) -> str:
        return f"{self.at}: VM {self.vm} doesn't get it: an up or a destroy of this host is at work ({self.run})"


class SharedWith(_Fact):
    """A container that was given cards by this program: numbers of /dev/nvidiaN, cards of other makers (lib/container/card_nodes.sh), and how
    it differs from what was set up."""

    id: int
    minors: str
    cards: str = ""
    drift: list[str]


class DrmNodes(_Fact):
    """What the kernel has in /dev/dri for a graphics card: names such as ``card0`` and ``renderD128``, empty where there is none. ``kfd``: is
    /dev/kfd about it, too? ``trouble``: why an Intel or AMD card may have no node for computing, in lines of modprobe.d and of the kernel."""

    card: str = ""
    render: str = ""
    kfd: bool = False
    trouble: str = ""


class Vital(_Fact):
    """What the host can't do without, and what carries it.

    ``kind``: storage, network or keyboard; ``name``: for a person, such as ``/ (ext4 on /dev/mapper/pve-root)``; ``devices``: addresses of
    the PCI functions on the way to it; ``trouble``: why they could not be told, empty where they could.
    """

    kind: str
    name: str
    devices: list[str]
    trouble: str = ""


class Holder(_Fact):
    """A process of the host, or its text console (``pid`` 0), that has cards open: addresses of their functions."""

    pid: int
    name: str
    devices: list[str]

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else self.name


class LeftGuest(_Fact):
    """A VM that this program has moved to another node, ``node``, for a restart, and has given up bringing back, and why."""

    vmid: int
    node: str
    why: str

    def way_back(self, here: str) -> str:
        """The command for a person, on the node where it is. ``here``: the node from which it was moved."""
        return f"`qm migrate {self.vmid} {here} --online 1`"


class HostFacts(_Fact):
    """One reading of a host. Raises ``pydantic.ValidationError`` when the script's answer has another shape."""

    boot_id: str
    kernel: str
    pve: str
    cpu_vendor: str
    # Versions of Proxmox VE's packages, as far as they decide which options of cards it knows; empty where it isn't installed.
    packages: dict[str, str] = {}
    loader: str
    loader_clues: str
    missing_tools: list[str]
    cmdline: CommandLines
    iommu: IommuFacts
    vfio_ids: str
    # File -> the ids in it; files that speak of vfio-pci in any other way. None of them is ours.
    vfio_files: dict[str, str] = {}
    vfio_mentions: list[str] = []
    modules: list[str]
    devices: list[Device]
    lspci: str
    disks: str
    # Lines of `lspci -Dnn` about cards: what the host's pci.ids calls them.
    named: str = ""
    vital: list[Vital] = []
    holders: list[Holder] = []
    boot_free: int
    largest_initramfs: int
    managed: list[Managed]
    stale_initramfs: list[str]
    # What became of a boot that nobody confirmed, as the host wrote it down; empty: nothing. It may still have to restart for it.
    rolled_back: str
    rolling_back: bool = False
    # That the host judged a boot itself for which no `up` waited, and stays as it is configured.
    judged: str = ""
    # What is still to be made of what was written: boot (the boot configuration), initramfs.
    pending: list[str] = []
    # What the last boot was to have and the running kernel lacks, a sentence each; None: it isn't noted on the host.
    boot_lacks: list[str] | None = None
    # PCI address -> its nodes; is our service that follows them at each boot enabled?
    cards_enabled: bool = False
    drm: dict[str, DrmNodes] = {}
    nvidia_minors: dict[str, int]
    nvidia: NvidiaFacts = NvidiaFacts()
    containers: list[SharedWith] = []
    handover: HandedOver = HandedOver()
    # Card that is handed over -> the last VM that didn't get it because a run was at work.
    turned_away: dict[str, TurnedAway] = {}
    # What is set for a restart of this node of a cluster, and not put back yet: lines KEY VALUE (remote_scripts/lib/away.sh, set_aside).
    set_aside: str = ""
    # What this program noted of VMs and mappings (homelab/remote/ledger.py): name -> JSON.
    ledger: dict[str, str] = {}
    # Owner -> names of this program's scripts that lie whole on the host (homelab/remote/kept_scripts.py).
    kept_scripts: dict[str, list[str]] = {}
    # Copies of this program's files that had been edited by hand when they were written again or removed.
    edits: list[str] = []
    # What the kernel has said since it booted, as far as it matters for cards (homelab/host/kernel_log.py); empty where it was not asked.
    kernel_log: str = ""
    # Cards' functions whose configuration space can't be read: every bit is one.
    lost: list[str] = []
    # Of functions that may belong to cards. Is NVIDIA's vGPU manager there?
    card_states: dict[str, CardState] = {}
    vgpu_manager: bool = False
    # Attributes of cards that have another value than the one that was set (card_values.sh), a sentence each.
    lost_values: list[str] = []
    # Of graphics cards, what of the kernel's own picture lies in their memory (/proc/iomem), such as BOOTFB.
    framebuffers: dict[str, list[str]] = {}
    # Is VFIO set to give cards away without interrupt remapping (allow_unsafe_interrupts)?
    unsafe_interrupts: bool = False
    # What proxmox-boot-tool warns of.
    boot_warnings: str = ""
    # `host` or a container's id -> what read_system.sh answered there; None: it doesn't run.
    systems: dict[str, str | None] = {}
    guests: Guests
    cluster: Cluster = Cluster()
    # Slot -> addresses of the functions that the settings say are the card in it (gpus.X.functions); the host doesn't answer this.
    chosen: dict[str, list[str]] = {}
    # The words about the IOMMU that the next boot is going to have from this program; None: those that are configured.
    to_come: str | None = None

    @property
    def left_elsewhere(self) -> list[LeftGuest]:
        """The VMs that were moved for a restart of this node, couldn't be brought back, and are still where they were left."""
        lines = [
            line.removeprefix("left:").split(" ", 2) for line in self.set_aside.splitlines() if line.startswith("left:")
        ]
        found = [
            LeftGuest(vmid=int(line[0]), node=line[1], why=line[2])
            for line in lines
            if len(line) == 3 and line[0].isdecimal()
        ]
        return [one for one in found if self.cluster.node_of(one.vmid) == one.node]

    @property
    def next_cmdline(self) -> str:
        """The kernel command line of the next boot."""
        return self.cmdline.configured if self.to_come is None else f"{self.cmdline.others} {self.to_come}"

    @cached_property
    def by_address(self) -> dict[str, Device]:
        return {device.address: device for device in self.devices}

    @cached_property
    def lspci_drivers(self) -> dict[str, str]:
        """Address -> "Kernel driver in use", as `lspci -Dnnk` prints it; empty where it was not asked."""
        drivers: dict[str, str] = {}
        address = ""
        for line in self.lspci.splitlines():
            if line[:1].strip():
                address = line.partition(" ")[0]
            elif line.strip().startswith("Kernel driver in use: "):
                drivers[address] = line.partition(": ")[2].strip()
        return drivers

    @property
    def display_devices(self) -> list[Device]:
        """The functions that show a picture, virtual ones (SR-IOV) left out."""
        return [device for device in self.devices if device.class_code.startswith(DISPLAY) and not device.physfn]

    def in_slot(self, slot: str) -> list[Device]:
        """Every function of a slot, whatever it is."""
        return [device for device in self.devices if device.slot == slot]

    def functions(self, place: str) -> list[Device]:
        """The functions of the card in a slot, in their order: what makes it a card, and the companions that are its own (ADR 12, ADR 22).

        In a slot without a card: all of them. ``place`` may be a single function: that one.
        """
        if place in self.by_address:
            return [self.by_address[place]]
        slot = self.in_slot(place)
        shown = [device for device in slot if device.is_display and not device.physfn]
        if not shown:
            return slot
        if place in self.chosen:
            named = set(self.chosen[place])
            return [one for one in self.around(place) if one.address in named and not one.is_bridge and not one.physfn]
        return [device for device in slot if _is_part(device, shown[0], slot)] + [
            device for device in self._behind_own_switch(shown[0]) if device.class_code.startswith(AUDIO)
        ]

    def around(self, place: str) -> list[Device]:
        """What may be named as a function of the card in a slot: the slot's functions, and what else is behind the card's own switch."""
        slot = self.in_slot(place)
        shown = [device for device in slot if device.is_display and not device.physfn]
        return slot + (self._behind_own_switch(shown[0]) if shown else [])

    def _behind_own_switch(self, display: Device) -> list[Device]:
        """What else is behind the PCIe switch on the card itself, on buses of its own; bridges and the card's slot are left out.

        Intel's Arc has its audio there (Linux shows 03:00.0 and 04:00.0). A switch is the card's where it is the same maker's, below a root
        port, and nothing is behind it but that maker's bridges and audio functions, and the card.
        """
        found: list[Device] = []
        for address in display.ancestors[:-1]:  # the last one is the root port: the board's
            bridge = self.by_address.get(address)
            if bridge is None or not bridge.is_bridge or bridge.vendor != display.vendor:
                break
            behind = [one for one in self.devices if address in one.ancestors]
            others = [one for one in behind if not one.is_bridge and one.slot != display.slot]
            if any(one.vendor != display.vendor for one in behind if one.slot != display.slot) or any(
                one.physfn or not one.class_code.startswith(AUDIO) for one in others
            ):
                break
            found = others
        return found

    @cached_property
    def _cards(self) -> list[str]:
        """The slots of cards."""
        return sorted({device.slot for device in self.devices if device.is_display and not device.physfn})

    def place_of(self, part: str) -> str:
        """Where the card is that a slot or a function of a configuration belongs to: its slot; of anything else in a card's slot, the function."""
        slot = slot_of(part)
        if part in self.by_address and self.by_address[part].physfn:
            return part  # a virtual function is a card of its own
        named = [self.by_address[part]] if part in self.by_address else self.in_slot(slot)
        if slot in self._cards:
            return slot if part not in self.by_address or named[0] in self.functions(slot) else part
        owners = [place for place in self._cards if named and all(one in self.functions(place) for one in named)]
        return owners[0] if owners else slot

    def path_of(self, place: str) -> str:
        """The card as Proxmox VE names it where all of it is given: its slot, or its functions where the slot isn't the card."""
        mine = self.functions(place)
        if not mine or mine == self.in_slot(place):
            return place
        return ";".join(device.address for device in mine)

    def has_roaming(self, cluster: str | None, named: str, guest: int) -> bool:
        """Is a guest whose settings name a cluster as its host (``named``) on this node of the cluster now?"""
        return cluster == named and self.guests.config(guest) is not None

    def users_of(self, place: str, node: str) -> list[CardUser]:
        """The VMs that the card is given to, or a function of it."""
        return self.guests.users_of(self.path_of(place), node)

    def options_of(self, place: str, vmid: int, node: str) -> dict[str, dict[str, str]]:
        """The hostpci options by which a VM has the card, or a function of it: name -> properties."""
        config = self.guests.config(vmid)
        return {} if config is None else self.guests.options_of(config, self.path_of(place), node)

    def bound_by_us(self, place: str) -> bool:
        """Does this program's word bind the card, or a function of it, in the running kernel or from the next start on?"""
        words = (bound_by_word(self.cmdline.running), bound_by_word(self.cmdline.configured))
        return any(word.get(device.address) == device.id for word in words for device in self.functions(place))

    def given_by_us(self, place: str, vmid: int) -> bool:
        """Has this program given a VM the card, or a function of it, and noted that (homelab/remote/ledger.py, of_vm)?"""
        record = (noted_in(self.ledger, f"vm/{vmid}") or {}).get("record")
        entries = record.values() if isinstance(record, dict) else ()
        slots = (str(entry.get("slot") or "") for entry in entries if isinstance(entry, dict))
        return any(slot and overlap(slot, self.path_of(place)) for slot in slots)

    def containers_with(self, slot: str) -> list[GuestConfig]:
        """The containers whose configuration names the card's node: NVIDIA's, or one in /dev/dri."""
        mine = {device.address for device in self.functions(slot)}
        nodes = [f"/dev/nvidia{minor}" for address, minor in self.nvidia_minors.items() if address in mine]
        if not nodes:
            drm = [self.drm[address] for address in mine if address in self.drm]
            nodes = [f"/dev/dri/{name}" for one in drm for name in (one.card, one.render) if name]
        return [
            config
            for config in self.guests.configs
            if config.kind == "lxc" and any(entry.takes(node) for entry in config.container.entries for node in nodes)
        ]

    def pluggable(self, address: str) -> bool:
        """Can the function, or a bridge above it, be pulled out while the host runs?"""
        device = self.by_address[address]
        above = [self.by_address[one] for one in device.ancestors if one in self.by_address]
        return any(one.removable for one in (device, *above))

    def using(self, addresses: Iterable[str]) -> list[Holder]:
        """What has one of these functions open."""
        wanted = set(addresses)
        return [holder for holder in self.holders if wanted.intersection(holder.devices)]

    def bound_by_hand(self) -> set[str]:
        """Addresses that other configuration than this program's gives to vfio-pci, and that are on it now: ``vfio-pci.ids=``, modprobe.d, driverctl.

        Both are needed: configuration alone may never have had an effect, and a driver alone may be what a starting VM left behind.
        """
        ours = bound_by_word(self.cmdline.running)
        return {device.address for device in self.devices if self.kept_by_hand(device) and device.address not in ours}

    def kept_by_hand(self, device: Device) -> bool:
        """Is it on vfio-pci, and does other configuration than this program's bind it there, whether or not our word does so as well?"""
        return device.driver == "vfio-pci" and (self.has_override(device) or self.named_by_ids(device))

    def named_by_ids(self, device: Device) -> bool:
        """Do ids of other configuration than this program's name the function, in the running kernel or from the next start on?"""
        words = f"{self.cmdline.others} {self.cmdline.running}"
        return self._named(device, [self.vfio_ids, *_ids_by_word(words).values()])

    def named_at_next_boot(self, device: Device) -> bool:
        """Does other configuration than this program's name the function from the host's next start on, with or without effect?"""
        by_ids = self._named(device, [self.vfio_ids, *_ids_by_word(self.cmdline.others).values()])
        return by_ids or self.has_override(device)

    def has_override(self, device: Device) -> bool:
        """Does driverctl put the function on vfio-pci at each start?"""
        return bool(self._overrides(device))

    def _overrides(self, device: Device) -> list[str]:
        """driverctl's files for the function that say vfio-pci. Older versions name them without `pci-`; so does lib/vfio_ids.sh."""
        files = (f"/etc/driverctl.d/{prefix}{device.address}" for prefix in ("pci-", ""))
        return [path for path in files if path in self.vfio_mentions]

    @staticmethod
    def _named(device: Device, given: Iterable[str]) -> bool:
        return any(vfio_ids.names(ids, device.id, device.subsystem, device.class_code) for ids in given)

    def who_binds(self, devices: Iterable[Device]) -> list[str]:
        """Files and words, not this program's, that give these functions to vfio-pci."""
        words = _ids_by_word(f"{self.cmdline.others} {self.cmdline.running}")
        given = [
            *self.vfio_files.items(),
            *((f"{word} on the kernel command line", ids) for word, ids in words.items()),
        ]
        bound = list(devices)
        by_ids = [where for where, ids in given if any(self._named(device, [ids]) for device in bound)]
        return [*by_ids, *(path for device in bound for path in self._overrides(device))]

    def others_in_group(self, place: str) -> list[Device]:
        """What else a VM's start with the card takes from the host; bridges, of which VFIO asks nothing, are left out."""
        mine = {device.address for device in self.functions(place)}
        return [one for one in self.group_of(place) if one.address not in mine and not one.is_bridge]

    def group_of(self, slot: str) -> list[Device]:
        """Every function in the IOMMU group or groups of this card in the next boot, the card's own included.

        Before there are groups (IOMMU off), they are predicted as the kernel is going to draw them (acs.grouped). Where
        ``pcie_acs_override`` comes or goes with the next boot, the groups of now are split, or joined, by the same rule.
        """
        card = self.functions(slot)
        groups = {device.group for device in card if device.group is not None}
        now = [device for device in self.devices if device.group in groups]
        if groups and self.acs_override == self.acs_running:
            return now
        found = self._predicted_group(card, self.acs_override)
        if groups:  # splitting takes nothing in, and what is joined keeps what it has
            there = {device.address for device in now}
            found = found | there if self.acs_running - self.acs_override else found & there
        return [device for device in self.devices if device.address in found]

    def group_without_override(self, slot: str) -> list[Device]:
        """What the card would share its group with, did nobody override what the devices say of Access Control Services."""
        card = self.functions(slot)
        groups = {device.group for device in card if device.group is not None}
        if groups and not self.acs_running:
            return [device for device in self.devices if device.group in groups]
        found = self._predicted_group(card, acs.Override())
        return [device for device in self.devices if device.address in found]

    @property
    def acs_running(self) -> acs.Override:
        """What the running kernel overrides."""
        return acs.override(self.cmdline.running, self.kernel)

    @property
    def acs_override(self) -> acs.Override:
        """What the next boot's kernel is going to override."""
        return acs.override(self.next_cmdline, self.kernel)

    def _predicted_group(self, card: list[Device], taken_for: acs.Override) -> set[str]:
        """Addresses; the prediction may hold too much, and the reading after the reboot, with real groups, decides."""
        groups = self._groups_by(taken_for)
        own = {groups[device.address] for device in card}
        return {address for address, group in groups.items() if group in own}

    def _groups_by(self, taken_for: acs.Override) -> Mapping[str, str]:
        if taken_for not in self._grouped:
            self._grouped[taken_for] = acs.grouped(self.devices, taken_for)
        return self._grouped[taken_for]

    @cached_property
    def _grouped(self) -> dict[acs.Override, Mapping[str, str]]:
        return {}

    def mapped_one_to_one(self, slot: str) -> list[str]:
        """What the firmware wants mapped 1:1 for devices of the card's group: ``0x…-0x…``, or with the device where its tables say it."""
        groups = {device.group for device in self.functions(slot) if device.group is not None}
        said = [self.iommu.of_group.get(group) for group in sorted(groups)]
        # Where the groups are going to be others, or the kernel says nothing of them, it is the tables that tell; if there are any.
        if groups and all(said) and (self.acs_override == self.acs_running or not any(self._tables)):
            return list(dict.fromkeys(region for group in said if group for region in group.direct))
        found = ((device, self._wanted_by_tables(device)) for device in self.group_of(slot))
        return [f"{', '.join(ranges)} for {device.address}" for device, ranges in found if ranges]

    def _wanted_by_tables(self, device: Device) -> list[str]:
        """By IVRS or DMAR. Of Intel's, the kernel holds to none for USB controllers and graphics (device_rmrr_is_relaxable)."""
        unity, reserved = self._tables
        found = [one.memory for one in unity if one.names(device.address)]
        if not device.class_code.startswith((DISPLAY, "0c03")):
            chain = [one for one in device.ancestors[::-1] if one.startswith(f"{device.address.partition(':')[0]}:")]
            found += [one.memory for one in reserved if one.names([*chain, device.address])]
        return list(dict.fromkeys(map(str, found)))

    @cached_property
    def _tables(self) -> tuple[list[acpi.UnityMap], list[acpi.ReservedMemory]]:
        return acpi.unity_maps(self.iommu.table("IVRS")), acpi.reserved_memory(self.iommu.table("DMAR"))

    @cached_property
    def _names(self) -> dict[str, str]:
        """Address -> name and id, as `lspci -Dnnk` prints them: ``Ethernet Controller I226-V [8086:125c]``; empty where it was not asked."""
        found = {}
        for line in self.lspci.splitlines():
            address, _, rest = line.partition(" ")
            named = re.search(r"\[[0-9a-f]{4}\]: (.+) \[([0-9a-f]{4}:[0-9a-f]{4})\]", rest)
            if address.strip() and named:
                found[address] = f"{named[1]}, {named[2]}"
        return found

    @cached_property
    def _models(self) -> dict[str, str]:
        return names.listed(self.named)

    def model(self, device: Device) -> str:
        """``RTX 5090``; empty where nobody knows."""
        return names.model(device.id, self._models.get(device.address, ""))

    def card(self, place: str) -> str:
        """A card as every message calls it (names.py): ``RTX 5090 [10de:2b85] at 0000:01:00``.

        :param place: its slot, or a function in it, or several, joined by ``;``; where nothing is there, that is returned.
        """
        functions = self.functions(place.partition(";")[0])
        if not functions:
            return place
        shown = next((one for one in functions if one.is_display), functions[0])
        return names.card(shown.id, place, self._models.get(shown.address, ""), shown.kind)

    def describe(self, device: Device) -> str:
        """The function for a person: address, what kind of thing, what depends on it."""
        uses = [use for name in device.behind.split() for use in self._uses(name)]
        known = f"{model}, {device.id}" if device.is_display and (model := self.model(device)) else device.id
        name = self._names.get(device.address, known)
        return f"{device.address} {device.kind} [{name}]" + (f" ({', '.join(uses)})" if uses else "")

    def _uses(self, name: str) -> list[str]:
        """What hangs on a disk or network interface, such as ``nvme0n1: / on ext4``."""
        parents: dict[str, str] = {}
        found = [name]
        for line in self.disks.splitlines():
            # lsblk -r keeps the columns' places: an empty column is two spaces in a row.
            child, parent, kind, mountpoint = [*line.split(" "), "", "", ""][:4]
            parents[child] = parents.get(parent, parent) if parent else child
            if parents[child] == name and (mountpoint or kind == "zfs_member"):
                found.append(f"{mountpoint or 'ZFS'} on {child}")
        return found


def _is_part(device: Device, display: Device, slot: list[Device]) -> bool:
    """Is a function a part of the card that ``display`` makes, or only in its slot (ADR 12)?

    A processor's graphics share their slot with its security processor, USB controllers and the board's audio; these are the board's.
    The maker tells them apart: AMD's graphics and their audio are 1002, what else is there 1022.
    """
    same = device.vendor == display.vendor
    if device.physfn:
        return False
    if device.is_display:
        return same
    if device.class_code.startswith(AUDIO):
        # An audio function of another maker is the card's where the slot is nothing but a card's: function 0, and 1.
        pair = [one.address[-2:] for one in slot if not one.physfn] == [".0", ".1"] and display.address.endswith(".0")
        return same or pair
    return same and display.vendor == NVIDIA and device.class_code.startswith(USB_C)


def missing_words(words: str, cmdline: str) -> list[str]:
    """Those of ``words`` that aren't on ``cmdline``. An IOMMU word may have more options there (``intel_iommu=on,sm_on``)."""
    there = cmdline.split()
    return [
        word
        for word in words.split()
        if word not in there and not ("iommu=" in word and any(other.startswith(f"{word},") for other in there))
    ]


def _ids_by_word(cmdline: str) -> dict[str, str]:
    """Words that give ids to vfio-pci -> the ids; a value may be quoted."""
    found = {}
    for word in cmdline.split():
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "vfio_pci.ids":
            found[word] = value.strip('"')
    return found


def bound_by_word(cmdline: str) -> dict[str, str]:
    """Address -> vendor:device, from ``homelab.vfio=0000:01:00.0=10de:2b85,…``; the last such word counts, as in the script."""
    bound: dict[str, str] = {}
    for word in cmdline.split():
        if word.startswith("homelab.vfio="):
            pairs = (pair.partition("=") for pair in word.removeprefix("homelab.vfio=").split(","))
            bound = {address: ids for address, _, ids in pairs}
    return bound


def parse(text: str) -> HostFacts:
    """The last line of read_host.sh's standard output.

    :raises HomelabError: it is not what the script prints.
    """
    line = text.strip().rpartition("\n")[2]
    try:
        return HostFacts.model_validate_json(line)
    except ValueError as error:
        raise HomelabError(
            wanted="one line of JSON from read_host.sh",
            found=f"{line[:200]!r} ({str(error).splitlines()[0]})",
            why="nothing can be decided about a host that can't be read",
            next="log in and see whether root's shell prints something of its own for non-interactive sessions (~/.bashrc)",
        ) from error
