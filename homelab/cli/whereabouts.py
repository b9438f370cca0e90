"""The guests of a host of the settings, and where commands reach one that ask the guest itself."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.doctor.stack import StackFile
from homelab.errors import HomelabError
from homelab.host.named import Named
from homelab.settings import Container, Host, Settings, Vm


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


def of_guest(file: StackFile, settings: Settings, place: str, identity: str | None) -> tuple[Host, int]:
    """What SSH connects to for a guest, and the id of a container, which its host asks; 0: of a VM.

    :param place: such as `vms.gaming`.
    :param identity: the private key to log in with instead of the settings' login.
    :raises HomelabError: a VM has no address.
    """
    kind, _, name = place.partition(".")
    if kind == "containers":
        container = settings.containers[name]
        return file.host(container.host, identity)[1], container.ctid
    vm = settings.vms[name]
    if vm.static_address in (None, "agent") or vm.ssh is None:
        raise HomelabError(
            wanted=f"{place}, reached over SSH",
            found=f"its address is {vm.static_address or 'not in the settings'}"
            if vm.ssh
            else "its ssh is not in the settings",
            why="this command asks the guest itself, and no guest agent",
            next=f"set {place}.address and {place}.ssh, or name another system",
        )
    host = file.host(vm.host, identity)[1]
    return host.model_copy(update={"ssh": vm.ssh, "address": vm.static_address}), 0
