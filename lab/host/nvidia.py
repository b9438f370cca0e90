"""NVIDIA's driver on a lab host: its numbers, what it shows in /proc, which device nodes there are and who makes them.

As on a real host, the kernel makes no node in /dev for this driver except those of nvidia-drm: the others come from
nvidia-modprobe, which nvidia-smi and every CUDA program run first. 195 is the driver's for ever; the majors of nvidia-uvm
and of the capabilities are given out at each boot, from the top of the kernel's dynamic range downwards, after whatever
other drivers of that kernel took (Documentation/admin-guide/devices.txt: 234 to 254, then 384 to 511).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from . import holders, network
from .devices import PciDevice, load_devices
from .kernel_files import Build
from .nodes import Node, write_node
from .state import HostState, kernel_release
from .versions import holds

MAJOR = 195
CONTROL_MINOR, MODESET_MINOR = 255, 254
DRM_MAJOR = 226
#: Drivers whose devices have nodes in /dev/dri; NVIDIA's own needs nvidia-drm besides.
DRM_DRIVERS = frozenset({"nouveau", "amdgpu", "i915", "xe", "ast", "radeon"})
_PROC = "/proc/driver/nvidia"
_CAPABILITIES = {"mig/config": (1, 0o400), "mig/monitor": (2, 0o444)}
_HIGHEST_MAJOR = 511
_MAJOR_LINE = re.compile(r"^\s*(\d+) ", re.M)  # of /proc/devices
#: Of these sizes are the gaps that other drivers leave between one kernel's numbers and the next one's.
_KERNEL_STEP, _BOOT_STEP, _SPAN = 1, 17, 64
# In the order in which the modules ask for their numbers when they are loaded.
_DYNAMIC = {
    "nvidia": ("nvidia-caps-imex-channels", "nvidia-caps", "nvidia-nvlink", "nvidia-nvswitch"),
    "nvidia_uvm": ("nvidia-uvm",),
}
_STATIC = {"nvidia": ("nvidia", "nvidiactl"), "nvidia_modeset": ("nvidia-modeset",)}

#: Cards that the driver knows by name, and pci.ids of Debian 12 and 13 doesn't.
_NEWER = {"2b85": "GeForce RTX 5090", "2c02": "GeForce RTX 5080", "2d04": "GeForce RTX 5060 Ti"}


#: What makes the nodes in /dev when the module comes, where the driver's packages bring it.
UDEV_RULES = "/usr/lib/udev/rules.d/71-nvidia.rules"
_README = (
    "NVRM: Please see 'Appendix A - Supported NVIDIA GPU Products'",
    "NVRM: in this release's README, available on the operating system",
    "NVRM: specific graphics driver download page at www.nvidia.com.",
)
_NO_GSP = (
    "NVRM: installed in this system is not supported by open",
    "NVRM: nvidia.ko because it does not include the required GPU",
    "NVRM: System Processor (GSP).",
    "NVRM: Please see the 'Open Linux Kernel Modules' and 'GSP",
    "NVRM: Firmware' sections in the driver README, available on",
    "NVRM: the Linux graphics driver download page at",
    "NVRM: www.nvidia.com.",
)
#: Of a card that the driver's branch has dropped, at the same breaks since 2007 (kernel logs of a Quadro P400 on 595.84 and of older cards).
_LEGACY = (
    "NVRM: The {model} GPU installed in this system is",
    "NVRM:  supported through the NVIDIA {last}.xx Legacy drivers. Please",
    "NVRM:  visit http://www.nvidia.com/object/unix.html for more",
    "NVRM:  information.  The {version} NVIDIA driver will ignore",
    "NVRM:  this GPU.  Continuing probe...",
)
_TAKEN = (
    "NVRM: This can occur when another driver was loaded and",
    "NVRM: obtained ownership of the NVIDIA device(s).",
    "NVRM: Try unloading the conflicting kernel module (and/or",
    "NVRM: reconfigure your kernel without the conflicting",
    "NVRM: driver(s)), then try loading the NVIDIA kernel module",
    "NVRM: again.",
)


class NvidiaError(Exception):
    """What nvidia-modprobe can't do."""


class Kernel(Protocol):
    """What this module needs of a running kernel (kernel.RunningKernel)."""

    host: HostState
    data: dict[str, Any]
    devices: dict[str, PciDevice]
    loaded: dict[str, str]
    bound: dict[str, str]

    @property
    def nvidia_build(self) -> Build | None: ...

    def device_folder(self, address: str) -> Path: ...


