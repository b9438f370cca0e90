"""NvidiaGuestStack: NVIDIA's driver, CUDA and the container toolkit on one system: a VM, a container, or the host
itself.

NvidiaSystem (what it is) ─► packages ─► reboot, if needed ─► container toolkit ─► NvidiaVerification

Each step is a resource, so that a run that failed goes on where it stopped. The packages, of driver, CUDA and toolkit,
come by one run of apt, which takes the first way of homelab/nvidia/plan.py that is to be had there; a container has the
libraries alone, of exactly its host's version. Undone on `onDestroy: purge` by each step's own `revert`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi_command import remote

from homelab.guest.mark import goes_away
from homelab.host.resource import HostProbe
from homelab.later import later
from homelab.nvidia.resource import GuestReboot, NvidiaSystem, NvidiaVerification
from homelab.remote import agent, scripts
from homelab.resources import limits
from homelab.resources.command import Place, Request, step
from homelab.resources.system import InstalledDriver, System, address_of
from homelab.settings import Container, Host, Vm
from homelab.shapes import CardPlan, NvidiaOutput
from remote_scripts.both.nvidia_packages import Answer
from remote_scripts.both.read_system import SystemFacts
from remote_scripts.tools.plain import of_plain

from .component import Component
from .gpu_lxc import GpuLxc
from .gpu_vm import GpuVm
from .host_reboot import HostReboot

if TYPE_CHECKING:
    from homelab.nvidia import plan, request
else:
    plan, request = later("homelab.nvidia.plan"), later("homelab.nvidia.request")


class NvidiaGuestStack(Component):
    """Outputs: `result`, for the stack's outputs; `driver`: what its packages have installed. A host's stack is
    verified once it has rebooted (`check_after`), a VM is rebooted from inside, a container isn't.
    """

    result: pulumi.Output[NvidiaOutput]
    driver: InstalledDriver

    def __init__(self, system: System, *, opts: pulumi.ResourceOptions | None = None) -> None:
        name = system.name.partition(".")[2]
        super().__init__("nvidia:Stack", name, opts)
        self._system = system
        stack = system.nvidia
        kept = {"agent": agent.version(), "agent_owner": system.agent_owner} if system.target == "vm" else {}
        self._nvidia_system = NvidiaSystem(
            f"{name}-system", **system.inputs, **kept, opts=self._part(*system.depends_on)
        )
        self._place = system.keep_agent(f"{name}-agent", self._nvidia_system, self._part())

        # All steps are planned here, by what the state has of the system: so this program's newer data change them.
        self._request = self._nvidia_system.facts.apply(
            lambda seen: request.Request.of(system.target, stack, system.name, of_plain(SystemFacts, seen))
        )
        packages = self._step("packages", "nvidia_packages", self._request.apply(plan.wanted), self._nvidia_system)
        self._installed = packages.stdout.apply(lambda text: of_plain(Answer, scripts.answer(text)))
        boot_generation = self._generation("boot")
        self._done: list[pulumi.Input[Any]] = [packages.stdout, boot_generation]
        self.driver = InstalledDriver(
            self._installed.apply(lambda answer: answer.version),
            self._installed.apply(lambda answer: answer.flavour or ""),
            # Of the same version, too, if another module was loaded meanwhile.
            self._nvidia_system.generation_of("boot"),
        )
        if system.target == "vm":
            restart = GuestReboot(
                f"{name}-reboot",
                **system.inputs,
                driver=self.driver.version,
                timeout=stack.timeouts.reboot,
                step=packages.stdout,
                generation=boot_generation,
                opts=self._part(packages),
            )
            self._check(restart, restart.boot_id)
        elif system.target == "lxc":
            self._check(packages)

    @classmethod
    def on_host(cls, host: Host, *, probe: HostProbe) -> NvidiaGuestStack | None:
        """A host's stack, up to its driver; None: the settings have none for it."""
        if host.nvidia is None:
            return None
        staying = probe.gpus.apply(lambda gpus: sorted(gpu["slot"] for gpu in gpus.values() if gpu["use"] != "vm"))
        system = System(
            target="host",
            name=f"hosts.{host.name}",
            place=Place(host),
            nvidia=host.nvidia,
            depends_on=(probe,),
            # Also what isn't in the settings and that homelab.vfio= keeps on vfio-pci (takeOver).
            passed=pulumi.Output.all(probe.gpus, probe.vfio_words).apply(lambda both: _passed(*both)),
            # A card that was a VM's alone so far, or that ids bind by hand, is on vfio-pci when the system is read.
            staying=staying if host.hands_over or host.take_over else None,
        )
        return cls(system)

    def check_after(self, boot: HostReboot) -> None:
        """Uses a host's stack once the host has rebooted for its driver."""
        self._check(boot, boot.boot)

    @classmethod
    def in_vm(cls, vm: Vm, *, host: Host, gpu_vm: GpuVm) -> NvidiaGuestStack | None:
        """A VM's stack; None: the settings have none for it."""
        if vm.nvidia is None:
            return None
        address = gpu_vm.vm.apply(lambda vm_output: address_of(vm.name, vm_output))
        system = System(
            target="vm",
            name=f"vms.{vm.name}",
            place=Place(host.model_copy(update={"ssh": vm.ssh}), address),
            nvidia=vm.nvidia,
            depends_on=(gpu_vm,),
            after=gpu_vm.in_force,
            started=gpu_vm.started,
            stays=not goes_away(vm.create),
        )
        return cls(system)

    @classmethod
    def in_container(
        cls, container: Container, *, host: Host, gpu_lxc: GpuLxc, boot: HostReboot, of_host: NvidiaGuestStack | None
    ) -> NvidiaGuestStack | None:
        """A container's stack; None: the settings have none for it.

        :param boot: of the host, whose driver the container follows where this program installs it.
        :param of_host: the host's own stack, which comes before it.
        """
        if container.nvidia is None:
            return None
        system = System(
            target="lxc",
            name=f"containers.{container.name}",
            place=Place(host),
            nvidia=container.nvidia,
            depends_on=(gpu_lxc,) if of_host is None else (gpu_lxc, of_host),
            after=pulumi.Output.concat(gpu_lxc.in_force, " ", boot.driver),
            ctid=container.ctid,
            started=gpu_lxc.started,
            stays=not goes_away(container.create),
        )
        return cls(system)

    def _check(self, last: pulumi.Resource, *after: pulumi.Output[Any]) -> None:
        """The steps that need the driver in use: the container toolkit, and the look from inside.

        :param last: what comes before them.
        :param after: what they are done again after, besides the packages.
        """
        system, done = self._system, [*self._done, *after]
        if (runtime := system.nvidia.container_toolkit) is not None:
            both = pulumi.Output.all(self._request, self._installed)
            configure = both.apply(lambda values: plan.toolkit(runtime, *values))
            last = toolkit = self._step("toolkit", "container_toolkit", configure, last)
            done.append(toolkit.stdout)
        verified = NvidiaVerification(
            f"{self.pulumi_resource_name}-verified",
            **system.inputs,
            facts=self._nvidia_system.facts,
            timeout=system.nvidia.timeouts.verify,
            done=pulumi.Output.all(*done),
            started=system.started,
            opts=self._part(last),
        )
        self.result = verified.result
        self.register_outputs({"result": self.result})

    def _step(self, name: str, layer: str, wanted: pulumi.Input[Any], after: pulumi.Resource) -> remote.Command:
        """A layer of the agent, undone on a purge.

        :param name: as NvidiaSystem calls it.
        :param wanted: the layer's `Wanted`.
        """
        system = self._system
        request = Request(
            layer,
            wanted,
            self._generation(name),
            seconds=limits.of_step(self._place.host, system.nvidia),
            ctid=system.ctid or 0,
            proxy=system.nvidia.proxy_address,
        )
        return step(
            f"{self.pulumi_resource_name}-{name}",
            place=self._place,
            request=request,
            undone=system.purged,
            identity=[system.place.host.name, system.name, str(system.ctid or "")],
            opts=self._part(after),
        )

    def _generation(self, layer: str) -> pulumi.Output[str]:
        """The layer's generation and the system's `after`: a change of either makes the step run again."""
        return pulumi.Output.concat(self._nvidia_system.generation_of(layer).apply(str), " ", self._system.after)


def _passed(gpus: dict[str, CardPlan], vfio_words: str) -> list[str]:
    """Slots of the cards that vfio-pci has from the next boot on."""
    slots = re.findall(r"[=,]([0-9a-f:]+)\.[0-7]=", vfio_words)  # homelab.vfio=
    return sorted({*slots}.union(gpu["slot"] for gpu in gpus.values() if gpu["use"] == "vm"))
