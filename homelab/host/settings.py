"""The settings of a host: its IOMMU, its cards, its downloads, its timeouts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator
from pydantic.alias_generators import to_camel

from homelab.container.settings import Container
from homelab.fields.access import Ssh
from homelab.fields.model import Model, NamedModel
from homelab.fields.types import (
    CONFIG_ID,
    AcsOverride,
    FileName,
    FunctionAddress,
    GuestId,
    InWords,
    MappingId,
    Name,
    NetworkAddress,
    NodeName,
    PciPlace,
    Plain,
    Seconds,
)
from homelab.nvidia.settings import Nvidia
from homelab.storage.settings import Download
from homelab.vm.settings import Vm

_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")


class IommuSettings(Model):
    """Words on the kernel command line that switch the IOMMU on."""

    enable: bool | None = None
    """`amd_iommu=on` or `intel_iommu=on`. By default `true` where a VM gets a card."""
    passthrough: bool | None = None
    """`iommu=pt`: the host's own devices bypass the IOMMU. By default `true` where the IOMMU is wanted. It decides
    nothing about what a VM can get ([ADR 21](adr/README.md#the-boot))."""
    acs_override: AcsOverride | None = None
    """`pcie_acs_override=`, such as `downstream` or `downstream,multifunction`: divides IOMMU groups although the
    hardware doesn't promise that their devices are isolated. Devices of a divided group may reach each other's memory
    past the IOMMU. Only Proxmox VE's kernels know it. It never takes a card out of a group with the host's own disks or
    network."""
    allow_unsafe_interrupts: bool = False
    """`true`: cards go to VMs even if the host can't remap interrupts. A guest with a card can then raise any interrupt
    of the host: use it only for guests that you trust as much as the host."""
    relax_rmrr: bool = False
    """`true`: `intel_iommu=on,relax_rmrr`. The kernel then ignores that the firmware reserves memory for the card
    (RMRR), which otherwise keeps the card from VMs. Data can be lost. Only for Intel, and only in Proxmox VE's
    kernels."""

    @model_validator(mode="after")
    def _switched_on(self) -> Self:
        if self.relax_rmrr and self.enable is False:
            raise ValueError(
                "relaxRmrr: it is part of the word that switches the IOMMU on, and enable: false takes that away"
            )
        return self


class Gpu(Model):
    """A card of a host. `match` says what it is, `address` where it is; set one of them, or both where two cards are
    identical."""

    match: Annotated[Plain | None, InWords("vendor:device, such as 10de:2b85")] = None
    """The id of the card's graphics function, as `lspci -nn` prints it."""
    address: PciPlace | None = None
    """The card's slot, such as `0000:01:00`, or the address of its graphics function. See [what a card
    is](cards.md#what-a-card-is)."""
    use: Literal["vm", "lxc", "host", "shared"] = "vm"
    """`vm`: vfio-pci gets the card, and a VM can have it. `lxc` and `host`: the card stays with the host's driver.
    `shared`: containers have it until a VM that names it starts, and again when that VM has stopped, without a reboot
    ([One card in turn](cards-in-turn.md)). Only for NVIDIA's cards, with the host's `nvidia`."""
    functions: list[FunctionAddress] = []
    """Only with `use: vm`: exactly these functions are the card, instead of those that the program finds ([what a card
    is](cards.md#what-a-card-is)). They are in the card's slot or behind a switch on the card, and include its graphics
    function. The VM gets a USB controller only if it is named here."""
    allow_group_members: list[FunctionAddress] = []
    """Functions in the card's IOMMU group that may leave the host together with the card. A disk that the host uses and
    a network interface that is up never go, whatever is listed here."""
    allow_console: bool = False
    """`true`: give the card away although it is the host's screen. You accept that the screen goes dark."""
    allow_containers: list[GuestId] = []
    """Ids of containers that use the card now, and may lose it. They are found by their own `dev[n]` and
    `lxc.mount.entry` lines. If a container has the card in another way (a hook, an included file, a node made by hand),
    only its programs are found, while they have the card open: the plan names them."""
    allow_direct_mapping: bool = False
    """`true`: give the card away although the firmware wants memory mapped 1:1 for it. Set it if you know that your
    kernel can do that."""
    allow_unstarted: bool = False
    """`true`: give the card away although cards of its kind fail in a VM unless the host's driver has started them
    before. Set it if you know that yours starts."""
    mapping: MappingId | None = None
    """The id of the card's PCI mapping in Proxmox VE. By default the card's name here."""
    live_migration: bool = False
    """Only for a virtual function, with `use: vm`. `true`: its mapping says that Proxmox VE can migrate a VM with it
    while it runs (`live-migration-capable`). The function's driver must support that. From Proxmox VE 8.4 on."""
    reset: Literal["flr", "bus", "pm", "acpi", "device_specific"] | None = None
    """Only with `use: vm`: the one way in which the kernel resets the card's functions (`reset_method`); by default it
    tries several. Set it only if the plan's note about your card, or your own trial, says so. `bus` is only for a card
    with a single function."""
    keep_awake: bool = False
    """Only with `use: vm`. `true`: the card doesn't sleep while no VM has it. This is for a card that doesn't wake up
    again (D3cold). It uses more power."""
    passthrough_test: bool = False
    """`true`: test the binding. A small VM gets the card, reports what it sees, and is removed."""

    @property
    def may_leave(self) -> bool:
        """Whether a VM can have it, from the host's start on or in turn with containers."""
        return self.use in ("vm", "shared")

    @property
    def is_nvidia(self) -> bool:
        """Whether `match` is an id of NVIDIA's."""
        return (self.match or "").startswith("10de:")

    @field_validator("match", mode="before")
    @classmethod
    def _pci_id(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not _PCI_ID.fullmatch(value.lower()):
            raise ValueError("expected vendor:device in hexadecimal, such as 10de:2b85 (see `lspci -nn`)")
        return value.lower()

    @model_validator(mode="after")
    def _fits_its_use(self) -> Self:
        for_vfio = ["functions", "reset", "keep_awake", "live_migration"]
        for_vfio += ["allow_console", "allow_containers", "passthrough_test"] if self.use == "shared" else []
        names = [to_camel(name) for name in for_vfio if self.use != "vm" and getattr(self, name)]
        if names:
            raise ValueError(f"expected no {names[0]}: it is for a card that is bound to vfio-pci at boot (use: vm)")
        if self.use == "shared" and self.match is not None and not self.is_nvidia:
            raise ValueError("use: shared is for NVIDIA's cards (10de:...)")
        if self.match is None and self.address is None:
            raise ValueError("expected `match` (vendor:device, such as 10de:2b85) or `address` (such as 0000:01:00)")
        return self


class Timeouts(Model):
    """How long the program waits for a host."""

    connect: Seconds = 15
    """For a connection."""
    api: Seconds = 60
    """For an answer of the Proxmox VE API, or one reading of the host over SSH."""
    api_task: Seconds = 300
    """For a task of Proxmox VE, in addition to what the task itself waits for."""
    create: Seconds = 7200
    """For creating or removing a VM or a container: its disk may be copied over a network, or be overwritten first.
    Also for a download."""
    reboot: Seconds = 600
    """Until a host that reboots answers again."""
    rollback: Annotated[Seconds, Field(ge=30)] = 600
    """From the host's start until a boot is undone that no `up` has confirmed; if no `up` waits, the host then judges
    the boot itself. A healthy host needs 30 to start and be confirmed."""
    step: Seconds = 3600
    """For one step on the host, including the wait for another run; then the host ends the step. Steps of NVIDIA's
    stack have their own timeouts in addition. If you change it, each step runs once more."""
    task: Seconds = 10_800
    """For one change over the API or one reading, in addition to reboots and shutdowns that it waits for."""

    @property
    def boot(self) -> int:
        """Seconds until a host that reboots must have answered: its reboot, the time of a boot on trial, and the
        reboot that the switch makes."""
        return self.reboot + self.rollback + self.reboot


class Host(NamedModel):
    """A Proxmox VE node."""

    address: NetworkAddress
    """The host's address."""
    ssh: Ssh
    """How to reach the host over SSH."""
    node: NodeName | None = None
    """The node's name in Proxmox VE. By default the host's name in these settings."""
    iommu: IommuSettings = IommuSettings()
    """Options of the kernel command line for the IOMMU."""
    gpus: dict[Name, Gpu] = {}
    """The host's cards, each under a name of your choice."""
    downloads: dict[FileName, Download] = {}
    """Files that Proxmox VE downloads for new guests, each under the name that it gets there: `noble.qcow2`. The end of
    the name says what it is: `.iso`; a disk image in `.qcow2`, `.raw` or `.vmdk`; a template of containers in
    `.tar.zst`, `.tar.gz`, `.tar.xz` or `.tar.bz2`. A cloud image whose address ends in `.img` is mostly qcow2."""
    take_over: bool = False
    """`true`: homelab takes over cards that `vfio-pci.ids=` or a file in modprobe.d binds already, and binds them by
    their addresses. A card on an external port (Thunderbolt) stays bound by its id, since it may appear late. For a
    card that stays with the host, a list of ids without it on the kernel command line counts until `pulumi destroy`;
    another card with the same id stays bound. Your files stay as they are."""
    boot_framebuffer: Literal["keep", "off"] = "keep"
    """`off`: the kernel doesn't use the firmware's picture (`initcall_blacklist=sysfb_init`). Set it only if the
    verification asks for it: a card for a VM is then the host's screen, and that picture uses its memory. The host
    shows nothing on any screen after the boot menu, so have another way in first. The boot entry 'without GPU
    passthrough' doesn't have this option."""
    reboot: Literal["auto", "manual"] = "auto"
    """`manual`: `pulumi up` doesn't reboot the host. It ends and says what to do, and the next `up` continues after
    your reboot."""
    cluster: Name | None = None
    """The cluster that the host is a node of: any name of your choice. Hosts that share this name reboot one at a time,
    each when the one before is back and verified."""
    allow_quorum_loss: bool = False
    """`true`: reboot the node even if the others have no quorum without it, as in a cluster of two without a QDevice.
    Until it is back, they start no guest and accept no change. It is still refused while HA has a guest that isn't
    stopped, on any node: its watchdog would reset the others."""
    nvidia: Nvidia | None = None
    """NVIDIA's stack on the host itself, for the cards that stay with it."""
    timeouts: Timeouts = Timeouts()
    """How long the program waits for the host."""

    _before: str = PrivateAttr("")
    _vms: tuple[Vm, ...] = PrivateAttr(())
    _containers: tuple[Container, ...] = PrivateAttr(())

    def take_place(self, name: str, before: str, vms: Iterable[Vm], containers: Iterable[Container]) -> None:
        """Tells it its place in the whole settings.

        :param name: its own.
        :param before: of the node of its cluster that restarts before it; empty: it is the first, or in no cluster.
        :param vms: its VMs.
        :param containers: its containers.
        """
        self.take_name(name)
        self._before, self._vms, self._containers = before, tuple(vms), tuple(containers)

    @property
    def node_name(self) -> str:
        """Its name in Proxmox VE."""
        return self.node or self.name

    @property
    def before(self) -> str:
        """The name of the host that restarts before this one in its cluster; empty: this one is the first, or in no
        cluster."""
        return self._before

    @property
    def vms(self) -> tuple[Vm, ...]:
        """Its VMs in the settings."""
        return self._vms

    @property
    def containers(self) -> tuple[Container, ...]:
        """Its containers in the settings."""
        return self._containers

    @property
    def gives_cards(self) -> bool:
        """Whether a VM can get a card of this host."""
        return any(gpu.may_leave for gpu in self.gpus.values())

    @property
    def hands_over(self) -> list[str]:
        """The names of the cards that containers and a VM have in turn."""
        return [name for name, gpu in self.gpus.items() if gpu.use == "shared"]

    def shares(self, cards: Iterable[str]) -> bool:
        """Whether a guest's cards are among these."""
        return any(card in self.hands_over for card in cards)

    @model_validator(mode="after")
    def _fit_to_hand_over(self) -> Self:
        for name in self.hands_over:
            if self.nvidia is None:
                raise ValueError(f"gpus.{name}: use: shared needs nvidia, also for a driver that is installed already")
        return self

    @property
    def wants_iommu(self) -> bool:
        """Whether the IOMMU is to be on; without a card for VMs, only if the settings ask for it."""
        return self.gives_cards if self.iommu.enable is None else self.iommu.enable

    @property
    def bypasses_iommu(self) -> bool:
        """Whether the host's own devices are to bypass the IOMMU (iommu=pt)."""
        default = self.gives_cards or self.wants_iommu
        return default if self.iommu.passthrough is None else self.iommu.passthrough

    def mapping_of(self, gpu: str) -> str:
        """The id of a card's PCI mapping.

        :param gpu: the card's name in the settings.
        """
        return self.gpus[gpu].mapping or gpu

    @model_validator(mode="after")
    def _distinct_mappings(self) -> Self:
        names = [name for name, gpu in self.gpus.items() if gpu.may_leave]
        ids = [self.mapping_of(name) for name in names]
        for name in names:
            if not re.fullmatch(CONFIG_ID, self.mapping_of(name)):
                raise ValueError(f"gpus.{name}: Proxmox VE takes no mapping id of one letter: set `mapping`")
            if ids.count(self.mapping_of(name)) > 1:
                raise ValueError(f"gpus.{name}: another card of this host has the mapping {self.mapping_of(name)}, too")
        return self