# -- which driver drives which card ----------------------------------------------------------------------------
def generation_of(host: HostState, device: str) -> dict[str, Any]:
    """The generation of a card by its PCI device id, as driver.yaml has it."""
    known: list[dict[str, Any]] = network.data(host)["driver"]["generations"]
    older = [entry for entry in known if int(entry["from"], 16) <= int(device, 16)]
    return older[-1] if older else {"name": "older", "last": 390, "open": "never"}


def nouveau_knows(host: HostState, kernel: str, device: str) -> bool:
    """Whether a kernel's nouveau drives a card."""
    since = generation_of(host, device).get("nouveau")
    return since is None or kernel_release(kernel) >= kernel_release(f"{since}.0")


def _unsupported(host: HostState, device: PciDevice, build: Build) -> tuple[str, ...]:
    """What the driver says of a card that it doesn't take; nothing for one that it takes."""
    found = generation_of(host, device.device)
    named = f"NVRM: The NVIDIA GPU {device.address} (PCI ID: {device.ids})"
    if build.open and found["open"] == "never":
        return (named, *_NO_GSP)
    branch = int(build.version.split(".")[0])
    if branch > found.get("last", branch):
        values = {"model": model_of(device.name, device.device), "last": found["last"], "version": build.version}
        return tuple(text.format(**values) for text in _LEGACY)
    if not holds(build.version, ">=", found.get("least", "0")):
        return (
            named,
            "NVRM: installed in this system is not supported by the",
            f"NVRM: NVIDIA {build.version} driver release.",
            *_README,
        )
    return ()


def probe(kernel: Kernel, address: str) -> bool:
    """Whether the driver takes a card that it is offered; what it has against one goes to the kernel's log."""
    device, build = kernel.devices[address], kernel.nvidia_build
    assert build is not None  # its driver is there
    if is_dead(kernel.host, address):
        for text in (
            f"NVRM: The NVIDIA GPU {address}",
            "NVRM: (PCI ID: ffff:ffff) installed in this system has",
            "NVRM: fallen off the bus and is not responding to commands.",
        ):
            kernel.host.kernel_message(text)
        kernel.host.kernel_message(f"nvidia {address}: probe with driver nvidia failed with error -1")
        return False
    texts = _unsupported(kernel.host, device, build)
    if not texts:
        return True
    for text in texts:
        kernel.host.kernel_message(text)
    newer = kernel_release(kernel.data["kernel"]) >= (6, 8)
    words = f"nvidia {address}: probe with driver nvidia" if newer else f"nvidia: probe of {address}"
    kernel.host.kernel_message(f"{words} failed with error -1")
    return False


def insertion_refused(kernel: Kernel) -> bool:
    """Whether nvidia's module goes again at once, as it does when it got no card; it says why in the kernel's log."""
    there = [a for a, device in kernel.devices.items() if device.vendor == "10de" and device.is_display]
    mine = [a for a in there if kernel.bound.get(a) == "nvidia"]
    taken = [a for a in there if kernel.bound.get(a) not in (None, "nvidia")]
    say = kernel.host.kernel_message
    if not there:
        say("NVRM: No NVIDIA GPU found.")
        return True
    if taken:
        say(f"NVRM: The NVIDIA probe routine was not called for {len(taken)} device(s).")
        for text in _TAKEN:
            say(text)
    if len(taken) == len(there):
        say("NVRM: No NVIDIA devices probed.")
        return True
    if failed := len(there) - len(taken) - len(mine):
        say(f"NVRM: The NVIDIA probe routine failed for {failed} device(s).")
    if not mine:
        say("NVRM: None of the NVIDIA devices were initialized.")
        return True
    return False


