"""What a reading of a host is (layers/read_host.py). The program validates it by these types. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from remote_scripts.containers.card_nodes import DrmNodes
from remote_scripts.notes.record import Record
from remote_scripts.tools import device


@dataclass(frozen=True)
class CommandLines:
    """Kernel command lines. `running`: of this boot; `configured`: for the next boot; `others`: the same without
    homelab's words; `generated`: by grub-mkconfig.
    """

    running: str
    configured: str
    others: str
    generated: str


@dataclass(frozen=True)
class Iommu:
    """`tables`: ACPI tables that announce an IOMMU (that one is in use, only groups prove); `groups`: how many groups
    there are; `kernel_log`: dmesg lines; `direct`: number of a group -> memory, `0x…-0x…`, that the firmware wants
    mapped 1:1 for one of its devices (Linux, ABI/testing/sysfs-kernel-iommu_groups: reserved_regions of the type
    `direct`); `interrupts`: how the kernel's interrupts come, `remapped` by the IOMMU or `plain` (/proc/interrupts),
    empty: it can't be told.
    """

    tables: list[str]
    groups: int
    kernel_log: str
    direct: dict[int, list[str]] = field(default_factory=dict)
    interrupts: str = ""


@dataclass(frozen=True)
class Device:
    """One PCI function. `address` is `dddd:bb:ss.f`; `class_code` six hex digits; `group` its IOMMU group, if any;
    `acs`: whether it isolates what is behind it (Access Control Services); `path`: in sysfs; `behind`: the disks and
    network interfaces behind it, with blanks; `physfn`: the physical function of a virtual one (SR-IOV), else empty;
    `vfs`: how many virtual functions it has; `removable`: whether it can be pulled out while the host runs, as what
    hangs on Thunderbolt or USB4; `express`: which kind of PCIe device it is, as lspci says it, in lower case ("root
    port"), empty: conventional PCI, or not asked; `lanes`: how many its PCIe link has, and how many it can have;
    `speeds`: the same of its speed, as the kernel says it, such as `16.0 GT/s PCIe`.
    """

    address: str
    vendor: str
    device: str
    subsystem: str
    class_code: str
    boot_vga: bool
    driver: str
    group: int | None
    acs: bool
    path: str
    behind: str
    physfn: str
    vfs: int
    removable: bool
    express: str
    lanes: tuple[int, ...] = (0, 0)
    speeds: tuple[str, ...] = ("", "")


@dataclass(frozen=True)
class CardState:
    """A function of a card, as sysfs has it; None: there is no such file (`reset_method`: before Linux 5.15, or no way
    to reset it).

    `divided`: vgpu (NVIDIA's vGPU driver) or mdev (mediated devices), empty: it isn't; `reset_method`: the ways in
    which the kernel resets it, in their order; `d3cold_allowed`: 0 or 1; `control`: on or auto (power management);
    `had`: the original value, by the name of one of these fields, before this program set it
    (layers/card_values.py); it is restored when the settings no longer have the key.
    """

    divided: str = ""
    reset_method: str | None = None
    d3cold_allowed: str | None = None
    control: str | None = None
    had: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Vital:
    """A storage, network or keyboard that the host can't do without, and the functions that carry it.

    `kind`: storage, network or keyboard; `name`: for messages, such as `/ (ext4 on /dev/mapper/pve-root)`; `devices`:
    addresses of the PCI functions on the way to it; `trouble`: why they could not be read, empty: they were.
    """

    kind: str
    name: str
    devices: list[str]
    trouble: str = ""


@dataclass(frozen=True)
class Holder:
    """A process of the host, or its text console (`pid` 0), that has cards open: addresses of their functions."""

    pid: int
    name: str
    devices: list[str]

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else self.name


@dataclass(frozen=True)
class Managed:
    """A file that this program wrote. `state`: ok, changed (by hand) or missing."""

    layer: str
    path: str
    state: str


@dataclass(frozen=True)
class HandedOver:
    """The handover of cards from containers to VMs. `enabled`: whether its service is; `lost_hooks`: VMs without its
    hookscript; `cards`: name -> its record, if the
    card isn't simply with the host; `away`: the cards that a VM has, that are on their way or that are lost, in words.
    """

    enabled: bool = False
    away: str = ""
    lost_hooks: list[str] = field(default_factory=list)
    cards: dict[str, Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Nvidia:
    """NVIDIA's driver on the host.

    `version`: of the loaded one, empty: none. `installed`: whether there is one for the running kernel, loaded or not.
    `trouble`: why the driver isn't loaded, and what to do; empty: it is loaded. `missing_nodes`: device nodes that
    should be in /dev and aren't. `nodes_enabled`: whether homelab's service that makes them at boot is enabled.
    """

    version: str = ""
    installed: bool = False
    trouble: list[str] = field(default_factory=list)
    missing_nodes: list[str] = field(default_factory=list)
    nodes_enabled: bool = False


@dataclass(frozen=True)
class GuestConfig:
    """A guest's configuration. `kind`: vm or lxc; `lines`: those about cards, as in the file; after a line `[PENDING]`
    those that a running VM gets at its next start (PVE::QemuConfig).
    """

    kind: str
    id: int
    lines: str


@dataclass(frozen=True)
class OwedStart:
    """A guest that homelab has switched off, and that is to run again (notes/owed.py). `said`: who, and why it waits,
    in words; `is_lost`: nobody starts it but its owner.
    """

    said: str
    is_lost: bool


@dataclass(frozen=True)
class Guests:
    """The host's guests. `running`: ids of the VMs and containers that run; `configs`: the lines about cards of guests'
    configurations.

    `unlisted`: why it isn't known which run; empty: it is; `mappings`: /etc/pve/mapping/pci.cfg; `reservations`:
    qemu-server's, a line for each PCI function that a VM runs with.
    """

    running: Collection[int]
    unlisted: str
    configs: Sequence[GuestConfig]
    mappings: str
    reservations: str


@dataclass(frozen=True)
class HaFiles:
    """The HA manager's files below /etc/pve/ha, as texts: `resources`, and `status`, the state of its services, as
    JSON.
    """

    resources: str = ""
    status: str = ""


@dataclass(frozen=True)
class Cluster:
    """The cluster of the host, and its node in it; read together with the guests.

    `node`: the host's name in it; `name`: the cluster's, empty: the host is alone; `places`: each guest's file below
    /etc/pve/nodes, such as `pve2/qemu-server/203.conf`, a line each; `quorate`: whether /etc/pve can be written.
    """

    node: str = ""
    name: str = ""
    places: str = ""
    quorate: bool = True
    ha: HaFiles = HaFiles()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One reading of a host.

    `pve`: the version of Proxmox VE, empty: it isn't, or `unknown`; `packages`: versions that decide which options of
    cards it knows, and what runs in containers. `loader_clues`: what was found where the boot loader can't be told.
    `vfio_files`: file -> the ids in it that others give to vfio-pci; `vfio_mentions`: files
    that speak of vfio-pci in any other way. `module_lines`: lines of modprobe.d, `PATH: LINE`, that may keep modules
    from being loaded by their names. `card_states`: by address; `lost_values`: attributes of cards that have
    another value than the one that was set (layers/card_values.py), a sentence each; `framebuffers`: a card's address
    -> the kernel's in its memory (/proc/iomem), such as BOOTFB. `disks`: of lsblk; `lspci`: what it
    says. `unsafe_interrupts`: whether VFIO gives cards away without interrupt remapping
    (allow_unsafe_interrupts); `boot_warnings`: proxmox-boot-tool's. `stale_initramfs`: kernels whose initramfs is older
    than this program's part; `rolled_back`: the boot that wasn't confirmed and was undone, in words, `rolling_back`:
    whether the host still has to restart for that; `pending`: steps that have to follow what was written (boot,
    initramfs); `boot_lacks`: what the running kernel lacks of the last boot's plan, a sentence each, None: nothing is
    noted; `next_boot`: why the default entry doesn't start, in the four parts of an error, empty: it isn't known to.
    `drm`: by address; `nodes`: of graphics, by path;
    `cards_enabled`: whether the service that follows these nodes at each boot is enabled. `ledger`: of guests and
    mappings, name -> JSON (homelab/remote/ledger.py, notes/guest_note.py); `agents`: those that stacks keep, their
    versions by owner, empty: none is whole. `edits`: copies of this program's files that had been edited by hand.
    `kernel_log`: lines about cards, empty: not asked for; `lost`: functions of cards whose configuration space can't
    be read, or reads as ones. `unreadable`: files that a decision needs and that can't be read whole, `PATH: why`.
    """

    boot_id: str
    kernel: str
    pve: str
    packages: dict[str, str]
    cpu_vendor: str
    loader: str
    loader_clues: str
    cmdline: CommandLines
    iommu: Iommu
    vfio_files: dict[str, str]
    vfio_mentions: list[str]
    module_lines: list[str]
    modules: list[str]
    devices: Sequence[Device]
    card_states: dict[str, CardState]
    lost_values: list[str]
    vgpu_manager: bool
    framebuffers: dict[str, list[str]]
    lspci: str
    disks: str
    vital: list[Vital]
    holders: list[Holder]
    kernel_log: str
    lost: list[str]
    unsafe_interrupts: bool
    boot_warnings: str
    managed: list[Managed]
    stale_initramfs: list[str]
    rolled_back: str
    rolling_back: bool
    pending: list[str]
    boot_lacks: list[str] | None
    next_boot: dict[str, str]
    drm: dict[str, DrmNodes]
    nodes: dict[str, device.Device]
    cards_enabled: bool
    nvidia_minors: dict[str, int]
    nvidia: Nvidia
    ledger: dict[str, str]
    edits: list[str]
    agents: dict[str, str]
    handover: HandedOver
    owed: Sequence[OwedStart]
    guests: Guests
    cluster: Cluster
    unreadable: list[str]
