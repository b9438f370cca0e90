"""Boards on which NVSwitches join several GPUs (HGX, DGX): a VM can't use one of these GPUs alone. Pure.

CUDA in such a VM ends with `system not yet initialized` (802) until a fabric manager has set up the switches for it,
which the VM hasn't got; NVIDIA's Fabric Manager User Guide has the models of virtualization: all GPUs and NVSwitches in
one VM, a fabric manager on the host that gives out partitions, or a single GPU whose driver is told
NVreg_NvLinkDisable=1.
"""

from __future__ import annotations

from homelab.errors import HomelabError
from homelab.host.classes import NVIDIA
from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from homelab.settings import Gpu

# What an NVSwitch is on the bus (`lspci -nn` of an HGX board with H100: "Bridge [0680]: NVIDIA Corporation GH100 [H100
# NVSwitch] [10de:22a3]"). The network functions of the chipset nForce have that class, too; their ids end before 0e00,
# and NVSwitches came with Volta (pci.ids).
_BRIDGE = "0680"
_CHIPSETS_END = 0x0E00
# GPUs that are on such boards alone, whose switches (from the fourth generation on) are no functions on the host's bus:
# B200, B300 (Fabric Manager User Guide, NVSwitch-Based Systems; open-gpu-kernel-modules README for the ids).
_ALWAYS = ("10de:2901", "10de:2909", "10de:3182")


def switches(facts: HostFacts) -> list[Device]:
    """The host's NVSwitches, as far as they are functions on its bus."""
    return [
        device
        for device in facts.devices
        if device.vendor == NVIDIA and device.class_code.startswith(_BRIDGE) and int(device.device, 16) >= _CHIPSETS_END
    ]


def board(facts: HostFacts, slot: str) -> list[str]:
    """The slots of a card and of the other cards of its kind on its board; empty: it is on no such board, or alone."""
    display = next((device for device in facts.functions(slot) if device.is_display and not device.physfn), None)
    if display is None or display.vendor != NVIDIA or not (display.id in _ALWAYS or switches(facts)):
        return []
    slots = [device.slot for device in facts.display_devices if device.id == display.id]
    return slots if len(slots) > 1 else []


def refused(facts: HostFacts, name: str, gpu: Gpu, slot: str, vm_slots: list[str]) -> list[HomelabError]:
    """The refusal of a card whose board's other cards don't go to the same VM.

    :param vm_slots: of the cards that go with it.
    """
    others = [board_slot for board_slot in board(facts, slot) if board_slot not in vm_slots]
    if not others or gpu.allow_part_of_fabric:
        return []
    nvswitches = switches(facts)
    joined = (
        f"{len(nvswitches)} NVSwitches ({', '.join(device.address for device in nvswitches)}) join it with"
        if nvswitches
        else "NVSwitches join it with"
    )
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) for a VM",
            found=f"{joined} {', '.join(others)}, which don't go with it",
            why="its NVLinks wait for a fabric manager that sets the switches up for all of them: CUDA in the VM "
            "ends with error 802, system not yet initialized",
            next="keep the cards with the host, for containers (use: lxc), or give all of them to one VM, with the "
            "NVSwitches and the fabric manager; for a single one, whose driver in the VM is told "
            f"NVreg_NvLinkDisable=1, gpus.{name}.allowPartOfFabric: true",
        )
    ]


def remarks(facts: HostFacts, vm_slots: dict[str, str]) -> list[str]:
    """A remark on a whole board for VMs, whose CUDA needs more than the cards.

    :param vm_slots: of the cards for VMs, name -> slot.
    """
    names = [name for name, slot in vm_slots.items() if board(facts, slot)]
    if not names or not (nvswitches := switches(facts)):
        return []
    return [
        f"{', '.join(f'gpus.{name}' for name in names)}: CUDA in their VM also takes the board's NVSwitches "
        f"({', '.join(device.address for device in nvswitches)}) and "
        "a fabric manager there; this program gives it neither"
    ]