def initialised(host: HostState, address: str, device: str) -> bool:
    """Whether a card that the driver has comes up when it is opened; what goes wrong is in the kernel's log."""
    build = running_build(host)
    reason = network.fault(host, "gpu-fails")
    if reason is not None and re.fullmatch(r"\d{3}\..*", reason):
        # A part of a version: only that driver fails.
        reason = "" if build is not None and build.version.startswith(reason) else None
    if build is not None and not build.open and generation_of(host, device)["open"] == "must":
        host.kernel_message(f"NVRM: The NVIDIA GPU {address} (PCI ID: 10de:{device})")
        host.kernel_message("NVRM: installed in this system requires use of the NVIDIA open kernel modules.")
        reason = "0x22:0x56:884"
    if reason is None:
        return True
    if reason.isdigit():
        slot = address.rpartition(".")[0]
        what = {
            "79": "GPU has fallen off the bus.",
            "119": "Timeout after 6s of waiting for RPC response from GPU0 GSP!",
        }
        host.kernel_message(f"NVRM: Xid (PCI:{slot}): {reason}, {what.get(reason, 'pid=1200, name=nvidia-smi')}")
        reason = "0x23:0x65:1500"
    host.kernel_message(f"NVRM: GPU {address}: RmInitAdapter failed! ({reason or '0x62:0x40:2168'})")
    minor = host.running.get("nvidia_minors", {}).get(address, 0)
    host.kernel_message(f"NVRM: GPU {address}: rm_init_adapter failed, device minor number {minor}")
    return False


def running_build(host: HostState) -> Build | None:
    """What the loaded module was built from, None when none is loaded."""
    found = host.running.get("nvidia_build")
    return Build(**found) if found else None


def first_major(host: HostState, kernel: str, boots: int) -> int:
    """The number that the first dynamic major of this boot gets: it depends on the kernel, and with the fault
    nvidia-majors-change on the boot."""
    shift = sum(int(number) for number in re.findall(r"\d+", kernel)) * _KERNEL_STEP
    if host.fault("nvidia-majors-change"):
        shift += (boots + 1) * _BOOT_STEP
    return _HIGHEST_MAJOR - shift % _SPAN


# -- what the kernel tells of it -------------------------------------------------------------------------------
def module_loaded(kernel: Kernel, name: str) -> None:
    """One of the driver's modules was loaded: it takes its numbers and shows itself."""
    majors = _majors(kernel)
    for device in _DYNAMIC.get(name, ()):
        if device not in majors:
            first = first_major(kernel.host, kernel.data["kernel"], kernel.host.machine["boots"])
            majors[device] = first - len(
                majors.keys() - {"kfd"}
            )  # whose number is its own, whichever driver comes first
    if name == "nvidia":
        assert kernel.nvidia_build is not None  # it was there to be loaded
        kernel.data["nvidia_build"] = kernel.nvidia_build._asdict()
        _write_driver(kernel.host, kernel.nvidia_build)
    if name == "nvidia_drm":
        kernel.host.write("/sys/module/nvidia_drm/parameters/modeset", "Y\n" if holders.modeset(kernel.data) else "N\n")
        for address in kernel.devices:
            if kernel.bound.get(address) == "nvidia":
                add_drm_card(kernel, address)
    write_proc_devices(kernel)


def module_removed(kernel: Kernel, name: str) -> None:
    """One of the driver's modules was removed. Nodes that nvidia-modprobe made stay, with nothing behind them."""
    if name == "nvidia":
        kernel.data.pop("nvidia_build", None)
        kernel.data.pop("nvidia_draining", None)
        kernel.host.remove_tree(_PROC)
    if name == "nvidia_drm":
        for address in kernel.devices:
            if kernel.bound.get(address) == "nvidia":
                remove_drm_card(kernel, address)
    write_proc_devices(kernel)


def _majors(kernel: Kernel) -> dict[str, int]:
    # Kept while the system runs: a module that comes back gets the number that it gave back.
    found: dict[str, int] = kernel.data.setdefault("majors", {})
    return found


def write_proc_devices(kernel: Kernel) -> None:
    """Write /proc/devices: what has a driver now."""
    lines = [(1, "mem"), (4, "tty"), (10, "misc"), (DRM_MAJOR, "drm"), (242, "vfio")]
    if "kfd" in _majors(kernel) and "amdgpu" in kernel.loaded:
        lines.append((_majors(kernel)["kfd"], "kfd"))
    for module in kernel.loaded:
        lines += [(MAJOR, device) for device in _STATIC.get(module, ())]
        lines += [(_majors(kernel)[device], device) for device in _DYNAMIC.get(module, ())]
    text = "".join(f"{major:3d} {name}\n" for major, name in sorted(lines, key=lambda line: line[0]))
    kernel.host.write("/proc/devices", f"Character devices:\n{text}\nBlock devices:\n259 blkext\n252 device-mapper\n")


