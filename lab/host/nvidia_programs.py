"""nvidia-smi, on a lab host and in its containers, and nvidia-modprobe."""

from __future__ import annotations

import errno
import re
import time
from typing import NamedTuple

from . import container, holders, nvidia
from .kernel import ModprobeError, RunningKernel, modules_of
from .modprobe import root_modprobe_config
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
_PERMISSION, _NOT_FOUND, _DRIVER_NOT_LOADED, _LIBRARY_NOT_FOUND, _MISMATCH, _IN_USE, _UNKNOWN = 4, 6, 9, 12, 18, 19, 255


#: Memory in MiB, as nvidia-smi prints it, and compute capability, by PCI device id.
_CAPACITIES = {
    "2b85": (32607, "12.0"), "2d04": (16311, "12.0"), "2684": (24564, "8.9"), "2786": (12282, "8.9"),
    "2882": (8188, "8.9"), "2204": (24576, "8.6"), "2504": (12288, "8.6"),
}  # fmt: skip


# The CUDA with which each branch of the driver came.
_CUDA_OF_BRANCH = (
    (610, "13.3"), (595, "13.2"), (590, "13.1"), (580, "13.0"), (575, "12.9"), (570, "12.8"), (560, "12.6"), (550, "12.4"),
    (535, "12.2"), (525, "12.0"), (0, "11.4"),
)  # fmt: skip


class Card(NamedTuple):
    """A card as NVML lists it: by PCI order, whatever its minor number."""

    number: int
    address: str
    minor: int
    name: str
    uuid: str
    device: str

    @property
    def capability(self) -> str | None:
        """Its compute capability, such as 12.0; None where the lab doesn't know it."""
        return _CAPACITIES[self.device][1] if self.device in _CAPACITIES else None


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of NVIDIA's programs."""
    if name == "nvidia-modprobe":
        return logged(host, name, arguments, lambda: _nvidia_modprobe(host, arguments))
    inside = "container" in host.machine
    return _smi(kernel_of(host), _cards_inside(host) if inside else _cards_of_host(host), arguments)


def kernel_of(system: HostState) -> HostState:
    """The system whose kernel this is: a container's is its host's."""
    return container.outer(system) if "container" in system.machine else system


# -- nvidia-modprobe -------------------------------------------------------------------------------------------
def _load(host: HostState, module: str) -> bool:
    """modprobe; a blacklist doesn't keep a module that is asked for by its name."""
    with RunningKernel.changing(host) as kernel:
        try:
            kernel.load_module(module, root_modprobe_config(host), modules_of(host, kernel.data["kernel"]))
        except ModprobeError:
            return False
    return True


def load_uvm(host: HostState) -> bool:
    """Have nvidia-uvm loaded, as a CUDA program's start has; False when that can't be."""
    return "nvidia_uvm" in host.running.get("loaded", {}) or _load(host, "nvidia_uvm")


def _nvidia_modprobe(host: HostState, arguments: list[str]) -> int:
    """As nvidia-modprobe.c: with -u another module and its nodes; -m besides; silent when it fails. Without -l, -s and -f, which nobody gives."""
    options = Options(arguments, "c:mu", ("create-nvidia-device-file=", "modeset", "unified-memory"))
    minors = [int(value) for key, value in options.given if key in ("c", "create-nvidia-device-file")]
    of_uvm = options.has("u", "unified-memory")
    if not _load(host, "nvidia_uvm" if of_uvm else "nvidia"):
        return 1
    for minor in minors:
        (nvidia.make_uvm_nodes if of_uvm else nvidia.make_card_node)(host, minor)
    if options.has("m", "modeset"):
        if not _load(host, "nvidia_modeset"):
            return 1
        nvidia.make_modeset_node(host)
    return 0


# -- nvidia-smi ------------------------------------------------------------------------------------------------
def _cards_of_host(host: HostState) -> list[Card]:
    """What root's nvidia-smi finds on the host: it loads the driver and makes the nodes that it needs.

    Raises:
        Failure: there is no driver, no library, or they don't go together.
    """
    version = _require_library(host)
    if driver_version(host) is None and not _load(host, "nvidia"):
        raise Failure(_NO_DRIVER, _DRIVER_NOT_LOADED)
    _require_match(version, driver_version(host))
    found = _cards(host)
    for minor in (nvidia.CONTROL_MINOR, *(card.minor for card in found)):
        if not host.rooted(f"/dev/{'nvidiactl' if minor == nvidia.CONTROL_MINOR else f'nvidia{minor}'}").exists():
            nvidia.make_card_node(host, minor)
    return found


