"""Handing PCI devices to a VM at its start: finding them, choosing, reserving, and binding their group to vfio-pci.

The order is a node's own, and so decides which message comes first: mappings are compared with the hardware, the
machine model is looked at, devices are chosen and reserved, and only then is the IOMMU asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from lab.host import nvidia
from lab.host.devices import load_devices
from lab.host.kernel import ModprobeError, RunningKernel, modules_of
from lab.host.modprobe import root_modprobe_config
from lab.host.state import HostState, kernel_release

from .errors import ApiError, Died, FormatError
from .mapping import Mappings, full_address
from .options import parse_properties

_RESERVATIONS = "/run/qemu-server/pci-id-reservations"
_SLOTS = 16
#: The functions that one hostpci option may get: alternatives, of which one is chosen.
Alternatives = list[list[str]]


def hostpci_options(values: dict[str, str]) -> dict[str, dict[str, str]]:
    """The hostpci options of a configuration, taken apart, in the order of their numbers.

    Raises:
        ApiError: 500, one can't be parsed.
    """
    names = [f"hostpci{number}" for number in range(_SLOTS)]
    try:
        return {name: parse_properties("pve-qm-hostpci", values[name]) for name in names if name in values}
    except FormatError as error:
        # Written by hand: the API takes no such value.
        raise Died(f"unable to parse a hostpci option - {error}") from error


def find_devices(host: HostState, values: dict[str, str]) -> dict[str, Alternatives]:
    """What each hostpci option stands for on this host.

    Raises:
        ApiError: 500: no such mapping, one that doesn't fit the hardware, no device at the address.
    """
    found: dict[str, Alternatives] = {}
    for name, option in hostpci_options(values).items():
        if "mapping" in option:
            found[name] = _mapped(host, option["mapping"])
        else:
            found[name] = [[a for text in option.get("host", "").split(";") for a in _functions(host, text)]]
    return found


def _mapped(host: HostState, name: str) -> Alternatives:
    mappings = Mappings(host)
    mapping = mappings.all.get(name)
    entries = mapping.of_node(host.node) if mapping else []
    if mapping is None or not entries:
        raise Died(f"PCI device mapping not found for '{name}'")
    for entry in entries:
        if problem := mappings.problem(mapping, entry):
            raise Died(f"PCI device mapping invalid (hardware probably changed): {problem}\n\n")
    return [[a for text in entry["path"].split(";") for a in _functions(host, text)] for entry in entries]


def _functions(host: HostState, text: str) -> list[str]:
    """A function's address, or those of all functions of a slot."""
    wanted = full_address(text)
    every = [device.address for device in load_devices(host.machine)]
    found = [a for a in every if a == wanted or ("." not in wanted and a.startswith(f"{wanted}."))]
    if not found:
        raise Died(f"no PCI device found for '{text}'")
    return found


# -- reservations ------------------------------------------------------------------------------------------
def reservations(host: HostState) -> dict[str, int]:
    """Which VM has which device: address -> VM id."""
    lines = [line.split() for line in host.read(_RESERVATIONS, "").splitlines()]
    return {address: int(vmid) for address, vmid, *_ in lines}


def _require_unreserved(host: HostState, addresses: list[str], vmid: int) -> dict[str, int]:
    """The reservations, none of which is another VM's."""
    taken = reservations(host)
    for address in addresses:
        if taken.get(address, vmid) != vmid:
            raise Died(f"PCI device '{address}' already in use by VMID '{taken[address]}'")
    return taken


def _reserve(host: HostState, addresses: list[str], vmid: int, pid: int) -> None:
    taken = _require_unreserved(host, addresses, vmid)
    lines = [f"{address} {other}" for address, other in taken.items() if address not in addresses]
    kept = {line.split()[0]: line for line in host.read(_RESERVATIONS, "").splitlines()}
    text = [kept[line.split()[0]] for line in lines] + [f"{address} {vmid} pid:{pid}" for address in addresses]
    host.write(_RESERVATIONS, "".join(f"{line}\n" for line in text))


