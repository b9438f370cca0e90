"""The whole settings, with the rules that several parts have to meet together."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from homelab.container.settings import Container
from homelab.fields.model import Model
from homelab.fields.types import Name
from homelab.host.settings import Host
from homelab.nvidia.settings import Nvidia
from homelab.vm.settings import Vm


class Settings(Model):
    """The whole configuration."""

    hosts: Annotated[dict[Name, Host], Field(min_length=1)]
    """The Proxmox VE nodes, each under a name of your choice; at least one."""
    vms: dict[Name, Vm] = {}
    """The VMs that get cards, each under a name of your choice."""
    containers: dict[Name, Container] = {}
    """The containers that share cards, each under a name of your choice."""
    plan: Literal["auto", "always", "never"] = "auto"
    """Whether a preview reads the host. `auto`: when something would change and the host answers within two seconds."""
    allow_plain_secrets: bool = False
    """`true`: secrets may stand unencrypted in the stack's file. See [Secrets](#secrets)."""

    @property
    def stacks(self) -> dict[str, Nvidia]:
        """The settings of NVIDIA's stack by place in the settings, such as `vms.sandbox`."""
        hosts = {f"hosts.{name}": host.nvidia for name, host in self.hosts.items()}
        vms = {f"vms.{name}": vm.nvidia for name, vm in self.vms.items()}
        containers = {f"containers.{name}": container.nvidia for name, container in self.containers.items()}
        return {place: stack for place, stack in {**hosts, **vms, **containers}.items() if stack is not None}

    def guests_on(self, host: str) -> tuple[dict[str, Vm], dict[str, Container]]:
        """The VMs and the containers of a host, by name."""
        vms = {name: vm for name, vm in self.vms.items() if vm.host == host}
        return vms, {name: container for name, container in self.containers.items() if container.host == host}

    @model_validator(mode="after")
    def _guests_fit(self) -> Self:
        ids, holders = dict[tuple[str, int], str](), dict[tuple[str, str], str]()
        for name, vm in self.vms.items():
            self._check(f"vms.{name}", vm, "vm", ids)
            for gpu in vm.cards:
                if self.hosts[vm.host].gpus[gpu].use == "shared":
                    continue  # the VM that starts first has it
                if (holder := holders.setdefault((vm.host, gpu), name)) != name:
                    raise ValueError(
                        f"gpus: {gpu} is given to vms.{holder} and vms.{name}; one VM at a time can have it: give it "
                        "to one, or set use: shared"
                    )
        for name, container in self.containers.items():
            if name in self.vms:
                raise ValueError(f"containers.{name} and vms.{name}: a name is one guest's")
            self._check(f"containers.{name}", container, "lxc", ids)
        return self

    def _check(self, place: str, guest: Vm | Container, use: str, ids: dict[tuple[str, int], str]) -> None:
        """Checks the host, the id and the cards of a guest.

        :param use: of a card that is for its kind alone.
        :param ids: of the guests before; gets its own.
        """
        if guest.host not in self.hosts:
            raise ValueError(f"{place}.host: no such host; there are {', '.join(self.hosts)}")
        if (other := ids.setdefault((guest.host, guest.guest_id), place)) != place:
            raise ValueError(f"{place} and {other} have the same id {guest.guest_id}")
        gpus = self.hosts[guest.host].gpus
        for gpu in guest.cards:
            if gpu not in gpus:
                raise ValueError(
                    f"{place}.gpus: hosts.{guest.host} has no card {gpu}; it has {', '.join(gpus) or 'none'}"
                )
            if guest.cards.count(gpu) > 1:
                raise ValueError(f"{place}.gpus: {gpu} is there twice")
            if gpus[gpu].use not in (use, "shared"):
                raise ValueError(f"{place}.gpus: {gpu} is for use: {gpus[gpu].use}; this guest needs {use}, or shared")

    @model_validator(mode="after")
    def _take_places(self) -> Self:
        last: dict[str | None, str] = {}  # of each cluster, so far
        for name, host in self.hosts.items():
            before = last.get(host.cluster, "") if host.cluster else ""
            last[host.cluster] = name
            vms, containers = self.guests_on(name)
            host.take_place(name, before, vms.values(), containers.values())
        for name, guest in (*self.vms.items(), *self.containers.items()):
            guest.take_name(name)
        return self

    @model_validator(mode="after")
    def _things_differ(self) -> Self:
        """Hosts at one address are one node. Pulumi has one resource of a type and name: stacks of NVIDIA's are named
        NAME, cards and files HOST-NAME."""
        as_resource = "Pulumi would know the {} of both as {}; give one of them another name".format
        things = [(place, as_resource("stack of NVIDIA's", place.partition(".")[2])) for place in self.stacks]
        for name, host in self.hosts.items():
            things.append((f"hosts.{name}", f"two hosts with the address {host.address}:{host.ssh.port}"))
            things += [(f"hosts.{name}.gpus.{gpu}", as_resource("card", f"{name}-{gpu}")) for gpu in host.gpus]
            things += [
                (f"hosts.{name}.downloads.{file}", as_resource("file", f"{name}-{file}")) for file in host.downloads
            ]
        places: dict[str, str] = {}
        for place, problem in things:
            if (other := places.setdefault(problem, place)) != place:
                raise ValueError(f"{other} and {place}: {problem}")
        return self