def _require_library(system: HostState) -> str:
    """The version of NVML's library in a system.

    Raises:
        Failure: there is none.
    """
    version = library_version(system)
    if version is None:
        raise Failure(_NO_LIBRARY, _LIBRARY_NOT_FOUND)
    return version


def _require_match(version: str, running: str | None) -> None:
    """The library speaks with a driver of its own version alone.

    Raises:
        Failure: there is no driver, or it is of another version.
    """
    if running is None:
        raise Failure(_NO_DRIVER, _DRIVER_NOT_LOADED)
    if version != running:
        short = ".".join(version.split(".")[:2])
        text = f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {short}"
        raise Failure(text, _MISMATCH)


def cards_of(system: HostState) -> list[Card]:
    """The cards that a CUDA program finds in a system; nvidia-smi's are the same.

    Raises:
        Failure: in NVML's words, what is missing.
    """
    return _cards_inside(system) if "container" in system.machine else _cards_of_host(system)


def _cards(host: HostState) -> list[Card]:
    """The cards that the driver has, and that come up."""
    known = {d["address"]: d for d in host.machine["hardware"]["devices"]}
    by_address = sorted(
        (address, minor)
        for minor, address in nvidia.cards(host.running).items()
        if not nvidia.is_shut(host.running, address)
        and not nvidia.is_dead(host, address)
        and nvidia.initialised(host, address, known[address]["device"])
    )
    return [
        Card(
            number,
            address,
            minor,
            nvidia.model_of(known[address]["name"], known[address]["device"]),
            nvidia.uuid_of(host, address),
            known[address]["device"],
        )
        for number, (address, minor) in enumerate(by_address)
    ]


def _cards_inside(system: HostState) -> list[Card]:
    """What nvidia-smi in a container finds: its own library, the host's driver, the nodes that may be opened.

    Raises:
        Failure: in NVML's words, what is missing.
    """
    version = _require_library(system)
    host, who = container.outer(system), container.Identity.current()
    running = driver_version(host)
    refused = container.opening(system, "/dev/nvidiactl", "rw", who)
    if running is None or refused in (errno.ENOENT, errno.ENXIO):
        raise Failure(_NO_DRIVER, _DRIVER_NOT_LOADED)
    if refused == errno.EACCES:
        raise Failure("Failed to initialize NVML: Insufficient Permissions", _PERMISSION)
    if refused:
        raise Failure("Failed to initialize NVML: Unknown Error", _UNKNOWN)
    _require_match(version, running)
    seen = [c for c in _cards(host) if container.opening(system, f"/dev/nvidia{c.minor}", "rw", who) == 0]
    return [card._replace(number=number) for number, card in enumerate(seen)]


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
    if arguments[:1] == ["drain"]:
        return logged(host, "nvidia-smi", arguments, lambda: _drain(host, arguments[1:]))
    arguments, chosen = _without_id(arguments)
    if chosen is not None:
        cards = [card for card in cards if _is_meant(card, chosen)]
    if not cards:
        print("No devices were found")
        return _NOT_FOUND
    version = driver_version(host) or ""
    if arguments in (["-L"], ["--list-gpus"]):
        for card in cards:
            print(f"GPU {card.number}: {card.name} (UUID: {card.uuid})")
        return 0
    if arguments in (["-pm", "1"], ["-pm", "0"], ["--persistence-mode=1"], ["--persistence-mode=0"]):
        return logged(host, "nvidia-smi", arguments, lambda: _persistence(host, cards, arguments[-1][-1] == "1"))
    queries = [a.removeprefix("--query-gpu=") for a in arguments if a.startswith("--query-gpu=")]
    if queries:
        _query(host, [field.strip() for field in queries[0].split(",")], cards, version, arguments)
        return 0
    if arguments:
        raise UsageError(f"the lab's nvidia-smi has -L, -pm and --query-gpu=...; not {' '.join(arguments)!r}")
    line = "+" + "-" * 89 + "+"
    print(time.strftime("%a %b %d %H:%M:%S %Y"))
    print(
        f"{line}\n| NVIDIA-SMI {version:<22} Driver Version: {version:<14} CUDA Version: {cuda_of(version):<8} |\n{line}"
    )
    for card in cards:
        print(
            f"| {card.number:>3}  {card.name[:23]:<23}       {_mode(host, card):>3}  |   {_bus_id(card)} Off |                  Off |"
        )
    print(line)
    return 0