def release(host: HostState, vmid: int) -> None:
    """Give back what a VM has reserved; its devices stay with vfio-pci, as on a real host."""
    kept = [line for line in host.read(_RESERVATIONS, "").splitlines() if line.split()[1] != str(vmid)]
    host.write(_RESERVATIONS, "".join(f"{line}\n" for line in kept))


# -- a VM's start and end ------------------------------------------------------------------------------------
def attach(host: HostState, vmid: int, pid: int, values: dict[str, str], log: Callable[[str], None]) -> None:
    """Give a VM that starts its devices. One that can't be reset is said in the log, and given all the same.

    Raises:
        ApiError: 500, why it can't have them; then nothing is reserved.
    """
    try:
        alternatives = find_devices(host, values)
        _require_q35(values)
        addresses = _choose(host, vmid, pid, alternatives)
        if addresses and not any(host.rooted("/sys/class/iommu").iterdir()):
            raise Died("cannot prepare PCI pass-through, IOMMU not present")
        keep = {name for name, option in hostpci_options(values).items() if option.get("driver") == "keep"}
        for name, chosen in addresses.items():
            if name not in keep:
                _bind_groups(host, chosen)
                _reset(host, chosen, log)
        every = [address for chosen in addresses.values() for address in chosen]
        _open_groups(host, every, log)
        _power_on(host, every, log)
    except ApiError:
        release(host, vmid)
        raise


def _open_groups(host: HostState, addresses: list[str], log: Callable[[str], None]) -> None:
    """What QEMU asks of VFIO for each group, and the kernel refuses: a device that the firmware wants mapped 1:1
    (__iommu_device_set_domain, Linux 6.6 on), or no interrupt remapping (vfio_iommu_type1_attach_group).
    """
    kernel = RunningKernel.attach(host)
    groups = {address: group for address in addresses if (group := kernel.group_of(address)) is not None}
    for address, group in groups.items():
        where = f"kvm: -device vfio-pci,host={address},id=hostpci0.0: vfio {address}: failed to setup container for group {group}:"
        folder = host.rooted(f"/sys/kernel/iommu_groups/{group}")
        regions = (folder / "reserved_regions").read_text(encoding="utf-8").splitlines()
        if any(line.endswith(" direct") for line in regions) and kernel_release(kernel.data["kernel"]) >= (6, 6):
            host.kernel_message(
                f"vfio-pci {address}: Firmware has requested this device have a 1:1 IOMMU mapping, rejecting configuring the"
                " device without a 1:1 mapping. Contact your platform vendor."
            )
            log(f"{where} Failed to set group container: Invalid argument")
            raise Died("start failed: QEMU exited with code 1")
        unsafe = "vfio_iommu_type1.allow_unsafe_interrupts=1" in kernel.data["cmdline"].split()
        if "IR-" not in host.read("/proc/interrupts", "") and not unsafe:
            host.kernel_message(
                'vfio_iommu_type1_attach_group: No interrupt remapping support.  Use the module param "allow_unsafe_interrupts"'
                " to enable VFIO IOMMU support on this platform"
            )
            log(f"{where} Failed to set iommu for container: Operation not permitted")
            raise Died("start failed: QEMU exited with code 1")


def _reset(host: HostState, addresses: list[str], log: Callable[[str], None]) -> None:
    """Reset each function that has a file for it; a write that is refused is said, and no reason not to start (PVE::QemuServer::PCI,
    prepare_pci_device; PVE::SysFSTools, pci_device_info and file_write).
    """
    kernel = RunningKernel.attach(host)
    for address in addresses:
        file = f"devices/{address}/reset"
        if host.rooted(f"/sys/bus/pci/{file}").exists() and (refused := kernel.write(file, "1")):
            log(f"error writing '1' to '/sys/bus/pci/{file}': {os.strerror(refused)}")
            log(f"failed to reset PCI device '{address}', but trying to continue as not all devices need a reset")


