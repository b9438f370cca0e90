"""On which host a guest of the settings is, and where commands reach it that ask the guest itself."""

from __future__ import annotations

from collections.abc import Mapping

from homelab.doctor.stack import StackFile
from homelab.errors import HomelabError, UnreachableError
from homelab.host.facts import HostFacts
from homelab.host.named import Named
from homelab.remote import ssh
from homelab.settings import Container, Host, Settings, Vm


def guests_on(
    settings: Settings, name: str, host: Host, facts: HostFacts
) -> tuple[dict[str, Vm], dict[str, Container]]:
    """The VMs and containers of a host by name: those that name it, and those of its cluster that are on it now."""

    def is_here(guest: Vm | Container) -> bool:
        return guest.host == name or (guest.host == host.cluster and facts.guests.config(guest.guest_id) is not None)

    vms = {vm_name: vm for vm_name, vm in settings.vms.items() if is_here(vm)}
    return vms, {lxc_name: container for lxc_name, container in settings.containers.items() if is_here(container)}


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
    :raises HomelabError: a VM has no address, or a container is on none of its cluster's hosts.
    """
    kind, _, name = place.partition(".")
    if kind == "containers":
        container = settings.containers[name]
        return host_of(file, settings, container, identity), container.ctid
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
    host = file.host(settings.candidates(vm)[0], identity)[1]
    return host.model_copy(update={"ssh": vm.ssh, "address": vm.static_address}), 0


def host_of(file: StackFile, settings: Settings, container: Container, identity: str | None) -> Host:
    """The host that a container names; of a cluster, the node that the container is on now, for which each is read.

    :param identity: the private key to log in with instead of the settings' login.
    :raises HomelabError: the container is on none of them, or one of them can't be read.
    """
    if container.host in settings.hosts:
        return file.host(container.host, identity)[1]
    nodes = [file.host(name, identity)[1] for name in settings.of_cluster(container.host)]
    unreachable: HomelabError | None = None
    for host in nodes:
        try:
            if ssh.read(host, guests=True).guests.config(container.ctid) is not None:
                return host
        except UnreachableError as error:  # it may be on another one
            unreachable = unreachable or error
    if unreachable is not None:
        raise unreachable
    raise HomelabError(
        wanted=f"container {container.ctid} on a host of the cluster {container.host}",
        found="it is on none of those that the settings have",
        why="what is in a container is asked for through the node that it is on",
        next="see where it is (`pvesh get /cluster/resources`), and describe that node under hosts",
    )