def _write_driver(host: HostState, build: Build) -> None:
    flavour = "NVIDIA UNIX Open Kernel Module for x86_64" if build.open else "NVIDIA UNIX x86_64 Kernel Module"
    host.write(
        f"{_PROC}/version",
        f"NVRM version: {flavour}  {build.version}  Release Build\n"
        "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19) \n",
    )
    for name, (minor, mode) in _CAPABILITIES.items():
        host.write(
            f"{_PROC}/capabilities/{name}",
            f"DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n",
            0o400 if mode == 0o400 else 0o444,
        )
    host.write("/sys/module/nvidia/version", f"{build.version}\n")
    host.kernel_message(f"NVRM: loading {flavour}  {build.version}  Release Build")


# -- cards -----------------------------------------------------------------------------------------------------
def card_bound(kernel: Kernel, address: str) -> None:
    """The driver has taken a card: it gives it a minor number and shows it."""
    minors: dict[str, int] = kernel.data.setdefault("nvidia_minors", {})
    wanted = (kernel.host.machine["nvidia"] or {}).get("minors", {}).get(address)
    free = (n for n in range(CONTROL_MINOR) if n not in minors.values())
    minors[address] = next(free) if wanted is None or wanted in minors.values() else wanted
    kernel.host.write(
        f"{_PROC}/gpus/{address}/information",
        f"Model: \t\t {model_of(kernel.devices[address].name, kernel.devices[address].device)}\nIRQ:   \t\t 0\nGPU UUID: \t {uuid_of(kernel.host, address)}\n"
        f"Video BIOS: \t ??.??.??.??.??\nBus Type: \t PCIe\nDMA Size: \t 52 bits\nDMA Mask: \t 0xfffffffffffff\n"
        f"Bus Location: \t {address}\nDevice Minor: \t {minors[address]}\nGPU Excluded:\t No\n",
    )
    if "nvidia_drm" in kernel.loaded:
        add_drm_card(kernel, address)


def card_released(kernel: Kernel, address: str) -> None:
    """The driver has lost a card; its node in /dev stays, as nobody removes it."""
    kernel.data.setdefault("nvidia_minors", {}).pop(address, None)
    kernel.data["nvidia_persistence"] = [one for one in holders.persistent(kernel.data) if one != address]
    kernel.host.remove_tree(f"{_PROC}/gpus/{address}")
    remove_drm_card(kernel, address)


# -- a card that is to leave the driver ---------------------------------------------------------------------------
def removal_waits(kernel: Kernel, address: str) -> bool:
    """Whether the driver's remove() waits: it can't refuse while somebody has the card open (facts 28, 30), and from 595 on it
    may wait for ever (fact 29), as it does with the fault nvidia-unbind-forever, whoever is there.
    """
    if kernel.host.fault("nvidia-unbind-forever") or kernel.data.get("removing", {}).get(address) == "never":
        return True
    return bool(holders.of_card(kernel.data, address)) or holders.drm_holds(kernel.data)


def begin_removal(kernel: Kernel, address: str) -> str:
    """What the driver says of a removal that waits; returns whether it can end: `waits`, or `never`."""
    kernel.host.kernel_message(f"NVRM: Attempting to remove device {address} with non-zero usage count!")
    return "never" if holders.never_ends(kernel.data, address) else "waits"


def is_dead(host: HostState, address: str) -> bool:
    """Whether a card doesn't answer any more: the fault card-dead names it, or a reset has killed it (fact 53)."""
    fault = host.fault("card-dead")
    return bool(fault and str(fault) in address) or address in host.running.get("dead", [])


def show_dead(host: HostState) -> None:
    """Have the configuration space of cards that don't answer read as ones, and that of the others as it is."""
    from . import sysfs  # here, as few commands need it

    for device in load_devices(host.machine):
        dead = is_dead(host, device.address)
        folder = host.rooted(f"/sys/bus/pci/devices/{device.address}")
        config = b"\xff" * 64 if dead else sysfs.config_space(device)
        if folder.exists() and (folder / "config").read_bytes() != config:
            (folder / "config").write_bytes(config)
            (folder / "power_state").write_text("unknown\n" if dead else "D0\n", encoding="utf-8")


def kill_by_reset(host: HostState, addresses: list[str]) -> None:
    """The end of a VM resets its card; with the fault reset-kills a card that this names doesn't come back (facts 46, 47)."""
    fault = host.fault("reset-kills")
    lost = [address for address in addresses if fault and str(fault) in address]
    if lost:
        with host.changing_running() as running:
            running["dead"] = sorted({*running.get("dead", []), *lost})
        for address in lost:
            host.kernel_message(f"vfio-pci {address}: not ready 65535ms after FLR; giving up")
        show_dead(host)


