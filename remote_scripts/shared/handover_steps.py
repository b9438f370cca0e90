"""What is done with a card that is handed over, by sysfs, in units of systemd's. What a function has now decides, so
that each step can be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from remote_scripts.shared import handover, nvidia
from remote_scripts.shared.card import Card
from remote_scripts.shared.pci import BUS, DEVICES, driver_of
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System


def _set(system: System, path: str, value: str) -> bool:
    """Whether the kernel has taken it."""
    try:
        system.files.set_attribute(path, f"{value}\n")
    except OSError:
        return False
    return True


def _need(ok: bool, card: Card, what: str) -> None:
    if not ok:
        raise Failure(f"gpus.{card.name}: {what}", "the kernel refuses it", "it stays where it is", "see `dmesg`")


def _claim(system: System, card: Card) -> None:
    """For vfio-pci; and from here on it doesn't sleep so deep that it may not wake up again (D3cold), which idle cards
    do on vfio-pci.
    """
    _allow_d3cold(system, card.functions, "0")
    done = [_set(system, f"{DEVICES}/{address}/driver_override", "vfio-pci") for address in card.functions]
    _need(all(done), card, "claimed for vfio-pci")


def _allow_d3cold(system: System, addresses: Iterable[str], value: str) -> None:
    for address in addresses:
        path = f"{DEVICES}/{address}/d3cold_allowed"
        if system.files.exists(path):
            _set(system, path, value)


def _unbind(system: System, card: Card) -> None:
    _need(_let_go(system, card, lambda driver: driver not in ("", "vfio-pci")), card, "unbound")


def _let_go(system: System, card: Card, is_meant: Callable[[str], bool]) -> bool:
    meant = [function for function in card.functions if is_meant(driver_of(system, function))]
    return all([_set(system, f"{DEVICES}/{address}/driver/unbind", address) for address in meant])


def _bind(system: System, card: Card) -> None:
    for address in card.functions:
        if driver_of(system, address) != "vfio-pci":
            _need(_set(system, f"{BUS}/drivers/vfio-pci/bind", address), card, f"{address} bound to vfio-pci")


def _release(system: System, card: Card) -> None:
    for address in card.functions:
        _set(system, f"{DEVICES}/{address}/driver_override", "")
    _set(system, f"{DEVICES}/{card.gpu}/driver_override", "nvidia")
    _need(_let_go(system, card, lambda driver: driver == "vfio-pci"), card, "taken from vfio-pci")


def _attach(system: System, card: Card) -> None:
    for address in card.functions:
        if driver_of(system, address):
            continue
        if address == card.gpu:
            _set(system, f"{BUS}/drivers/nvidia/bind", address)
        else:
            _set(system, f"{DEVICES}/{address}/driver_override", "")
            _set(system, f"{BUS}/drivers_probe", address)  # it may have no driver here
    for address in card.functions:
        _set(system, f"{DEVICES}/{address}/driver_override", "")
    _allow_d3cold(system, handover.read_record(system, card.name).d3cold.split(), "1")
    _need(driver_of(system, card.gpu) == "nvidia", card, "given to NVIDIA's driver")


def _nodes(system: System, _card: Card) -> None:
    nvidia.make_nodes(system)


#: Each raises a Failure where the kernel refuses it.
STEPS: dict[str, Callable[[System, Card], None]] = {
    "step_claim": _claim,
    "step_unbind": _unbind,
    "step_bind": _bind,
    "step_release": _release,
    "step_attach": _attach,
    "step_nodes": _nodes,
}
