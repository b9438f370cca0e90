"""The whole settings, with the rules that several parts have to meet together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import PrivateAttr, field_validator, model_validator

from homelab.model import Model
from homelab.settings.container import Container
from homelab.settings.host import Host
from homelab.settings.nvidia import Nvidia
from homelab.settings.types import (
    Name,
)
from homelab.settings.vm import Vm, VmGpu


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
    # Guests that were located by `with_hosts`: name -> the cluster that their settings name.
    _cluster_of: dict[str, str] = PrivateAttr(default_factory=dict)

    def candidates(self, guest: Vm | Container) -> list[str]:
        """The names of the hosts on which a guest may be: the host that it names; of a cluster those that have all of
        its cards, in the settings' order."""
        if guest.host in self.hosts:
            return [guest.host]
        nodes = self.of_cluster(guest.host)
        return [name for name, host in nodes.items() if host.gpus.keys() >= set(guest.cards)]

    def of_cluster(self, cluster: str) -> dict[str, Host]:
        """The hosts that are nodes of a cluster, by name."""
        return {name: host for name, host in self.hosts.items() if host.cluster == cluster}

    def restarts_before(self, host: str) -> str:
        """The name of the host that restarts before this one in its cluster; empty: this one is the first, or in no
        cluster."""
        cluster = self.hosts[host].cluster
        nodes = list(self.of_cluster(cluster)) if cluster else [host]
        return nodes[nodes.index(host) - 1] if nodes.index(host) else ""

    @property
    def roaming(self) -> dict[str, Vm | Container]:
        """The guests that name a cluster instead of a host, by name."""
        guests: dict[str, Vm | Container] = {**self.vms, **self.containers}
        return {name: guest for name, guest in guests.items() if guest.host not in self.hosts}

    def named_by(self, guest: str, host: str) -> str:
        """The cluster that a guest names, if `with_hosts` has located it on this host; else the host itself."""
        return self._cluster_of.get(guest, host)

    @property
    def stacks(self) -> dict[str, Nvidia]:
        """The settings of NVIDIA's stack by place in the settings, such as `vms.sandbox`."""
        hosts = {f"hosts.{name}": host.nvidia for name, host in self.hosts.items()}
        vms = {f"vms.{name}": vm.nvidia for name, vm in self.vms.items()}
        containers = {f"containers.{name}": container.nvidia for name, container in self.containers.items()}
        return {place: stack for place, stack in {**hosts, **vms, **containers}.items() if stack is not None}

    @model_validator(mode="after")
    def _vms_fit(self) -> Self:
        self._check_vms()
        return self

    def _check_vms(self) -> None:
        holders: dict[tuple[str, str], str] = {}
        ids: dict[tuple[str, int], str] = {}
        for name, vm in self.vms.items():
            host = self._host_of(f"vms.{name}", vm)
            if other_vm := ids.get((vm.host, vm.vmid)):
                raise ValueError(f"vms.{name} and vms.{other_vm} have the same vmid {vm.vmid}")
            ids[vm.host, vm.vmid] = name
            self._check_roaming(f"vms.{name}", vm)
            for use in vm.gpus:
                _check_vm_card(name, vm, use, host)
                if host.gpus[use.gpu].use == "shared":
                    continue  # the VM that starts first has it
                if vm.host not in self.hosts:
                    continue  # the host is known only once the guest was located
                if holder := holders.get((vm.host, use.gpu)):
                    raise ValueError(
                        f"gpus: {use.gpu} is given to vms.{holder} and vms.{name}; one VM at a time can have it: "
                        "give it to one, or set use: shared"
                    )
                holders[vm.host, use.gpu] = name

    def _check_roaming(self, place: str, guest: Vm | Container) -> None:
        """Refuses a guest that names a cluster and has a card that is handed over: that is done by a hookscript, and a
        list of the card's guests, on the card's own node.

        :param place: in the settings, such as `vms.sandbox`.
        """
        if guest.host in self.hosts:
            return
        for host in self.candidates(guest):
            shared = [gpu for gpu in guest.cards if gpu in self.hosts[host].hands_over]
            if shared:
                raise ValueError(
                    f"{place}.host: {guest.host} is a cluster, and {shared[0]} is shared between a VM and containers "
                    f"of {host}, which hands it over: name the host ({', '.join(self.candidates(guest))}), or give the "
                    f"card use: {'vm' if isinstance(guest, Vm) else 'lxc'}"
                )

    def _host_of(self, place: str, guest: Vm | Container) -> Host:
        """The host that a guest names; of a cluster, the first host that has its cards.

        :param place: in the settings, such as `vms.sandbox`.
        :raises ValueError: there is no such host or cluster, or none of its hosts has the cards.
        """
        nodes = self.of_cluster(guest.host)
        if guest.host not in self.hosts and not nodes:
            clusters = sorted({host.cluster for host in self.hosts.values() if host.cluster})
            others = f", and the cluster{'s' if len(clusters) > 1 else ''} {', '.join(clusters)}" if clusters else ""
            raise ValueError(f"{place}.host: no such host; there are {', '.join(self.hosts)}{others}")
        candidates = self.candidates(guest)
        if not candidates:
            cards = f"the card{'s' if len(guest.cards) > 1 else ''} {', '.join(guest.cards)}"
            raise ValueError(f"{place}.host: no host of the cluster {guest.host} has {cards}")
        return self.hosts[candidates[0]]

    @model_validator(mode="after")
    def _containers_fit(self) -> Self:
        self._check_containers()
        return self

    def _check_containers(self) -> None:
        ids = {(vm.host, vm.vmid): f"vms.{name}" for name, vm in self.vms.items()}
        for name, container in self.containers.items():
            host = self._host_of(f"containers.{name}", container)
            self._check_roaming(f"containers.{name}", container)
            if name in self.vms:
                raise ValueError(f"containers.{name} and vms.{name}: a name is one guest's")
            if other_guest := ids.get((container.host, container.ctid)):
                raise ValueError(f"containers.{name} and {other_guest} have the same id {container.ctid}")
            ids[container.host, container.ctid] = f"containers.{name}"
            for gpu in container.cards:
                _check_container_card(name, container, gpu, host)

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

    def with_hosts(self, hosts: Mapping[str, str]) -> Settings:
        """The settings with the host on which each guest currently is.

        :param hosts: a guest's name -> the host's.
        :raises ValueError: guests and hosts don't fit each other there.
        """
        placed = self.model_copy(
            update={
                kind: {
                    name: guest.model_copy(update={"host": hosts.get(name, guest.host)})
                    for name, guest in guests.items()
                }
                for kind, guests in (("vms", self.vms), ("containers", self.containers))
            }
        )
        placed._cluster_of = {name: self.roaming[name].host for name in hosts}
        placed._check_vms()
        placed._check_containers()
        return placed

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
