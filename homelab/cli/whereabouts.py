"""The guests of the settings, as commands ask for them."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.host.named import Named
from homelab.settings import Container, Settings, Vm


def guests_on(settings: Settings, name: str) -> tuple[dict[str, Vm], dict[str, Container]]:
    """The VMs and containers of a host by name."""
    vms = {vm_name: vm for vm_name, vm in settings.vms.items() if vm.host == name}
    return vms, {lxc_name: container for lxc_name, container in settings.containers.items() if container.host == name}


def named(vms: Mapping[str, Vm], containers: Mapping[str, Container]) -> list[Named]:
    """Guests by their names in the settings."""
    return [
        *(Named("vm", vm.vmid, name) for name, vm in vms.items()),
        *(Named("lxc", container.ctid, name) for name, container in containers.items()),
    ]
