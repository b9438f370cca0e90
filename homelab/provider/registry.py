"""Which class does the work of a resource. Its module is imported when there is something to do: a run without a change
starts the provider, too, compares properties, and needs nothing that reads a host (a quarter of a second)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from homelab.resources.base import Resource
from homelab.resources.boot_verification import BootVerification
from homelab.resources.card_mapping import CardMapping
from homelab.resources.container_probe import ContainerProbe
from homelab.resources.container_verification import ContainerVerification
from homelab.resources.gpu_lease import GpuLease
from homelab.resources.host_probe import HostProbe
from homelab.resources.kept_agent import KeptAgent
from homelab.resources.new_container import NewContainer
from homelab.resources.nvidia import DriverTrial, GuestReboot, NvidiaSystem, NvidiaVerification
from homelab.resources.storage_file import StorageFile
from homelab.resources.virtual_machine import VirtualMachine
from homelab.resources.vm_cards import VmCards

if TYPE_CHECKING:
    from homelab.provider.base import Work

# A resource -> the module and the class of its work.
WORK: dict[type[Resource], tuple[str, str]] = {
    BootVerification: ("boot_verification", "BootVerificationWork"),
    CardMapping: ("card_mapping", "CardMappingWork"),
    ContainerProbe: ("container_probe", "ContainerProbeWork"),
    ContainerVerification: ("container_verification", "ContainerVerificationWork"),
    DriverTrial: ("driver_trial", "DriverTrialWork"),
    GpuLease: ("gpu_lease", "GpuLeaseWork"),
    GuestReboot: ("guest_reboot", "GuestRebootWork"),
    HostProbe: ("host_probe", "HostProbeWork"),
    KeptAgent: ("kept_agent", "KeptAgentWork"),
    NewContainer: ("new_container", "NewContainerWork"),
    NvidiaSystem: ("nvidia_system", "NvidiaSystemWork"),
    NvidiaVerification: ("nvidia_verification", "NvidiaVerificationWork"),
    StorageFile: ("storage_file", "StorageFileWork"),
    VirtualMachine: ("virtual_machine", "VirtualMachineWork"),
    VmCards: ("vm_cards", "VmCardsWork"),
}


def work_of(resource: type[Resource]) -> type[Work[Any, Any]]:
    """The class that does the work of a resource."""
    module, name = WORK[resource]
    work: type[Work[Any, Any]] = getattr(importlib.import_module(f"homelab.provider.{module}"), name)
    return work
