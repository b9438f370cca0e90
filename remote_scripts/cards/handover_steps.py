"""What is done with a card that is handed over, by sysfs, in units of systemd's. What a function has now decides, so
that each step can be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from remote_scripts.cards.handed_over import SharedCard
from remote_scripts.notes import handover
from remote_scripts.nvidia import nvidia
from remote_scripts.tools.pci import BUS, DEVICES, driver_of

# A unit waits for a program's end as for its own: that it waits in the kernel is seen by the unit.
_WITHOUT_END = float("inf")


def _set(card: SharedCard, path: str, value: str) -> bool:
    """Whether the kernel has taken it."""
    try:
        card.system.files.set_attribute(path, f"{value}\n")
    except OSError:
        return False
    return True


def _claim(card: SharedCard) -> None:
    """Claims the card for vfio-pci, and unloads the driver's modules where it is their only one. From here on it may
    not sleep in D3cold, as idle cards do on vfio-pci: some don't wake up again.
    """
    _allow_d3cold(card, card.functions, "0")
    if not all([_set(card, f"{DEVICES}/{address}/driver_override", "vfio-pci") for address in card.functions]):
        raise SystemExit("its functions take no driver_override")
    modules = handover.read_record(card.system, card.name).modules if card.is_only() else ()
    for module in modules:
        # It says "in use" at once, where unbinding would wait.
        if (done := card.system.run.ask("rmmod", module, seconds=_WITHOUT_END)).status != 0:
            raise SystemExit(f"the module {module}, which goes with its only card, is in use: {done.all_text}")


def _allow_d3cold(card: SharedCard, addresses: Iterable[str], value: str) -> None:
    for address in addresses:
        path = f"{DEVICES}/{address}/d3cold_allowed"
        if card.system.files.exists(path):
            _set(card, path, value)


def _let_go(card: SharedCard, is_meant: Callable[[str], bool]) -> bool:
    meant = [function for function in card.functions if is_meant(driver_of(card.system, function))]
    return all([_set(card, f"{DEVICES}/{address}/driver/unbind", address) for address in meant])


def _bind(card: SharedCard) -> None:
    """From its drivers to vfio-pci; whether each function has come there is looked at afterwards."""
    if not _let_go(card, lambda driver: driver not in ("", "vfio-pci")):
        raise SystemExit("a function of it can't be unbound")
    for address in card.functions:
        if driver_of(card.system, address) != "vfio-pci":
            _set(card, f"{BUS}/drivers/vfio-pci/bind", address)


def _release(card: SharedCard) -> None:
    for address in card.functions:
        _set(card, f"{DEVICES}/{address}/driver_override", "nvidia" if address == card.gpu else "")
    if not _let_go(card, lambda driver: driver == "vfio-pci"):
        raise SystemExit("the kernel refuses it")


def _attach(card: SharedCard) -> None:
    """Loads the modules that were there before; one that can't be loaded is said, and is no reason to end. Then gives
    every function that has none its driver, and makes the device nodes.
    """
    record = handover.read_record(card.system, card.name)
    for module in reversed(record.modules):
        if (done := card.system.run.ask("modprobe", module, seconds=_WITHOUT_END)).status != 0:
            said = f"{module} could not be loaded: {done.all_text or 'no text'}"
            handover.story_line(card.system, card.name, said)
            card.system.log.say(said)
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
    _allow_d3cold(card, record.d3cold, "1")
    if card.driver != "nvidia":
        raise SystemExit("NVIDIA's driver doesn't take it")
    nvidia.make_nodes(card.system)


#: Each ends its program with a sentence where the kernel refuses it. What a card is looked at for between two of them
#: is their caller's.
STEPS = {"step_claim": _claim, "step_bind": _bind, "step_release": _release, "step_attach": _attach}
