"""Scenarios: the YAML that describes a host's hardware, firmware, boot and guests.

The models say what may be written; a mistake is reported with its file and key, and unknown keys are mistakes. `Scenario.machine()` is the same with every default filled in, as plain
data: what machine.json holds and the simulated kernel and commands read.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lab import quick_yaml
from lab.host import catalogue, distributions

SCENARIO_FOLDER = Path(__file__).parent / "scenarios"
_GIB = 1 << 30
#: pve-container of the releases; the hotplug of `dev[n]` came with 6.0.4 (its changelog).
_QEMU_SERVER = {"8.4": "8.4.14", "9.1": "9.1.2"}
_PVE_CONTAINER = {"8.4": "5.3.3", "9.1": "6.0.18"}


class ScenarioError(ValueError):
    """A scenario that can't be used; the text names the file, the key, what was expected and what was found."""


def _kebab(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _address(value: object) -> object:
    """`01:00.0` means `0000:01:00.0`."""
    return f"0000:{value}" if isinstance(value, str) and value.count(":") == 1 else value


Hex4 = Annotated[str, Field(pattern=r"^[0-9a-f]{4}$")]
Address = Annotated[str, BeforeValidator(_address), Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=_kebab, populate_by_name=True, frozen=True)


class Cpu(_Model):
    """The processor: `vendor` as in /proc/cpuinfo."""

    vendor: Literal["AuthenticAMD", "GenuineIntel"]
    model: str


class OneToOne(_Model):
    """Memory that the firmware wants mapped 1:1 for PCI functions from `first` to `last` (AMD: IVMD; Intel: RMRR, each with its path)."""

    first: Address
    last: Address
    start: int
    end: int


class Firmware(_Model):
    """Firmware settings. `iommu` is the VT-d / AMD-Vi switch; `remaps-interrupts`: the IOMMU can do that."""

    mode: Literal["bios", "uefi"] = "uefi"
    iommu: bool = True
    secure_boot: bool = False
    remaps_interrupts: bool = True
    one_to_one: list[OneToOne] = []


class Boot(_Model):
    """How the host boots. `esps`: UUIDs of the partitions that proxmox-boot-tool manages (none: it doesn't)."""

    loader: Literal["grub", "systemd-boot"] = "grub"
    esps: list[Annotated[str, Field(pattern=r"^[0-9A-F]{4}-[0-9A-F]{4}$")]] = []
    cmdline: str = "quiet"
    root: str = "/dev/mapper/pve-root"

    @property
    def is_zfs(self) -> bool:
        """Whether the root file system is ZFS."""
        return self.root.startswith("ZFS=")


class Disk(_Model):
    """A disk on a storage controller. `use` says what it holds.

    root: the boot disk as the Proxmox installer lays it out; zfs / lvm: all of it; filesystem: one
    partition with `fstype` on `mountpoint`; unused: nothing.
    """

    name: str
    size: int = 1000 * _GIB
    use: Literal["root", "zfs", "lvm", "filesystem", "unused"] = "unused"
    fstype: str = "ext4"
    mountpoint: str | None = None


class Net(_Model):
    """A network interface of a card; `bridge` when it is a port of one (vmbr0: the host's way out)."""

    name: str
    bridge: str | None = None


class Pci(_Model):
    """One PCI function; functions behind a bridge are nested in `children`, or name it as `parent`.

    `name`, `vendor_name`: pci.ids' (without a name lspci prints `Device`); `group`: its IOMMU group when the IOMMU works (none: outside of any),
    `acs_group` under `pcie_acs_override=downstream`; `driver`: what claims it on a stock host (null: nothing does; otherwise by class and vendor);
    `modules`: those with a matching alias, in lspci's order; `built_in`: the driver is inside the kernel image; `boot_vga`: the firmware's console;
    `acs`: a bridge with Access Control Services; `bars`: sizes; `physfn`: a virtual function's physical one; `removable`: on an external port;
    `resets`: its own ones, the kernel adds `bus` for the first function on a bus; `blocks`: disks, on a USB controller USB disks.
    """

    address: Address
    vendor: Hex4
    device: Hex4
    class_: Hex4
    prog_if: Annotated[str, Field(pattern=r"^[0-9a-f]{2}$")] | None = None
    rev: Annotated[str, Field(pattern=r"^[0-9a-f]{2}$")] = "00"
    subsystem: Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")] | None = None
    name: str | None = None
    vendor_name: str | None = None
    group: Annotated[int, Field(ge=0)] | None = None
    acs_group: Annotated[int, Field(ge=0)] | None = None
    driver: str | None = "auto"
    modules: list[str] | None = None
    built_in: bool = False
    boot_vga: bool = False
    acs: bool = False
    bars: list[Annotated[str, Field(pattern=r"^[0-9]+[KMG]$")]] = []
    parent: Address | None = None
    physfn: Address | None = None
    removable: bool = False
    resets: list[Literal["device_specific", "acpi", "flr", "af_flr", "pm"]] | None = None
    blocks: list[Disk] = []
    nets: list[Net] = []
    children: list[Pci] = []

    def resolved(self) -> dict[str, Any]:
        """The function as machine.json has it, without disks and interfaces."""
        modules = self.modules
        if modules is None:
            modules = catalogue.default_modules(self.vendor, self.device, self.class_)
        driver = catalogue.default_driver(self.class_, modules) if self.driver == "auto" else self.driver
        return {
            **self.model_dump(exclude={"class_", "rev", "blocks", "nets", "children"}),
            "pci_class": self.class_,
            "prog_if": self.prog_if or catalogue.PROG_IF.get(self.class_, ("00", ""))[0],
            "revision": self.rev,
            "vendor_name": catalogue.VENDORS.get(self.vendor, "Unknown vendor")
            if self.vendor_name is None
            else self.vendor_name,
            "driver": driver,
            "modules": modules,
            "resets": ([] if self.class_ == "0604" else ["flr"]) if self.resets is None else self.resets,
        }


class System(_Model):
    """What a VM has installed, and whether its firmware demands signed modules (None: as its efidisk says).

    `user`: the account besides root, with sudo; `mok_enrolled`: DKMS's key was enrolled at the guest's console.
    """

    distribution: Literal["ubuntu-24.04", "ubuntu-22.04", "ubuntu-26.04", "debian-12", "debian-13"] = "ubuntu-24.04"
    kernel: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+[-+.~a-z0-9]*$")] | None = None
    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")] | None = None
    secure_boot: bool | None = None
    mok_enrolled: bool = False

    @model_validator(mode="after")
    def _another_user(self) -> Self:
        if self.user == "root":
            raise ValueError("user: root is there anyway; name the other account, which has sudo")
        return self


class Guest(_Model):
    """A VM or a container: its configuration's text, whether it starts with the host; `nvidia` is the version of
    NVIDIA's libraries that are installed in a container."""

    id: Annotated[int, Field(ge=100)]
    kind: Literal["vm", "container"]
    name: str
    conf: str
    onboot: bool = False
    running: bool | None = None
    nvidia: str | None = None
    system: System | None = None

    @model_validator(mode="after")
    def _fitting_system(self) -> Self:
        if self.system is None:
            return self
        lines = [line.replace(" ", "") for line in self.conf.splitlines()]
        if self.kind != "vm" or any(line.startswith("ostype:w") for line in lines):
            raise ValueError(f"system: is for a VM with Linux; a container, or Windows, has none (guest {self.id})")
        if self.system.secure_boot and "bios:ovmf" not in lines:
            raise ValueError(
                f"system.secure-boot: wanted `bios: ovmf` in the conf of guest {self.id}; SeaBIOS has none"
            )
        return self

    @property
    def starts(self) -> bool:
        """Whether it runs when the lab starts: by `onboot`, unless `running` says otherwise; after a reboot
        only `onboot` counts."""
        return self.onboot if self.running is None else self.running


class NvidiaDriver(_Model):
    """NVIDIA's driver installed on the host.

    `loaded`: not blacklisted; `uvm`: nvidia-uvm is loaded at boot too; `nodes`: something that runs at boot makes the
    nodes in /dev; `minors`: numbers N of /dev/nvidiaN by PCI address, where they aren't in PCI order.
    """

    version: str
    open: bool = True
    loaded: bool = True
    uvm: bool = True
    nodes: bool = True
    minors: dict[Address, Annotated[int, Field(ge=0, le=253)]] = {}


class File(_Model):
    """A file put over the stock tree."""

    content: str
    mode: Annotated[str, Field(pattern=r"^0[0-7]{3}$")] = "0644"


class Scenario(_Model):
    """A whole host. In the YAML the keys have `-` for `_`; `extends` names the lab's scenario that has each key which isn't there.

    `title`: one line for people; `node`: its name; `pve`: `8.4` (Debian 12) or `9.1` (Debian 13); `qemu_server`: that package's version, from 9.1.13
    on a stop runs its guest's post-stop, before it `qm cleanup` does; `kernels`: the newest is booted; `files`: put over the stock tree before the
    boot configuration is generated, a host configured by hand; `no_subscription`: the owner has added that repository, which has the headers of
    kernels, and apt has its lists; `drm`: graphics cards in the order of their numbers in /dev/dri (otherwise as drivers take them); `faults`: FAULTS
    of lab/machine.py, from the start on; `cluster`: the folder of the cluster that it is a node of, which lab/cluster.py sets.
    """

    name: str = ""
    title: str
    node: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = "pve"
    pve: Literal["8.4", "9.1"] = "9.1"
    qemu_server: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] | None = None
    kernels: Annotated[list[Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+-\d+-pve$")]], Field(min_length=1)]
    cpu: Cpu
    firmware: Firmware = Firmware()
    boot: Boot = Boot()
    pci: list[Pci]
    guests: list[Guest] = []
    files: dict[Annotated[str, Field(pattern="^/")], str | File] = {}
    nvidia: NvidiaDriver | None = None
    no_subscription: bool = False
    drm: list[Address] = []
    faults: dict[str, Any] = {}
    cluster: Annotated[str, Field(pattern="^/")] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        functions = self.functions()
        addresses = [f.address for f in functions]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ValueError(f"pci: {address} is there twice; an address names one function")
        for function in functions:
            if function.physfn is not None and function.physfn not in addresses:
                raise ValueError(f"pci: {function.address}: its physfn {function.physfn} is no device of the list")
            if function.parent is not None and function.parent not in addresses:
                raise ValueError(f"pci: {function.address}: its parent {function.parent} is no device of the list")
        if self.boot.loader == "systemd-boot" and (self.firmware.mode != "uefi" or not self.boot.esps):
            raise ValueError("boot: systemd-boot needs firmware mode uefi and at least one of esps")
        if self.boot.loader == "systemd-boot" and self.firmware.secure_boot:
            raise ValueError("boot: with Secure Boot, Proxmox boots through shim and GRUB, not systemd-boot")
        if sum(f.boot_vga for f in functions) > 1:
            raise ValueError("pci: boot-vga is set on two devices; the firmware starts the console on one")
        if sum(d.use == "root" for f in functions for d in f.blocks) < 1:
            raise ValueError("pci: no disk has `use: root`; a host boots from somewhere")
        for address in self.drm:
            if address not in addresses:
                raise ValueError(f"drm: {address} is no device of pci")
        if len({g.id for g in self.guests}) < len(self.guests):
            raise ValueError("guests: an id is there twice")
        self._consistent_nvidia(addresses)
        return self

    def _consistent_nvidia(self, addresses: list[str]) -> None:
        for guest in self.guests:
            if guest.nvidia and guest.kind == "vm":
                raise ValueError(f"guests: {guest.id}: `nvidia` is for containers; a VM's driver isn't simulated")
        minors = self.nvidia.minors if self.nvidia else {}
        for address in minors:
            if address not in addresses:
                raise ValueError(f"nvidia: minors: {address} is no device of pci")
        if len(set(minors.values())) < len(minors):
            raise ValueError("nvidia: minors: a number is there twice; a number names one card")

    def functions(self) -> list[Pci]:
        """All PCI functions, nested ones with their bridge as parent."""
        found: list[Pci] = []

        def walk(items: list[Pci], parent: str | None) -> None:
            for item in items:
                found.append(item if item.parent or not parent else item.model_copy(update={"parent": parent}))
                walk(item.children, item.address)

        walk(self.pci, None)
        return found

    def stable_uuid(self, what: str) -> str:
        """A UUID that depends on the scenario alone."""
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.node}.{what}.lab"))

    def machine(self) -> dict[str, Any]:
        """machine.json of a host that has just been installed, powered off."""
        layout = _Layout(self)
        devices = []
        for function in self.functions():
            entry = function.resolved()
            entry["blocks"] = [layout.disk(disk) for disk in function.blocks]
            entry["nets"] = [
                {"name": n.name, "bridge": n.bridge, "mac": _mac(self.node, n.name)} for n in function.nets
            ]
            devices.append(entry)
        return {
            "version": 1,
            "node": self.node,
            "pve": self.pve,
            "qemu_server": self.qemu_server or _QEMU_SERVER[self.pve],
            "pve_container": _PVE_CONTAINER[self.pve],
            # Whoever installed a driver with Secure Boot on has enrolled the key that its modules are signed with.
            "mok_enrolled": self.nvidia is not None,
            "power": "off",
            "boots": 0,
            "next_entry": None,
            "drm": list(self.drm),
            "cluster": self.cluster,
            "faults": dict(self.faults),
            "hardware": {
                "cpu": self.cpu.model_dump(),
                "firmware": self.firmware.model_dump(),
                "devices": devices,
                "volumes": layout.volumes,
            },
            "boot": {**self.boot.model_dump(), **layout.boot()},
            "mounts": layout.mounts(),
            "guests": {
                str(g.id): {
                    "kind": g.kind,
                    "name": g.name,
                    "onboot": g.onboot,
                    "at_start": g.starts,
                    "running": False,
                    "nvidia": g.nvidia,
                }
                | ({"system": distributions.system(**g.system.model_dump())} if g.system else {})
                for g in self.guests
            },
            "nvidia": self.nvidia.model_dump() if self.nvidia else None,
        }


class _Layout:
    """Partitions, volumes and mounts of a scenario's disks, as the Proxmox installer makes them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.volumes: list[dict[str, Any]] = []
        self._mounts: list[dict[str, str]] = []
        self._esps = list(scenario.boot.esps)
        self._root_disks = 0
        self.root_uuid = scenario.stable_uuid("root")

    def disk(self, disk: Disk) -> dict[str, Any]:
        """The disk with its partitions."""
        parts: list[dict[str, Any]] = []
        if disk.use == "root":
            parts = self._root_disk(disk)
        elif disk.use in ("zfs", "lvm"):
            parts = [self._part(disk, 1, disk.size, "zfs_member" if disk.use == "zfs" else "LVM2_member")]
        elif disk.use == "filesystem":
            identifier = self.scenario.stable_uuid(disk.name)
            parts = [self._part(disk, 1, disk.size, disk.fstype, identifier, disk.mountpoint)]
            if disk.mountpoint:
                self._mount(f"/dev/{parts[0]['name']}", disk.mountpoint, disk.fstype)
        return {"name": disk.name, "size": disk.size, "partitions": parts}

    def _part(
        self,
        disk: Disk,
        number: int,
        size: int,
        fstype: str | None,
        identifier: str | None = None,
        mountpoint: str | None = None,
    ) -> dict[str, Any]:
        name = f"{disk.name}p{number}" if disk.name[-1].isdigit() else f"{disk.name}{number}"
        return {"name": name, "number": number, **_content(size, fstype, identifier, mountpoint)}

    def _root_disk(self, disk: Disk) -> list[dict[str, Any]]:
        first, self._root_disks = self._root_disks == 0, self._root_disks + 1
        uefi, boot = self.scenario.firmware.mode == "uefi", self.scenario.boot
        esp = self._esps.pop(0) if self._esps else None
        mountpoint = None
        if esp is None:  # Proxmox VE's installer formats it by BIOS, too
            esp = _short_uuid(self.scenario.node, disk.name)
            if uefi and first and not boot.esps:
                mountpoint = "/boot/efi"
        parts = [self._part(disk, 1, 1007 << 10, None), self._part(disk, 2, _GIB, "vfat", esp, mountpoint)]
        rest = disk.size - 2 * _GIB
        if boot.is_zfs:
            parts.append(self._part(disk, 3, rest, "zfs_member"))
            if first:
                self._mount(boot.root.removeprefix("ZFS="), "/", "zfs")
        else:
            parts.append(self._part(disk, 3, rest, "LVM2_member"))
            if first:
                on = parts[-1]["name"]
                self.volumes += [
                    {"name": "pve-swap", "on": on, **_content(8 * _GIB, "swap")},
                    {"name": "pve-root", "on": on, **_content(96 * _GIB, "ext4", self.root_uuid, "/")},
                ]
                self._mount(boot.root, "/", "ext4")
        if mountpoint and esp:
            self._mount(f"/dev/{parts[1]['name']}", mountpoint, "vfat")
        return parts

    def _mount(self, source: str, target: str, fstype: str) -> None:
        self._mounts.append({"source": source, "target": target, "fstype": fstype, "options": "rw,relatime"})

    def mounts(self) -> list[dict[str, str]]:
        """What is mounted after boot, / first."""
        fixed = [
            ("sysfs", "/sys", "sysfs"),
            ("proc", "/proc", "proc"),
            ("udev", "/dev", "devtmpfs"),
            ("tmpfs", "/run", "tmpfs"),
        ]
        own = sorted(self._mounts, key=lambda m: m["target"])
        return (
            [{"source": s, "target": t, "fstype": f, "options": "rw,relatime"} for s, t, f in fixed]
            + own
            + [{"source": "/dev/fuse", "target": "/etc/pve", "fstype": "fuse", "options": "rw,relatime"}]
        )

    def boot(self) -> dict[str, Any]:
        """What GRUB's scripts need to know of the root file system."""
        boot = self.scenario.boot
        if boot.is_zfs:
            pool_guid = hashlib.sha256(self.scenario.node.encode()).hexdigest()[:16]
            return {
                "root_device": boot.root.removeprefix("ZFS="),
                "root_uuid": pool_guid,
                "root_fs": "zfs",
                "grub_root": boot.root,
                "grub_can_write": False,
            }
        on_lvm = boot.root.startswith("/dev/mapper/")
        return {
            "root_device": boot.root,
            "root_uuid": self.root_uuid,
            "root_fs": "ext2",
            "grub_root": boot.root,
            "grub_can_write": not on_lvm,
        }


def _content(
    size: int, fstype: str | None, identifier: str | None = None, mountpoint: str | None = None
) -> dict[str, Any]:
    """What a partition or a volume holds."""
    return {"size": size, "fstype": fstype, "uuid": identifier, "mountpoint": mountpoint}


def _short_uuid(*parts: str) -> str:
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest().upper()
    return f"{digest[:4]}-{digest[4:8]}"


def _mac(*parts: str) -> str:
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()
    return "bc:24:11:" + ":".join(digest[i : i + 2] for i in (0, 2, 4))


def scenario_names() -> list[str]:
    """Names of the scenarios that come with the lab."""
    return sorted(path.stem for path in SCENARIO_FOLDER.glob("*.yaml"))


def load_scenario(name_or_path: str) -> Scenario:
    """A scenario by its name, or from a YAML file (anything with a slash or ending in .yaml).

    Raises:
        ScenarioError: no such scenario, or one that can't be used.
    """
    is_path = "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path) if is_path else SCENARIO_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ScenarioError(
            f"no scenario {name_or_path!r}: looked for {path}. There are: {', '.join(scenario_names())};"
            " or give the path of a YAML file"
        )
    return scenario_from(_data(path), str(path), path.stem)


def _data(path: Path) -> dict[str, Any]:
    """What a file says, and of the scenario that it `extends` what it doesn't say itself."""
    try:
        data = quick_yaml.load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ScenarioError(
            f"{path}: expected a mapping of keys such as title, kernels, cpu, pci; found {type(data).__name__}"
        )
    base = data.pop("extends", None)
    return data if base is None else {**_data(SCENARIO_FOLDER / f"{base}.yaml"), **data}


def scenario_from(data: dict[str, Any], origin: str, name: str) -> Scenario:
    """A scenario from plain data.

    Args:
        origin: for error messages, such as a file name.

    Raises:
        ScenarioError: naming each key that is wrong.
    """
    try:
        return Scenario.model_validate({"name": name, **data})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(the whole)"
            found = "" if problem["type"] == "missing" else f"; found {problem['input']!r:.80}"
            lines.append(f"{origin}: {key}: {problem['msg']}{found}")
        raise ScenarioError("\n".join(lines)) from error