def add_drm_card(kernel: Kernel, address: str) -> None:
    """A DRM driver has a card: nodes in /dev/dri, with links by the card's path and by the card in /sys.

    The lowest number that is free; where the scenario, or the fault `drm-order`, lists cards, theirs are the places in that list.
    """
    cards: dict[str, int] = kernel.data.setdefault("drm_cards", {})
    if address in cards:
        return
    host, folder = kernel.host, kernel.device_folder(address).resolve()
    order = host.fault("drm-order") or host.machine.get("drm", [])
    taken = {*cards.values(), *range(len(order))}
    number = order.index(address) if address in order else next(n for n in range(64) if n not in taken)
    cards[address] = number
    # A driver for screens alone, such as ast, has nothing to compute with.
    kinds = [(f"card{number}", number, "card", 44), (f"renderD{128 + number}", 128 + number, "render", 104)]
    for name, minor, kind, gid in kinds if kernel.bound.get(address) != "ast" else kinds[:1]:
        write_node(host.rooted(f"/dev/dri/{name}"), Node("c", DRM_MAJOR, minor, 0o660, 0, gid))
        host.symlink(f"/dev/dri/by-path/pci-{address}-{kind}", f"../{name}")
        host.write(str(folder / "drm" / name / "dev"), f"{DRM_MAJOR}:{minor}\n")
        host.symlink(str(folder / "drm" / name / "device"), "../..")
        host.symlink(f"/sys/class/drm/{name}", f"../../{folder.relative_to(host.root / 'sys')}/drm/{name}")
    if kernel.bound.get(address) == "amdgpu":
        _add_to_kfd(kernel, address, 128 + number)


_KFD_NODES = "/sys/class/kfd/kfd/topology/nodes"


def _add_to_kfd(kernel: Kernel, address: str, minor: int) -> None:
    """amdgpu's way for computing: one node for all of its cards, which its topology names by the minors of their own."""
    host = kernel.host
    majors = _majors(kernel)
    if "kfd" not in majors:
        majors["kfd"] = first_major(host, kernel.data["kernel"], host.machine["boots"]) - 40
        host.write(f"{_KFD_NODES}/0/properties", "cpu_cores_count 16\ndrm_render_minor 0\n")
    number = sum(1 for _ in host.rooted(_KFD_NODES).iterdir())
    host.write(f"{_KFD_NODES}/{number}/properties", f"simd_count 12\nvendor_id 4098\ndrm_render_minor {minor}\n")
    host.write(f"{_KFD_NODES}/{number}/address", address)
    write_node(host.rooted("/dev/kfd"), Node("c", majors["kfd"], 0, 0o660, 0, 104))
    write_proc_devices(kernel)


def remove_drm_card(kernel: Kernel, address: str) -> None:
    """A DRM driver has lost a card, and its nodes are gone."""
    number = kernel.data.setdefault("drm_cards", {}).pop(address, None)
    if number is None:
        return
    host = kernel.host
    for name, kind in ((f"card{number}", "card"), (f"renderD{128 + number}", "render")):
        for path in (f"/dev/dri/{name}", f"/dev/dri/by-path/pci-{address}-{kind}", f"/sys/class/drm/{name}"):
            host.rooted(path).unlink(missing_ok=True)
    host.remove_tree(kernel.device_folder(address).resolve() / "drm")
    base = host.rooted(_KFD_NODES)
    for entry in list(base.iterdir()) if base.is_dir() else []:
        if (entry / "address").is_file() and (entry / "address").read_text(encoding="utf-8") == address:
            host.remove_tree(entry)


def model_of(name: str | None, device: str) -> str:
    """What the driver calls a card: pci.ids' `AD102 [GeForce RTX 4090]` is its `NVIDIA GeForce RTX 4090`."""
    match = re.search(r"\[(.+)\]", name or "")
    return f"NVIDIA {match[1] if match else _NEWER.get(device, 'Graphics Device')}"


def uuid_of(host: HostState, address: str) -> str:
    """A card's UUID: the same on every boot, another for every card."""
    import hashlib

    digest = hashlib.sha256(f"{host.node}/{address}".encode()).hexdigest()
    return f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"


