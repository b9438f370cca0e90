"""nvidia-smi, on a lab host and in its containers, and nvidia-modprobe."""

from __future__ import annotations

import errno
import re
import time
from dataclasses import dataclass, replace

from . import container, nvidia
from .boot import root_modprobe_config
from .kernel import ModprobeError, RunningKernel, modules_of
from .program import Failure, Options, UsageError, logged
from .state import HostState

_NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)
_NO_LIBRARY = (
    "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display Driver is "
    "properly installed and present in your system.\nPlease also try adding directory that contains libnvidia-ml.so to your "
    "system PATH."
)
_LIBRARY = re.compile(r"libnvidia-ml\.so\.(\d+\.\d+(?:\.\d+)?)")
# Exit statuses are NVML's return codes (nvmlReturn_t).
_PERMISSION, _NOT_FOUND, _DRIVER_NOT_LOADED, _LIBRARY_NOT_FOUND, _MISMATCH, _UNKNOWN = 4, 6, 9, 12, 18, 255


#: Memory in MiB, as nvidia-smi prints it, and compute capability, by PCI device id.
_CAPACITIES = {
    "2b85": (32607, "12.0"), "2d04": (16311, "12.0"), "2684": (24564, "8.9"), "2786": (12282, "8.9"),
    "2882": (8188, "8.9"), "2204": (24576, "8.6"), "2504": (12288, "8.6"),
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A card as NVML lists it: by PCI order, whatever its minor number."""

    index: int
    address: str
    minor: int
    name: str
    uuid: str
    device: str


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of NVIDIA's programs."""
    if name == "nvidia-modprobe":
        return logged(host, name, arguments, lambda: _nvidia_modprobe(host, arguments))
    if "container" in host.machine:
        return _smi(container.outer(host), _cards_inside(host), arguments)
    return _smi(host, _cards_of_host(host), arguments)


# -- nvidia-modprobe -------------------------------------------------------------------------------------------
def _load(host: HostState, module: str) -> bool:
    """modprobe; a blacklist doesn't keep a module that is asked for by its name."""
    kernel = RunningKernel.attach(host)
    try:
        kernel.load_module(module, root_modprobe_config(host), modules_of(host, kernel.data["kernel"]))
    except ModprobeError:
        return False
    finally:
        kernel.save()
    return True


def _nvidia_modprobe(host: HostState, arguments: list[str]) -> int:
    """As nvidia-modprobe.c: -l before -s before -u, one of them alone; -m and -f besides; silent when it fails."""
    long = (
        "create-nvidia-device-file=",
        "modeset",
        "unified-memory",
        "nvswitch",
        "nvlink",
        "create-nvidia-cap-device-file=",
    )
    options = Options(arguments, "c:musvhlf:i:a", (*long, "version", "help"))
    minors = [int(value) for key, value in options.given if key in ("c", long[0].rstrip("="))]
    try:
        if options.has("l", "nvlink", "s", "nvswitch"):
            if not _load(host, "nvidia"):
                return 1
        elif options.has("u", "unified-memory"):
            if not _load(host, "nvidia_uvm"):
                return 1
            for base in minors:
                nvidia.make_uvm_nodes(host, base)
        else:
            if not _load(host, "nvidia"):
                return 1
            for minor in minors:
                nvidia.make_card_node(host, minor)
        if options.has("m", "modeset"):
            if not _load(host, "nvidia_modeset"):
                return 1
            nvidia.make_modeset_node(host)
        for key, value in options.given:
            if key in ("f", "create-nvidia-cap-device-file"):
                nvidia.make_capability_node(host, value)
    except nvidia.NvidiaError:
        return 1
    return 0


# -- nvidia-smi ------------------------------------------------------------------------------------------------
def _cards_of_host(host: HostState) -> list[Card]:
    """What root's nvidia-smi finds on the host: it loads the driver and makes the nodes that it needs.

    Raises:
        Failure: there is no driver.
    """
    if not (host.root / "proc/driver/nvidia/version").exists() and not _load(host, "nvidia"):
        raise Failure(_NO_DRIVER, _DRIVER_NOT_LOADED)
    if not (host.root / "proc/driver/nvidia/version").exists():
        raise Failure(_NO_DRIVER, _DRIVER_NOT_LOADED)
    found = _cards(host)
    for minor in (nvidia.CONTROL_MINOR, *(card.minor for card in found)):
        if not host.rooted(f"/dev/{'nvidiactl' if minor == nvidia.CONTROL_MINOR else f'nvidia{minor}'}").exists():
            nvidia.make_card_node(host, minor)
    return found


def _cards(host: HostState) -> list[Card]:
    known = {d["address"]: d for d in host.machine["hardware"]["devices"]}
    by_address = sorted((address, minor) for minor, address in nvidia.cards(host.running).items())
    return [
        Card(
            index,
            address,
            minor,
            nvidia.model_of(known[address]["name"], known[address]["device"]),
            nvidia.uuid_of(host, address),
            known[address]["device"],
        )
        for index, (address, minor) in enumerate(by_address)
    ]


def _cards_inside(system: HostState) -> list[Card]:
    """What nvidia-smi in a container finds: its own library, the host's driver, the nodes that may be opened.

    Raises:
        Failure: in NVML's words, what is missing.
    """
    version = library_version(system)
    if version is None:
        raise Failure(_NO_LIBRARY, _LIBRARY_NOT_FOUND)
    host, who = container.outer(system), container.Identity.current()
    running = driver_version(host)
    refused = container.opening(system, "/dev/nvidiactl", "rw", who)
    if running is None or refused in (errno.ENOENT, errno.ENXIO):
        raise Failure(_NO_DRIVER, _DRIVER_NOT_LOADED)
    if refused == errno.EACCES:
        raise Failure("Failed to initialize NVML: Insufficient Permissions", _PERMISSION)
    if refused:
        raise Failure("Failed to initialize NVML: Unknown Error", _UNKNOWN)
    if version != running:
        short = ".".join(version.split(".")[:2])
        text = f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {short}"
        raise Failure(text, _MISMATCH)
    seen = [c for c in _cards(host) if container.opening(system, f"/dev/nvidia{c.minor}", "rw", who) == 0]
    return [replace(card, index=index) for index, card in enumerate(seen)]


def library_version(system: HostState) -> str | None:
    """The version of a container's libnvidia-ml.so, by the name of its file."""
    for folder in ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"):
        base = system.root / folder
        for path in sorted(base.glob("libnvidia-ml.so.*")) if base.is_dir() else []:
            if match := _LIBRARY.fullmatch(path.name):
                return match[1]
    return None


def driver_version(host: HostState) -> str | None:
    """The version of the driver that runs on a host."""
    match = re.search(r"\d{3,}\.\d+(?:\.\d+)?", host.read("/proc/driver/nvidia/version", ""))
    return match[0] if match else None


def _smi(host: HostState, cards: list[Card], arguments: list[str]) -> int:
    if not cards:
        print("No devices were found")
        return _NOT_FOUND
    version = driver_version(host) or ""
    if arguments in (["-L"], ["--list-gpus"]):
        for card in cards:
            print(f"GPU {card.index}: {card.name} (UUID: {card.uuid})")
        return 0
    queries = [a.removeprefix("--query-gpu=") for a in arguments if a.startswith("--query-gpu=")]
    if queries:
        _query([field.strip() for field in queries[0].split(",")], cards, version, arguments)
        return 0
    if arguments:
        raise UsageError(f"the lab's nvidia-smi has -L and --query-gpu=...; not {' '.join(arguments)!r}")
    line = "+" + "-" * 89 + "+"
    print(time.strftime("%a %b %d %H:%M:%S %Y"))
    print(f"{line}\n| NVIDIA-SMI {version:<22} Driver Version: {version:<14} CUDA Version: 13.0     |\n{line}")
    for card in cards:
        print(f"| {card.index:>3}  {card.name[:23]:<23}        On  |   {_bus_id(card)} Off |                  Off |")
    print(line)
    return 0


def _bus_id(card: Card) -> str:
    return f"0000{card.address.upper()}"


def _query(fields: list[str], cards: list[Card], version: str, arguments: list[str]) -> None:
    form = next((a.removeprefix("--format=") for a in arguments if a.startswith("--format=")), "").split(",")
    for card in cards:
        memory, capability = _CAPACITIES.get(card.device, (None, "[N/A]"))
        unit = "" if "nounits" in form else " MiB"
        values = {
            "index": str(card.index), "count": str(len(cards)), "name": card.name, "gpu_name": card.name,
            "uuid": card.uuid, "gpu_uuid": card.uuid, "driver_version": version, "pci.bus_id": _bus_id(card),
            "gpu_bus_id": _bus_id(card), "compute_cap": capability,
            "memory.total": "[N/A]" if memory is None else f"{memory}{unit}",
        }  # fmt: skip
        unknown = [field for field in fields if field not in values]
        if unknown:
            raise Failure(f'Field "{unknown[0]}" is not a valid field to query.', 2)
        if card.index == 0 and "noheader" not in form:
            print(", ".join(fields))
        print(", ".join(values[field] for field in fields))
