"""All of the settings, and whether its parts fit each other."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

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

    @property
    def stacks(self) -> dict[str, Nvidia]:
        """Where NVIDIA's stack is wanted: a place, such as `vms.sandbox`, -> what."""
        hosts = {f"hosts.{name}": host.nvidia for name, host in self.hosts.items()}
        vms = {f"vms.{name}": vm.nvidia for name, vm in self.vms.items()}
        containers = {f"containers.{name}": one.nvidia for name, one in self.containers.items()}
        return {place: stack for place, stack in {**hosts, **vms, **containers}.items() if stack is not None}

    @model_validator(mode="after")
    def _vms_fit(self) -> Self:
        holders: dict[tuple[str, str], str] = {}
        ids: dict[tuple[str, int], str] = {}
        for name, vm in self.vms.items():
            host = self.hosts.get(vm.host)
            if host is None:
                raise ValueError(f"vms.{name}.host: no such host; there are {', '.join(self.hosts)}")
            if host.api is None:
                raise ValueError(f"hosts.{vm.host}.api is missing: cards go to VMs ({name}) through the Proxmox VE API")
            if other := ids.get((vm.host, vm.vmid)):
                raise ValueError(f"vms.{name} and vms.{other} have the same vmid {vm.vmid}")
            ids[vm.host, vm.vmid] = name
            for use in vm.gpus:
                _check_use(name, vm, use, host)
                if other := holders.get((vm.host, use.gpu)):
                    raise ValueError(
                        f"gpus: {use.gpu} is given to vms.{other} and vms.{name}; one VM at a time can have it"
                    )
                holders[vm.host, use.gpu] = name
        return self

    @model_validator(mode="after")
    def _containers_fit(self) -> Self:
        ids = {(vm.host, vm.vmid): f"vms.{name}" for name, vm in self.vms.items()}
        for name, container in self.containers.items():
            host = self.hosts.get(container.host)
            if host is None:
                raise ValueError(f"containers.{name}.host: no such host; there are {', '.join(self.hosts)}")
            if name in self.vms:
                raise ValueError(f"containers.{name} and vms.{name}: a name is one guest's")
            if other := ids.get((container.host, container.ctid)):
                raise ValueError(f"containers.{name} and {other} have the same id {container.ctid}")
            ids[container.host, container.ctid] = f"containers.{name}"
            for gpu in container.gpus or []:
                _check_shared(name, container, gpu, host)
            _check_creation(name, container, host)
        return self

    @field_validator("hosts")
    @classmethod
    def _some(cls, value: dict[str, Host]) -> dict[str, Host]:
        if not value:
            raise ValueError("expected at least one host")
        addresses = [f"{host.address}:{host.ssh.port}" for host in value.values()]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ValueError(f"two hosts with the address {address}")
        return value


def _check_use(name: str, vm: Vm, use: VmGpu, host: Host) -> None:
    gpu = host.gpus.get(use.gpu)
    if gpu is None:
        raise ValueError(
            f"vms.{name}.gpus: hosts.{vm.host} has no card {use.gpu}; it has {', '.join(host.gpus) or 'none'}"
        )
    if gpu.use != "vm":
        raise ValueError(f"vms.{name}.gpus: {use.gpu} stays with the host (use: {gpu.use}); a VM needs use: vm")
    if (use.by_address or use.romfile) and not (host.api and host.api.is_root):
        raise ValueError(
            f"vms.{name}.gpus: byAddress and romfile are root@pam's alone, no token's: set hosts.{vm.host}.api.user and password"
        )


def _check_shared(name: str, container: Container, gpu: str, host: Host) -> None:
    about = host.gpus.get(gpu)
    if about is None:
        raise ValueError(
            f"containers.{name}.gpus: hosts.{container.host} has no card {gpu}; it has {', '.join(host.gpus) or 'none'}"
        )
    if about.use != "lxc":
        raise ValueError(f"containers.{name}.gpus: {gpu} is for use: {about.use}; a container needs use: lxc")


def _check_creation(name: str, container: Container, host: Host) -> None:
    if container.create is None:
        return
    if host.api is None:
        raise ValueError(
            f"hosts.{container.host}.api is missing: containers.{name} is created through the Proxmox VE API"
        )
    if container.create.features.takes_root and not host.api.is_root:
        raise ValueError(
            f"containers.{name}.create.features: all but nesting are root@pam's alone, no token's: set "
            f"hosts.{container.host}.api.user and password"
        )