def _power_on(host: HostState, addresses: list[str], log: Callable[[str], None]) -> None:
    """QEMU wakes each function up before it resets it, and goes on if that doesn't wake (hw/vfio/pci.c, vfio_pci_pre_reset)."""
    for address in addresses:
        if nvidia.is_dead(host, address):
            log("kvm: vfio: Unable to power on device, stuck in D3")


def cleanup(host: HostState, vmid: int, values: dict[str, str], log: Callable[[str], None]) -> None:
    """What a node does after a VM's end, or a start that failed: it looks its devices up again, and says what it finds."""
    try:
        find_devices(host, values)
    except ApiError as error:
        log(error.text.removesuffix("\n"))
    nvidia.kill_by_reset(host, [address for address, other in reservations(host).items() if other == vmid])
    release(host, vmid)


def waits_for(host: HostState, values: dict[str, str]) -> str | None:
    """A device that a start would take from NVIDIA's driver while that doesn't let go of it: the write doesn't return (fact 5)."""
    try:
        wanted = find_devices(host, values)
    except ApiError:
        return None  # said later, where a node says it
    keep = {name for name, option in hostpci_options(values).items() if option.get("driver") == "keep"}
    kernel = RunningKernel.attach(host)
    asked = [a for name, each in wanted.items() if name not in keep for some in each for a in some]
    return next((a for a in asked if kernel.bound.get(a) == "nvidia" and nvidia.removal_waits(kernel, a)), None)


def _require_q35(values: dict[str, str]) -> None:
    machine = parse_properties("qemu-machine", values.get("machine", "")).get("type", "pc")
    if "q35" not in machine and any(o.get("pcie") == "1" for o in hostpci_options(values).values()):
        raise Died("q35 machine model is not enabled at /usr/share/perl5/PVE/QemuServer/PCI.pm line 510.")


def _choose(host: HostState, vmid: int, pid: int, wanted: dict[str, Alternatives]) -> dict[str, list[str]]:
    """Choose among alternatives, those without any first, and reserve them."""
    chosen: dict[str, list[str]] = {}
    for name in sorted(wanted, key=lambda n: (len(wanted[n]) > 1, int(n.removeprefix("hostpci")))):
        used = {address for addresses in chosen.values() for address in addresses}
        taken = {address for address, other in reservations(host).items() if other != vmid}
        if len(wanted[name]) == 1:
            [addresses] = wanted[name]
            if twice := used & set(addresses):
                raise Died(f"device '{min(twice)}' assigned more than once")
        else:
            free = [addresses for addresses in wanted[name] if not (used | taken) & set(addresses)]
            if not free:
                raise Died(f"could not find a free device for '{name}'")
            addresses = free[0]
        _reserve(host, addresses, vmid, pid)
        chosen[name] = addresses
    return chosen


def _bind_groups(host: HostState, addresses: list[str]) -> None:
    """Bind every device of the groups to vfio-pci, bridges left out."""
    with RunningKernel.changing(host) as kernel:
        try:
            kernel.load_module("vfio_pci", root_modprobe_config(host), modules_of(host, kernel.data["kernel"]))
        except ModprobeError:
            raise Died("Cannot find vfio-pci module!") from None
        groups = {kernel.group_of(address) for address in addresses}
        members = [a for a in kernel.devices if kernel.group_of(a) in groups and None not in groups]
        for address in members:
            if kernel.devices[address].pci_class != "0604" and not _bind(kernel, address):
                raise Died(f"can't unbind/bind PCI group to VFIO '{addresses[0]}'")


def _bind(kernel: RunningKernel, address: str) -> bool:
    if kernel.bound.get(address) == "vfio-pci":
        return True
    # As a node does it: the id is made known to vfio-pci, which takes what is without a driver at once.
    kernel.write("drivers/vfio-pci/new_id", re.sub(":", " ", kernel.devices[address].ids))
    if address in kernel.bound and kernel.bound[address] != "vfio-pci":
        kernel.write(f"drivers/{kernel.bound[address]}/unbind", address)
    if address not in kernel.bound:
        kernel.write("drivers/vfio-pci/bind", address)
    return kernel.bound.get(address) == "vfio-pci"
