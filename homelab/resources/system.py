"""A system that NVIDIA's stack is installed on: the host, a VM, a container."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pulumi

from homelab.errors import HomelabError
from homelab.resources import command as commands
from homelab.resources.kept_agent import KeptFolder, owner
from homelab.settings import Host, Nvidia
from homelab.shapes import VmSeen
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


@dataclass(frozen=True)
class System:
    """Where steps run.

    `name`: its place in the settings, such as `vms.sandbox`; `host`: its host's name there; `ctid`: of a container;
    `reached`: the SSH settings; `address`: where they lead (a VM's may be known only once it runs); `stays`: is it
    there after a `destroy`?; `after`: with its change all steps look again: another VM, a restart with other cards, the
    host's driver; `passed`: of a host: slots of cards that VMs get; `staying`: where it hands cards over, slots of
    those that its driver has after its start; `started`: with its change what is installed is verified again: the
    system, or the host below it, was started anew by this program.
    """

    target: Target
    name: str
    host: str
    reached: Host
    address: pulumi.Input[str]
    nvidia: Nvidia
    depends_on: tuple[pulumi.Resource, ...]
    after: pulumi.Input[str] = ""
    ctid: int | None = None
    stays: bool = True
    passed: pulumi.Input[list[str]] = field(default_factory=list)
    staying: pulumi.Input[list[str]] | None = None
    started: pulumi.Input[str] = ""

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs that each resource of this system has (resources.nvidia.SystemInputs)."""
        stack = self.nvidia.model_dump(mode="json", exclude={"proxy", "timeouts"})
        identity = {"target": self.target, "system_name": self.name, "host": self.host, "ctid": self.ctid}
        return {
            **identity,
            "address": self.address,
            "nvidia": stack,
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

    def keep_agent(self, name: str, system: pulumi.Resource, opts: pulumi.ResourceOptions) -> KeptFolder | None:
        """A VM's agent, which NvidiaSystem has put there, and which goes after all steps; None: the host keeps it.

        :param system: that NvidiaSystem.
        """
        if self.target != "vm":
            return None
        last = commands.layer(
            name,
            self.reached,
            "stack_folder",
            StackFolder(owner=self.agent_owner),
            opts,
            undone=self.purged,
            identity=[self.host, self.name] if self.purged else (),
            is_last=True,
            address=self.address,
            folder=KeptFolder(self.agent_owner, system),
        )
        return KeptFolder(self.agent_owner, last)


def address_of(name: str, vm: VmSeen) -> str:
    """Where a VM is reached.

    :raises Refusal: it is off, or its address isn't known.
    """
    if vm["state"] == "running" and (address := vm.get("address")):
        return address
    found = f"VM {int(vm['vmid'])} is {vm['state']}" if vm["state"] != "running" else "its guest agent named none"
    raise Refusal(
        HomelabError(
            wanted=f"vms.{name} running, and its address",
            found=found,
            why="NVIDIA's stack is installed from inside the guest",
            next=f"start it, or set vms.{name}.power: running"
            if vm["state"] != "running"
            else f"install qemu-guest-agent in it, or set vms.{name}.address",
        )
    )
