"""What is done with a card that is handed over, by sysfs, in units of systemd's. What a function has now decides, so
that each step can be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from remote_scripts.cards.handed_over import SharedCard
from remote_scripts.notes import handover
from remote_scripts.nvidia import nvidia
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.pci import BUS, DEVICES, driver_of


def _set(card: SharedCard, path: str, value: str) -> bool:
    """Whether the kernel has taken it."""
    try:
        card.system.files.set_attribute(path, f"{value}\n")
    except OSError:
        return False
    return True


def _need(ok: bool, card: SharedCard, what: str) -> None:
    if not ok:
        raise Failure(f"gpus.{card.name}: {what}", "the kernel refuses it", "the card stays where it is", "see `dmesg`")


def _claim(card: SharedCard) -> None:
    """Claims the card for vfio-pci. From here on it may not sleep in D3cold, as idle cards do on vfio-pci: some don't
    wake up again.
    """
    _allow_d3cold(card, card.functions, "0")
    done = [_set(card, f"{DEVICES}/{address}/driver_override", "vfio-pci") for address in card.functions]
    _need(all(done), card, "claimed for vfio-pci")


def _allow_d3cold(card: SharedCard, addresses: Iterable[str], value: str) -> None:
    for address in addresses:
        path = f"{DEVICES}/{address}/d3cold_allowed"
        if card.system.files.exists(path):
            _set(card, path, value)


def _unbind(card: SharedCard) -> None:
    _need(_let_go(card, lambda driver: driver not in ("", "vfio-pci")), card, "unbound")


def _let_go(card: SharedCard, is_meant: Callable[[str], bool]) -> bool:
    meant = [function for function in card.functions if is_meant(driver_of(card.system, function))]
    return all([_set(card, f"{DEVICES}/{address}/driver/unbind", address) for address in meant])


def _bind(card: SharedCard) -> None:
    for address in card.functions:
        if driver_of(card.system, address) != "vfio-pci":
            _need(_set(card, f"{BUS}/drivers/vfio-pci/bind", address), card, f"{address} bound to vfio-pci")


def _release(card: SharedCard) -> None:
    for address in card.functions:
        _set(card, f"{DEVICES}/{address}/driver_override", "")
    _set(card, f"{DEVICES}/{card.gpu}/driver_override", "nvidia")
    _need(_let_go(card, lambda driver: driver == "vfio-pci"), card, "taken from vfio-pci")


def _attach(card: SharedCard) -> None:
    for address in card.functions:
        if driver_of(card.system, address):
            continue
        if address == card.gpu:
            _set(card, f"{BUS}/drivers/nvidia/bind", address)
        else:
            _set(card, f"{DEVICES}/{address}/driver_override", "")
            _set(card, f"{BUS}/drivers_probe", address)  # it may have no driver here
    for address in card.functions:
        _set(card, f"{DEVICES}/{address}/driver_override", "")
    _allow_d3cold(card, handover.read_record(card.system, card.name).d3cold, "1")
    _need(card.driver == "nvidia", card, "given to NVIDIA's driver")
    nvidia.make_nodes(card.system)


#: Each raises a Failure where the kernel refuses it.
STEPS: dict[str, Callable[[SharedCard], None]] = {
    "step_claim": _claim,
    "step_unbind": _unbind,
    "step_bind": _bind,
    "step_release": _release,
    "step_attach": _attach,
}
