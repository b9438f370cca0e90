"""A system that NVIDIA's stack is installed on: the host, a VM, a container."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pulumi

from homelab.nvidia.resource import NvidiaSystem
from homelab.resources.command import Place, Request, step
from homelab.resources.kept_agent import KeptFolder, owner
from homelab.settings import Nvidia
from homelab.shapes import VmOutput
from homelab.stack import Refusal
from remote_scripts.both.stack_folder import Wanted as StackFolder
from remote_scripts.both.symptoms import Target


@dataclass(frozen=True)
class InstalledDriver:
    """NVIDIA's driver as it is installed on a host. `version`: empty: any, or none; `flavour`: of its modules;
    `generation`: how often it had to be mended.
    """

    version: pulumi.Input[str] = ""
    flavour: pulumi.Input[str] = ""
    generation: pulumi.Input[int] = 0


@dataclass(frozen=True, kw_only=True)
class System:
    """Where NVIDIA's stack is installed."""

    target: Target
    name: str
    """Its place in the settings, such as `vms.sandbox`."""
    place: Place
    """On a host of the settings. A VM's address may be known only once it runs."""
    nvidia: Nvidia
    depends_on: tuple[pulumi.Resource, ...]
    after: pulumi.Input[str] = ""
    """With its change all steps look again: another VM, a restart with other cards, the host's driver."""
    ctid: int | None = None
    """Of a container."""
    stays: bool = True
    """Is it there after a `destroy`?"""
    passed: pulumi.Input[list[str]] = field(default_factory=list)
    """Of a host: slots of cards that VMs get."""
    staying: pulumi.Input[list[str]] | None = None
    """Where a host hands cards over, slots of those that its driver has after its start."""
    started: pulumi.Input[str] = ""
    """With its change what is installed is verified again: the system, or the host below it, was started anew by this
    program."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs that each resource of this system has (homelab.nvidia.resource.SystemInputs)."""
        return {
            "target": self.target,
            "system_name": self.name,
            "host": self.place.host.name,
            "ctid": self.ctid,
            "address": self.place.address or self.place.host.address,
            "nvidia": self.nvidia.model_dump(mode="json", exclude={"proxy", "timeouts"}),
            "after": self.after,
            "passed": self.passed,
            "stays": self.stays,
            **({} if self.staying is None else {"staying": self.staying}),
        }

    @property
    def purged(self) -> bool:
        """Whether a `destroy` takes back what was installed."""
        return self.stays and self.nvidia.on_destroy == "purge"

    @property
    def agent_owner(self) -> str:
        """The stack's folder in a VM, where the agent is kept."""
        return owner(self.name)

    def keep_agent(self, name: str, system: NvidiaSystem, opts: pulumi.ResourceOptions) -> Place:
        """Where its steps run. A VM keeps an agent, which NvidiaSystem has put there, and which goes after all steps;
        others find their host's.

        :param system: that NvidiaSystem.
        """
        if self.target != "vm":
            return self.place
        last = step(
            name,
            place=replace(self.place, folder=KeptFolder(self.agent_owner, system, system.stale)),
            request=Request("stack_folder", StackFolder(owner=self.agent_owner)),
            undone=self.purged,
            identity=[self.place.host.name, self.name],
            is_last=True,
            opts=opts,
        )
        return replace(self.place, folder=KeptFolder(self.agent_owner, last, system.stale))


def address_of(name: str, vm: VmOutput) -> str:
    """Where a VM is reached.

    :raises Refusal: that isn't known.
    """
    if address := vm.get("address"):
        return address
    raise Refusal.of(
        wanted=f"vms.{name} running, and its address",
        found=f"VM {int(vm['vmid'])} is {vm['state']}, and its guest agent named none",
        why="NVIDIA's stack is installed from inside the guest",
        next=f"start it, or set vms.{name}.power: running; install qemu-guest-agent in it, or set vms.{name}.address",
    )