def _without_id(arguments: list[str]) -> tuple[list[str], str | None]:
    """The other arguments, and the card that `-i` names."""
    rest, chosen, queue = [], None, list(arguments)
    while queue:
        word = queue.pop(0)
        if word in ("-i", "--id") and queue:
            chosen = queue.pop(0)
        elif word.startswith("--id="):
            chosen = word.removeprefix("--id=")
        else:
            rest.append(word)
    return rest, chosen


def _is_meant(card: Card, text: str) -> bool:
    """Whether an index, a UUID or a PCI address, with or without its domain, names a card."""
    wanted = text.lower()
    return text in (str(card.number), card.uuid) or card.address == _address(wanted)


def _address(text: str) -> str:
    """A PCI address with a domain of four digits."""
    parts = text.lower().split(":")
    domain = parts[0][-4:] if len(parts) == 3 else "0000"
    return ":".join([domain, *parts[-2:]])


_DRAINING = {"0": "not draining", "1": "draining"}


def _drain(host: HostState, arguments: list[str]) -> int:
    """`nvidia-smi drain -p ADDRESS -m 0|1`, or `-q`: whether a card takes new clients. Persistence mode must be off first (fact 36)."""
    options = Options(arguments, "p:m:q", ("pciid=", "modify=", "query"))
    address, wanted = _address(options.value("p", "pciid") or ""), options.value("m", "modify")
    shown = f"GPU 0000{address.upper()}"
    with host.changing_running() as running:
        if address not in running.get("nvidia_minors", {}):
            raise Failure(f"Failed to set {shown} drain state: Not Found", _NOT_FOUND)
        draining = set(running.get("nvidia_draining", []))
        if wanted is None:
            print(f"The current drain state of {shown} is: {_DRAINING[str(int(address in draining))]}.")
            return 0
        if wanted not in _DRAINING:
            raise UsageError("drain: -m takes 0 or 1")
        if wanted == "1" and address in holders.persistent(running):
            raise Failure(f"Failed to set {shown} drain state: In use by another client", _IN_USE)
        running["nvidia_draining"] = sorted(draining | {address} if wanted == "1" else draining - {address})
        holders.update(host, running)
    print(f"Successfully set {shown} drain state to: {_DRAINING[wanted]}.")
    return 0


def _mode(host: HostState, card: Card) -> str:
    return "On" if card.address in holders.persistent(host.running) else "Off"


def _persistence(host: HostState, cards: list[Card], wanted: bool) -> int:
    with host.changing_running() as running:
        others = set(holders.persistent(running)) - {card.address for card in cards}
        running["nvidia_persistence"] = sorted(others | ({card.address for card in cards} if wanted else set()))
        holders.update(host, running)
    for card in cards:
        print(f"{'En' if wanted else 'Dis'}abled persistence mode for GPU {_bus_id(card)}.")
    print("All done.")
    return 0


def cuda_of(version: str) -> str:
    """The newest CUDA that a driver serves, by its branch."""
    branch = int(version.split(".")[0])
    return next(cuda for least, cuda in _CUDA_OF_BRANCH if branch >= least)


def _bus_id(card: Card) -> str:
    return f"0000{card.address.upper()}"


def _query(host: HostState, fields: list[str], cards: list[Card], version: str, arguments: list[str]) -> None:
    form = next((a.removeprefix("--format=") for a in arguments if a.startswith("--format=")), "").split(",")
    for card in cards:
        memory, capability = _CAPACITIES.get(card.device, (None, "[N/A]"))
        unit = "" if "nounits" in form else " MiB"
        values = {
            "index": str(card.number), "count": str(len(cards)), "name": card.name, "gpu_name": card.name,
            "uuid": card.uuid, "gpu_uuid": card.uuid, "driver_version": version, "pci.bus_id": _bus_id(card),
            "gpu_bus_id": _bus_id(card), "compute_cap": capability,
            "persistence_mode": "Enabled" if card.address in holders.persistent(host.running) else "Disabled",
            "pci.device_id": f"0x{card.device.upper()}10DE", "pstate": "P8", "mig.mode.current": "[N/A]",
            "memory.total": "[N/A]" if memory is None else f"{memory}{unit}",
        }  # fmt: skip
        unknown = [field for field in fields if field not in values]
        if unknown:
            raise Failure(f'Field "{unknown[0]}" is not a valid field to query.', 2)
        if card is cards[0] and "noheader" not in form:
            print(", ".join(fields))
        print(", ".join(values[field] for field in fields))