# -- nvidia-modprobe -------------------------------------------------------------------------------------------
def cards(running: dict[str, Any]) -> dict[int, str]:
    """The driver's cards of a running system: minor number -> PCI address, by minor number."""
    return {minor: address for address, minor in sorted(running.get("nvidia_minors", {}).items(), key=lambda i: i[1])}


def is_shut(running: dict[str, Any], address: str) -> bool:
    """Whether the driver lets nobody open a card that it has: it is draining (fact 36), or about to go."""
    return address in running.get("nvidia_draining", []) or address in running.get("removing", {})


def make_card_node(host: HostState, minor: int) -> None:
    """/dev/nvidiaN, or /dev/nvidiactl for minor 255, as nvidia-modprobe -c makes it."""
    name = "nvidiactl" if minor == CONTROL_MINOR else f"nvidia{minor}"
    write_node(host.rooted(f"/dev/{name}"), Node("c", MAJOR, minor))


def make_modeset_node(host: HostState) -> None:
    """/dev/nvidia-modeset, as nvidia-modprobe -m makes it."""
    write_node(host.rooted("/dev/nvidia-modeset"), Node("c", MAJOR, MODESET_MINOR))


def make_uvm_nodes(host: HostState, base: int) -> None:
    """/dev/nvidia-uvm and /dev/nvidia-uvm-tools, as nvidia-modprobe -u -c BASE makes them."""
    major = registered_major(host, "nvidia-uvm")
    write_node(host.rooted("/dev/nvidia-uvm"), Node("c", major, base))
    write_node(host.rooted("/dev/nvidia-uvm-tools"), Node("c", major, base + 1))


def make_capability_node(host: HostState, path: str) -> None:
    """/dev/nvidia-caps/nvidia-capN of a file in /proc/driver/nvidia/capabilities, as nvidia-modprobe -f makes it.

    Raises:
        NvidiaError: there is no such file.
    """
    text = host.read(path, "")
    minor, mode = (re.search(rf"{key}: (\d+)", text) for key in ("DeviceFileMinor", "DeviceFileMode"))
    if minor is None or mode is None:
        raise NvidiaError(f"Failed to read {path}")
    node = Node("c", registered_major(host, "nvidia-caps"), int(minor[1]), int(mode[1]))
    write_node(host.rooted(f"/dev/nvidia-caps/nvidia-cap{minor[1]}"), node)


def make_all_nodes(host: HostState) -> None:
    """Every node that a system has after a graphics or CUDA program ran as root."""
    make_card_node(host, CONTROL_MINOR)
    for minor in cards(host.running):
        make_card_node(host, minor)
    loaded = host.running.get("loaded", {})
    if "nvidia_modeset" in loaded:
        make_modeset_node(host)
    if "nvidia_uvm" in loaded:
        make_uvm_nodes(host, 0)
    for name in _CAPABILITIES:
        make_capability_node(host, f"{_PROC}/capabilities/{name}")


def at_boot(host: HostState) -> tuple[bool, bool]:
    """Whether something loads nvidia-uvm at boot, and whether something makes the nodes: by the scenario where it has
    the driver installed, else by the driver's udev rules."""
    if host.machine["nvidia"] is not None:
        return bool(host.machine["nvidia"]["uvm"]), bool(host.machine["nvidia"]["nodes"])
    rules = host.rooted(UDEV_RULES).exists()
    return rules, rules


def registered_major(host: HostState, device: str) -> int:
    """The major number that /proc/devices has for a driver.

    Raises:
        NvidiaError: there is none: its module isn't loaded.
    """
    match = re.search(rf"^\s*(\d+) {re.escape(device)}$", host.read("/proc/devices", ""), re.M)
    if match is None:
        raise NvidiaError(f"{device} is not in /proc/devices")
    return int(match[1])


def behind(host: HostState, node: Node) -> bool:
    """Whether a driver answers at a node's numbers: its major is registered, and one of NVIDIA's has its card."""
    return Answering(host).has(node)


class Answering:
    """The drivers that answer on a host now, for questions about many nodes.

    Args:
        host: the host, read once.
    """

    def __init__(self, host: HostState) -> None:
        running = host.running
        self._registered = {int(major) for major in _MAJOR_LINE.findall(host.read("/proc/devices", ""))}
        self._minors = {CONTROL_MINOR, MODESET_MINOR}
        self._minors |= {minor for minor, address in cards(running).items() if not is_shut(running, address)}

    def has(self, node: Node) -> bool:
        """See `behind`."""
        return node.major in self._registered and (node.major != MAJOR or node.minor in self._minors)
