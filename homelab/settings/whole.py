"""The whole settings, with the rules that several parts have to meet together."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from homelab.container.settings import Container
from homelab.fields.model import Model
from homelab.fields.types import Name
from homelab.host.settings import Host
from homelab.nvidia.settings import Nvidia
from homelab.vm.settings import Vm, VmGpu


class Settings(Model):
    """The whole configuration."""

    hosts: dict[Name, Host]
    """The Proxmox VE nodes, each under a name of your choice; at least one."""
    vms: dict[Name, Vm] = {}
    """The VMs that get cards, each under a name of your choice."""
    containers: dict[Name, Container] = {}
    """The containers that share cards, each under a name of your choice."""
    plan: Literal["auto", "always", "never"] = "auto"
    """Whether a preview reads the host. `auto`: when something would change and the host answers within two seconds."""
    allow_plain_secrets: bool = False
    """`true`: secrets may stand unencrypted in the stack's file. See [Secrets](#secrets)."""

    def of_cluster(self, cluster: str) -> dict[str, Host]:
        """The hosts that are nodes of a cluster, by name."""
        return {name: host for name, host in self.hosts.items() if host.cluster == cluster}

    @property
    def stacks(self) -> dict[str, Nvidia]:
        """The settings of NVIDIA's stack by place in the settings, such as `vms.sandbox`."""
        hosts = {f"hosts.{name}": host.nvidia for name, host in self.hosts.items()}
        vms = {f"vms.{name}": vm.nvidia for name, vm in self.vms.items()}
        containers = {f"containers.{name}": container.nvidia for name, container in self.containers.items()}
        return {place: stack for place, stack in {**hosts, **vms, **containers}.items() if stack is not None}

    @model_validator(mode="after")
    def _guests_fit(self) -> Self:
        self._check_vms()
        self._check_containers()
        return self

    def _check_vms(self) -> None:
        holders: dict[tuple[str, str], str] = {}
        ids: dict[tuple[str, int], str] = {}
        for name, vm in self.vms.items():
            host = self._host_of(f"vms.{name}", vm)
            if other_vm := ids.get((vm.host, vm.vmid)):
                raise ValueError(f"vms.{name} and vms.{other_vm} have the same vmid {vm.vmid}")
            ids[vm.host, vm.vmid] = name
            for use in vm.gpus:
                _check_vm_card(name, vm, use, host)
                if host.gpus[use.gpu].use == "shared":
                    continue  # the VM that starts first has it
                if holder := holders.get((vm.host, use.gpu)):
                    raise ValueError(
                        f"gpus: {use.gpu} is given to vms.{holder} and vms.{name}; one VM at a time can have it: "
                        "give it to one, or set use: shared"
                    )
                holders[vm.host, use.gpu] = name

    def _host_of(self, place: str, guest: Vm | Container) -> Host:
        """The host that a guest names.

        :param place: in the settings, such as `vms.sandbox`.
        :raises ValueError: there is no such host.
        """
        if guest.host in self.hosts:
            return self.hosts[guest.host]
        if nodes := self.of_cluster(guest.host):
            raise ValueError(
                f"{place}.host: {guest.host} is a cluster; name the host that the guest is on: {', '.join(nodes)}"
            )
        raise ValueError(f"{place}.host: no such host; there are {', '.join(self.hosts)}")

    def _check_containers(self) -> None:
        ids = {(vm.host, vm.vmid): f"vms.{name}" for name, vm in self.vms.items()}
        for name, container in self.containers.items():
            host = self._host_of(f"containers.{name}", container)
            if name in self.vms:
                raise ValueError(f"containers.{name} and vms.{name}: a name is one guest's")
            if other_guest := ids.get((container.host, container.ctid)):
                raise ValueError(f"containers.{name} and {other_guest} have the same id {container.ctid}")
            ids[container.host, container.ctid] = f"containers.{name}"
            for gpu in container.cards:
                _check_container_card(name, container, gpu, host)

    @model_validator(mode="after")
    def _take_places(self) -> Self:
        last: dict[str | None, str] = {}  # of each cluster, so far
        for name, host in self.hosts.items():
            before = last.get(host.cluster, "") if host.cluster else ""
            last[host.cluster] = name
            host.take_place(
                name,
                before,
                [vm for vm in self.vms.values() if vm.host == name],
                [container for container in self.containers.values() if container.host == name],
            )
        for name, guest in (*self.vms.items(), *self.containers.items()):
            guest.take_name(name)
        return self

    @model_validator(mode="after")
    def _names_of_resources_differ(self) -> Self:
        """Pulumi has one resource of a type and name: stacks of NVIDIA's are named NAME, cards and files HOST-NAME."""
        named = {
            "stack of NVIDIA's": [(place.partition(".")[2], place) for place in self.stacks],
            "card": [
                (f"{host}-{name}", f"hosts.{host}.gpus.{name}") for host in self.hosts for name in self.hosts[host].gpus
            ],
            "file": [
                (f"{host}-{name}", f"hosts.{host}.downloads.{name}")
                for host in self.hosts
                for name in self.hosts[host].downloads
            ],
        }
        for what, places in named.items():
            by_name: dict[str, str] = {}
            for name, place in places:
                if (other := by_name.setdefault(name, place)) != place:
                    raise ValueError(
                        f"{other} and {place}: Pulumi would know the {what} of both as {name}; give one of them "
                        "another name"
                    )
        return self

    @field_validator("hosts")
    @classmethod
    def _distinct_hosts(cls, value: dict[str, Host]) -> dict[str, Host]:
        if not value:
            raise ValueError("expected at least one host")
        addresses = [f"{host.address}:{host.ssh.port}" for host in value.values()]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ValueError(f"two hosts with the address {address}")
        return value


def _check_vm_card(name: str, vm: Vm, use: VmGpu, host: Host) -> None:
    gpu = host.gpus.get(use.gpu)
    if gpu is None:
        raise ValueError(
            f"vms.{name}.gpus: hosts.{vm.host} has no card {use.gpu}; it has {', '.join(host.gpus) or 'none'}"
        )
    if not gpu.may_leave:
        raise ValueError(
            f"vms.{name}.gpus: {use.gpu} stays with the host (use: {gpu.use}); a VM needs use: vm, or shared with "
            "containers"
        )


def _check_container_card(name: str, container: Container, gpu: str, host: Host) -> None:
    card = host.gpus.get(gpu)
    if card is None:
        raise ValueError(
            f"containers.{name}.gpus: hosts.{container.host} has no card {gpu}; it has {', '.join(host.gpus) or 'none'}"
        )
    if card.use not in ("lxc", "shared"):
        raise ValueError(
            f"containers.{name}.gpus: {gpu} is for use: {card.use}; a container needs use: lxc, or shared with a VM"
        )
