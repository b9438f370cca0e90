"""/sys, /proc and /dev of a lab host as a kernel fills them at boot, before any driver is bound."""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import acpi
from .devices import PciDevice, load_devices, reset_methods
from .state import CONTROL_FILE, HostState, kernel_release

LOADER_INFO = "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
LOADER_ONE_SHOT = "LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
LOADER_ENTRY = "LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@dataclass(frozen=True)
class Running:
    """What the tree needs to know of the kernel that starts."""

    kernel: str
    cmdline: str
    boot_id: str
    iommu: bool
    acs_override: bool
    entry: str


# Paths are texts here: a boot makes a thousand of them, and a Path takes ten times as long.
def put(path: str | Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write one file of the tree."""
    data = content.encode() if isinstance(content, str) else content
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(descriptor, data)
    os.close(descriptor)


def link(path: str, target: str) -> None:
    """A relative symbolic link at `path` to `target`, both inside the tree."""
    folder, _, _ = path.rpartition("/")
    relative = between(folder, target)
    try:
        os.symlink(relative, path)  # noqa: PTH211
    except FileNotFoundError:
        os.makedirs(folder)  # noqa: PTH103
        os.symlink(relative, path)  # noqa: PTH211


def between(folder: str, target: str) -> str:
    """The way from a folder to a target, both absolute and without `.` and `..`."""
    here, there = folder.split("/"), target.split("/")
    common = 0
    for one, other in zip(here, there, strict=False):
        if one != other:
            break
        common += 1
    return "/".join([".."] * (len(here) - common) + there[common:])


def _folder(path: str) -> None:
    os.makedirs(path, exist_ok=True)  # noqa: PTH103


def clear(host: HostState) -> None:
    """Empty what exists only while a system runs: /proc, /sys, /run and /dev."""
    for name in ("proc", "sys", "run", "dev"):
        folder = host.root / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)


def build(host: HostState, running: Running) -> None:
    """Write the trees for a kernel that has just started."""
    clear(host)
    devices = load_devices(host.machine)
    paths = device_paths(str(host.root), devices)
    _pci(host, running, devices, paths)
    _block(host, devices, paths)
    _net(host, devices, paths)
    _firmware(host, running)
    _proc(host, running)
    _run(host)


def device_paths(root: str, devices: list[PciDevice]) -> dict[str, str]:
    """Each device's folder below /sys/devices, nested below its bridges as the kernel does."""
    by_address = {d.address: d for d in devices}
    paths: dict[str, str] = {}

    def place(device: PciDevice) -> str:
        if device.address not in paths:
            parent = by_address.get(device.parent or "")
            base = place(parent) if parent else f"{root}/sys/devices/pci{device.bus}"
            paths[device.address] = f"{base}/{device.address}"
        return paths[device.address]

    for device in devices:
        place(device)
    return paths


def _pci(host: HostState, running: Running, devices: list[PciDevice], paths: dict[str, str]) -> None:
    bus = f"{host.root}/sys/bus/pci"
    for made in ("bus/pci/devices", "bus/pci/drivers", "module", "kernel/iommu_groups", "class/iommu"):
        _folder(f"{host.root}/sys/{made}")
    put(f"{bus}/drivers_probe", b"", CONTROL_FILE)
    put(f"{bus}/rescan", b"", 0o200)
    resets = reset_methods(devices)
    for device in devices:
        folder = paths[device.address]
        _folder(folder)
        _device_files(device, folder, resets[device.address])
        _sriov(device, devices, folder, paths)
        link(f"{bus}/devices/{device.address}", folder)
        group = device.acs_group if running.acs_override and device.acs_group is not None else device.group
        if running.iommu and group is not None:
            group_folder = f"{host.root}/sys/kernel/iommu_groups/{group}"
            passthrough = any(w in running.cmdline.split() for w in ("iommu=pt", "iommu.passthrough=1"))
            put(f"{group_folder}/type", "identity\n" if passthrough else "DMA-FQ\n")
            _reserved(host, running, f"{group_folder}/reserved_regions", device)
            link(f"{group_folder}/devices/{device.address}", folder)
            link(f"{folder}/iommu_group", group_folder)
    if running.iommu:
        for name in iommu_units(host.machine):
            unit = f"{host.root}/sys/devices/virtual/iommu/{name}"
            _folder(unit)
            link(f"{host.root}/sys/class/iommu/{name}", unit)


def _reserved(host: HostState, running: Running, file: str, device: PciDevice) -> None:
    """What the kernel reserves for a group, with one more of its devices."""
    amd = host.machine["hardware"]["cpu"]["vendor"] == "AuthenticAMD"
    lines = set(Path(file).read_text(encoding="utf-8").splitlines()) if os.path.exists(file) else set()  # noqa: PTH110
    lines.add("0x00000000fee00000 0x00000000feefffff msi")
    lines |= {"0x000000fd00000000 0x000000ffffffffff reserved"} if amd else set()
    kind = acpi.region_type(host.machine, running.cmdline, device)
    lines |= {f"{start:#018x} {end:#018x} {kind}" for start, end in acpi.named(host.machine, device)}
    put(file, "".join(f"{line}\n" for line in sorted(lines)))


def iommu_units(machine: dict[str, Any]) -> list[str]:
    """Names in /sys/class/iommu: one unit on AMD desktops, two (graphics and the rest) on Intel ones."""
    return ["ivhd0"] if machine["hardware"]["cpu"]["vendor"] == "AuthenticAMD" else ["dmar0", "dmar1"]


def _device_files(device: PciDevice, folder: str, resets: list[str]) -> None:
    sub_vendor, _, sub_device = (device.subsystem or "0000:0000").partition(":")
    put(f"{folder}/vendor", f"0x{device.vendor}\n")
    put(f"{folder}/device", f"0x{device.device}\n")
    put(f"{folder}/class", f"0x{device.pci_class}{device.prog_if}\n")
    put(f"{folder}/revision", f"0x{device.revision}\n")
    put(f"{folder}/subsystem_vendor", f"0x{sub_vendor}\n")
    put(f"{folder}/subsystem_device", f"0x{sub_device}\n")
    put(f"{folder}/modalias", device.modalias + "\n")
    put(f"{folder}/driver_override", "(null)\n")
    put(f"{folder}/enable", "0\n")
    put(f"{folder}/numa_node", "-1\n")
    put(f"{folder}/irq", "0\n")
    put(f"{folder}/resource", _resource(device))
    put(f"{folder}/config", config_space(device))
    put(f"{folder}/power_state", "D0\n")
    put(f"{folder}/power/control", "on\n")
    put(f"{folder}/d3cold_allowed", "1\n")
    if resets:
        put(f"{folder}/reset_method", f"{' '.join(resets)}\n", CONTROL_FILE)
        put(f"{folder}/reset", b"", CONTROL_FILE)
    put(f"{folder}/removable", "removable\n" if device.removable else "fixed\n")
    if device.is_display:
        put(f"{folder}/boot_vga", "1\n" if device.boot_vga else "0\n")


def _sriov(device: PciDevice, devices: list[PciDevice], folder: str, paths: dict[str, str]) -> None:
    """The links between a function and its virtual ones, and how many they are."""
    virtual = [other.address for other in devices if other.physfn == device.address]
    if device.physfn:
        link(f"{folder}/physfn", paths[device.physfn])
    if virtual:
        put(f"{folder}/sriov_totalvfs", f"{len(virtual)}\n")
        put(f"{folder}/sriov_numvfs", f"{len(virtual)}\n")
    for number, address in enumerate(virtual):
        link(f"{folder}/virtfn{number}", paths[address])


def _resource(device: PciDevice) -> str:
    """Seven lines `start end flags`; sizes from the scenario's bars (`16M`, `32G`), addresses made up in order."""
    lines = []
    start = 0x6000000000 + (int(device.address[5:7], 16) << 32)
    for bar in device.bars:
        size = int(bar[:-1]) << {"K": 10, "M": 20, "G": 30}[bar[-1]]
        start = (start + size - 1) // size * size
        lines.append(f"0x{start:016x} 0x{start + size - 1:016x} 0x000000000014220c")
        start += size
    lines += ["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * (13 - len(lines))
    return "".join(line + "\n" for line in lines)


def config_space(device: PciDevice) -> bytes:
    """The first 64 bytes of configuration space: ids, class, revision, header type, subsystem."""
    sub_vendor, _, sub_device = (device.subsystem or "0000:0000").partition(":")
    slot_has_more = device.address.endswith(".0")
    header = (0x01 if device.pci_class == "0604" else 0x00) | (0x80 if slot_has_more else 0)
    data = bytearray(64)
    struct.pack_into(
        "<HHHHBBH",
        data,
        0,
        int(device.vendor, 16),
        int(device.device, 16),
        0x0006,
        0x0010,
        int(device.revision, 16),
        int(device.prog_if, 16),
        int(device.pci_class, 16),
    )
    data[14] = header
    struct.pack_into("<HH", data, 44, int(sub_vendor, 16), int(sub_device, 16))
    return bytes(data)


def _block(host: HostState, devices: list[PciDevice], paths: dict[str, str]) -> None:
    sys_block, dev = f"{host.root}/sys/block", f"{host.root}/dev"
    for made in (sys_block, f"{host.root}/sys/class/block", f"{dev}/disk/by-uuid", f"{dev}/mapper"):
        _folder(made)
    below = {volume["on"] for volume in host.machine["hardware"]["volumes"]}
    for device in devices:
        for disk in device.blocks:
            name = disk["name"]
            middle = f"nvme/{name.rsplit('n', 1)[0]}/{name}" if name.startswith("nvme") else f"ata1/host0/{name}"
            if device.pci_class == "0c03":
                middle = f"usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0/block/{name}"
            folder = f"{paths[device.address]}/{middle}"
            _one_block(host, folder, name, disk["size"])
            if any(
                part["mountpoint"] or part["fstype"] == "zfs_member" or part["name"] in below
                for part in disk["partitions"]
            ):
                put(f"{dev}/{name}", b"claimed\n")  # host_python.py
            for part in disk["partitions"]:
                inside = f"{folder}/{part['name']}"
                _one_block(host, inside, part["name"], part["size"], top=False)
                put(f"{inside}/partition", f"{part['number']}\n")
                if part["uuid"]:
                    link(f"{dev}/disk/by-uuid/{part['uuid']}", f"{dev}/{part['name']}")
            link(f"{sys_block}/{name}", folder)
    for index, volume in enumerate(host.machine["hardware"]["volumes"]):
        _mapped_volume(host, index, volume)


def _one_block(host: HostState, folder: str, name: str, size: int, top: bool = True) -> None:
    put(f"{folder}/size", f"{size // 512}\n")
    put(f"{folder}/uevent", f"DEVNAME={name}\nDEVTYPE={'disk' if top else 'partition'}\n")
    put(f"{host.root}/dev/{name}", b"")
    link(f"{host.root}/sys/class/block/{name}", folder)


def _mapped_volume(host: HostState, index: int, volume: dict[str, Any]) -> None:
    """A device-mapper volume (LVM): /dev/mapper/<name> -> ../dm-N, whose slaves say on which disk it lies."""
    kernel_name = f"dm-{index}"
    folder = f"{host.root}/sys/devices/virtual/block/{kernel_name}"
    _one_block(host, folder, kernel_name, volume["size"])
    put(f"{folder}/dm/name", volume["name"] + "\n")
    slave = os.path.realpath(f"{host.root}/sys/class/block/{volume['on']}")
    link(f"{folder}/slaves/{volume['on']}", slave)
    link(f"{slave}/holders/{kernel_name}", folder)
    link(f"{host.root}/sys/block/{kernel_name}", folder)
    link(f"{host.root}/dev/mapper/{volume['name']}", f"{host.root}/dev/{kernel_name}")
    if volume["uuid"]:
        link(f"{host.root}/dev/disk/by-uuid/{volume['uuid']}", f"{host.root}/dev/{kernel_name}")


def _net(host: HostState, devices: list[PciDevice], paths: dict[str, str]) -> None:
    net = f"{host.root}/sys/class/net"
    _folder(net)
    bridges: dict[str, list[str]] = {}
    for device in devices:
        for interface in device.nets:
            folder = f"{paths[device.address]}/net/{interface['name']}"
            put(f"{folder}/operstate", "up\n" if interface["bridge"] else "down\n")
            put(f"{folder}/flags", "0x1103\n" if interface["bridge"] else "0x1002\n")
            put(f"{folder}/address", interface["mac"] + "\n")
            link(f"{folder}/device", paths[device.address])
            link(f"{net}/{interface['name']}", folder)
            if interface["bridge"]:
                bridges.setdefault(interface["bridge"], []).append(interface["name"])
    for bridge, members in bridges.items():
        folder = f"{host.root}/sys/devices/virtual/net/{bridge}"
        put(f"{folder}/bridge/bridge_id", "8000.000000000000\n")
        put(f"{folder}/operstate", "up\n")
        for member in members:
            port = os.path.realpath(f"{net}/{member}")
            link(f"{folder}/brif/{member}", port)
            link(f"{port}/master", folder)
        link(f"{net}/{bridge}", folder)
    loopback = f"{host.root}/sys/devices/virtual/net/lo"
    put(f"{loopback}/operstate", "unknown\n")
    link(f"{net}/lo", loopback)


def _firmware(host: HostState, running: Running) -> None:
    machine = host.machine
    firmware = machine["hardware"]["firmware"]
    tables = f"{host.root}/sys/firmware/acpi/tables"
    _folder(tables)
    if firmware["iommu"]:
        put(f"{tables}/{'IVRS' if machine['hardware']['cpu']['vendor'] == 'AuthenticAMD' else 'DMAR'}", "")
    if firmware["mode"] != "uefi":
        return
    efi = f"{host.root}/sys/firmware/efi"
    put(f"{efi}/fw_platform_size", "64\n")
    put(f"{efi}/efivars/{SECURE_BOOT}", bytes([6, 0, 0, 0, 1 if firmware["secure_boot"] else 0]))
    trixie = machine["pve"].startswith("9")
    if machine["boot"]["loader"] == "systemd-boot":
        name = "systemd-boot 257.9-1~deb13u1" if trixie else "systemd-boot 252.39-1~deb12u1"
        put(f"{efi}/efivars/{LOADER_ENTRY}", _efi_text(running.entry))
    elif trixie:
        name = "GRUB 2.12-9+pmx2"  # its module bli, new in 2.12, says so
    else:
        return
    put(f"{efi}/efivars/{LOADER_INFO}", _efi_text(name))


def take_one_shot(host: HostState) -> str:
    """The entry that systemd-boot is to start once; it takes the variable away before it starts anything."""
    path = host.root / "sys/firmware/efi/efivars" / LOADER_ONE_SHOT
    if not path.exists():
        return ""
    entry = path.read_bytes()[4:].decode("utf-16-le").rstrip("\0")
    path.unlink()
    return entry


def set_one_shot(host: HostState, entry: str) -> None:
    """What `take_one_shot` gets."""
    path = host.root / "sys/firmware/efi/efivars" / LOADER_ONE_SHOT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_efi_text(entry))


def _efi_text(text: str) -> bytes:
    """An EFI variable with a text: four bytes of attributes, then UTF-16 with a final zero."""
    return bytes([6, 0, 0, 0]) + f"{text}\0".encode("utf-16-le")


def _proc(host: HostState, running: Running) -> None:
    machine, proc = host.machine, f"{host.root}/proc"
    cpu = machine["hardware"]["cpu"]
    put(f"{proc}/cmdline", running.cmdline + "\n")
    debian = "12" if machine["pve"].startswith("8") else "14.2.0-19"
    put(
        f"{proc}/version",
        f"Linux version {running.kernel} (build@proxmox) (gcc (Debian {debian})) "
        f"#1 SMP PREEMPT_DYNAMIC PMX {running.kernel.removesuffix('-pve')}\n",
    )
    family = "25" if cpu["vendor"] == "AuthenticAMD" else "6"
    flags = "fpu vme de pse " + ("svm" if cpu["vendor"] == "AuthenticAMD" else "vmx")
    put(
        f"{proc}/cpuinfo",
        "".join(
            f"processor\t: {n}\nvendor_id\t: {cpu['vendor']}\ncpu family\t: {family}\nmodel name\t: {cpu['model']}\n"
            f"flags\t\t: {flags}\n\n"
            for n in range(4)
        ),
    )
    put(f"{proc}/modules", "")
    put(
        f"{proc}/devices",
        "Character devices:\n  1 mem\n  4 tty\n 10 misc\n226 drm\n242 vfio\n\n"
        "Block devices:\n259 blkext\n252 device-mapper\n",
    )
    put(f"{proc}/uptime", "0.00 0.00\n")
    chip = "IR-" if remaps_interrupts(machine, running) else ""
    put(
        f"{proc}/interrupts",
        "           CPU0       CPU1\n"
        f"  0:         11          0 {chip}IO-APIC    2-edge      timer\n"
        f" 41:       1042          0 {chip}PCI-MSI-0000:02:00.0    0-edge      nvme0q0\n"
        "NMI:          0          0   Non-maskable interrupts\n",
    )
    put(
        f"{proc}/meminfo",
        "MemTotal:       65536000 kB\nMemFree:        48000000 kB\nMemAvailable:   52000000 kB\n",
    )
    put(f"{proc}/filesystems", "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\n\text4\n\tvfat\nnodev\tzfs\n")
    put(f"{proc}/sys/kernel/hostname", machine["node"] + "\n")
    put(f"{proc}/sys/kernel/osrelease", running.kernel + "\n")
    if kernel_release(running.kernel) >= (6, 2):
        put(f"{proc}/sys/kernel/arch", "x86_64\n")
    put(f"{proc}/sys/kernel/random/boot_id", running.boot_id + "\n")
    put(
        f"{proc}/mounts",
        "".join(f"{m['source']} {m['target']} {m['fstype']} {m['options']} 0 0\n" for m in machine["mounts"]),
    )
    swaps = [f"/dev/dm-{n}" for n, v in enumerate(machine["hardware"]["volumes"]) if v["fstype"] == "swap"]
    put(
        f"{proc}/swaps",
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        + "".join(f"{path}                               partition\t8388604\t\t0\t\t-2\n" for path in swaps),
    )
    put(
        f"{proc}/net/route",
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "vmbr0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n",
    )
    _folder(f"{proc}/self")
    os.symlink("../mounts", f"{proc}/self/mounts")  # noqa: PTH211


def _run(host: HostState) -> None:
    for folder in ("run/lock/lxc", "run/systemd/system", "run/qemu-server", "run/lxc"):
        _folder(f"{host.root}/{folder}")
    put(f"{host.root}/dev/kmsg", b"")


def remaps_interrupts(machine: dict[str, Any], running: Running) -> bool:
    """Whether the kernel has its interrupts remapped. Intel's does so without a word for the IOMMU, too; AMD's only with it."""
    firmware = machine["hardware"]["firmware"]
    words = running.cmdline.split()
    able = firmware["iommu"] and firmware.get("remaps_interrupts", True)
    on = running.iommu or machine["hardware"]["cpu"]["vendor"] == "GenuineIntel"
    return bool(able and on and "intremap=off" not in words and "nointremap" not in words)


def iommu_messages(machine: dict[str, Any], running: Running, devices: list[PciDevice]) -> list[str]:
    """What the kernel prints about the IOMMU, as real machines do.

    On Intel `DMAR: IOMMU enabled` only repeats the command line: it comes with VT-d off in firmware too. On
    AMD no line says "enabled".
    """
    firmware, cpu = machine["hardware"]["firmware"], machine["hardware"]["cpu"]
    words = running.cmdline.split()
    lines: list[str] = []
    if cpu["vendor"] == "GenuineIntel":
        asked = [w for w in words if w.startswith("intel_iommu=")]
        if asked and asked[-1].split("=")[1].split(",")[0] == "on":
            lines.append("DMAR: IOMMU enabled")
        elif asked and "off" in asked[-1]:
            lines.append("DMAR: IOMMU disabled")
        if firmware["iommu"]:
            lines += [
                "DMAR: Host address width 39",
                "DMAR: DRHD base: 0x000000fed90000 flags: 0x0",
                "DMAR: dmar0: reg_base_addr fed90000 ver 4:0 cap 1c0000c40660462 ecap 29a00f0505e",
                "DMAR: DRHD base: 0x000000fed91000 flags: 0x1",
                "DMAR: dmar1: reg_base_addr fed91000 ver 1:0 cap d2008c40660462 ecap f050da",
            ]
        if remaps_interrupts(machine, running):
            lines += [
                "DMAR-IR: IOAPIC id 2 under DRHD base  0xfed91000 IOMMU 1",
                "DMAR-IR: Enabled IRQ remapping in x2apic mode",
            ]
    elif "amd_iommu=on" in words:
        lines.append("AMD-Vi: Unknown option - 'on'")  # harmless: it is on anyway, and there is no such option
    if cpu["vendor"] == "AuthenticAMD" and running.iommu:
        unit = next((d.address for d in devices if d.pci_class == "0806"), "0000:00:00.2")
        lines.append(f"pci {unit}: AMD-Vi: IOMMU performance counters supported")
    if running.iommu:
        pt = any(w in words for w in ("iommu=pt", "iommu.passthrough=1"))
        lines.append(
            "iommu: Default domain type: Passthrough (set via kernel command line)"
            if pt
            else "iommu: Default domain type: Translated"
        )
        for device in devices:
            group = device.acs_group if running.acs_override and device.acs_group is not None else device.group
            if group is not None:
                lines.append(f"pci {device.address}: Adding to iommu group {group}")
        if cpu["vendor"] == "GenuineIntel":
            lines.append("DMAR: Intel(R) Virtualization Technology for Directed I/O")
        else:
            lines += ["AMD-Vi: Interrupt remapping enabled"] if remaps_interrupts(machine, running) else []
            lines += [
                "perf/amd_iommu: Detected AMD IOMMU #0 (2 banks, 4 counters/bank).",
            ]
    return lines
