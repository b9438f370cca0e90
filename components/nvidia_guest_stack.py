"""NvidiaGuestStack: NVIDIA's driver, CUDA and the container toolkit on one system: a VM, a container, or the host
itself.

NvidiaSystem (what it is) ─► packages ─► reboot, if needed ─► container toolkit ─► NvidiaVerification

Each step is a resource, so that a run that failed goes on where it stopped. The packages, of driver, CUDA and toolkit,
come by one run of apt, which takes the first way of homelab/nvidia/plan.py that is to be had there; a container has the
libraries alone, of exactly its host's version. Undone on `onDestroy: purge` by each step's own `revert`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.later import later
from homelab.remote import agent, scripts
from homelab.resources.described import (
    ContainerInput,
    HostInput,
    VmInput,
    container_of,
    host_of,
    vm_of,
)
from homelab.resources.nvidia import GuestReboot, NvidiaSystem, NvidiaVerification
from homelab.resources.system import System, address_of
from homelab.shapes import CardPlan, StackInUse, SystemState
from remote_scripts.both.nvidia_packages import Answer
from remote_scripts.tools.plain import of_plain

from .gpu_lxc import GpuLxc
from .gpu_vm import GpuVm
from .host_reboot import HostReboot, HostRebootArgs

if TYPE_CHECKING:
    from pulumi_command import remote

    from homelab.nvidia import plan, state, verification
    from homelab.nvidia.request import Request
    from homelab.remote import nvidia_steps as steps
else:
    plan = later("homelab.nvidia.plan")
    state = later("homelab.nvidia.state")
    verification = later("homelab.nvidia.verification")
    steps = later("homelab.remote.nvidia_steps")


@dataclass(frozen=True, kw_only=True)
class NvidiaGuestStackArgs:
    """`reboot`: for a host, arguments of its HostReboot, without the driver; `before_reboot`: resources that the reboot
    depends on besides the driver. A VM is rebooted from inside, a container isn't.
    """

    system: System
    reboot: HostRebootArgs | None = None
    before_reboot: Sequence[pulumi.Resource] = ()


class NvidiaGuestStack(pulumi.ComponentResource):
    """Outputs: `result` (contract.NvidiaOutput). `place`: the system's in the settings, such as `vms.sandbox`; `boot`:
    a host's HostReboot.
    """

    result: pulumi.Output[StackInUse]
    place: str
    boot: HostReboot

    def __init__(self, name: str, args: NvidiaGuestStackArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:nvidia:Stack", name, {}, opts)
        system = args.system
        self.place = system.name
        self._system = system
        stack = system.nvidia
        kept = {"agent": agent.version(), "agent_owner": system.agent_owner} if system.target == "vm" else {}
        self._nvidia_system = NvidiaSystem(
            f"{name}-system",
            {**system.inputs, **kept},
            pulumi.ResourceOptions(parent=self, depends_on=list(system.depends_on)),
        )
        of_this = pulumi.ResourceOptions(parent=self)
        self._agent = system.keep_agent(f"{name}-agent", self._nvidia_system, of_this)

        def request_of(facts: SystemState) -> Request:
            return state.request_of(system.target, system.name, facts, stack)

        request = self._nvidia_system.facts.apply(request_of)
        packages = self._layer("packages", "nvidia_packages", request.apply(plan.wanted), self._nvidia_system)
        installed = packages.stdout.apply(lambda text: of_plain(Answer, scripts.answer(text)))
        version = installed.apply(lambda answer: answer.version)
        last: pulumi.Resource = packages
        step_outputs: list[pulumi.Input[Any]] = [packages.stdout, self._generation("boot")]
        if args.reboot is not None:
            reboot = dataclasses.replace(
                args.reboot,
                driver=version,
                flavour=installed.apply(lambda answer: answer.flavour or ""),
                # After an update was given up, the next try installs the same version, and needs a boot of its own.
                driver_generation=self._nvidia_system.generation_of("boot"),
            )
            last = self.boot = HostReboot(name, reboot, pulumi.ResourceOptions(depends_on=list(args.before_reboot)))
            step_outputs.append(self.boot.boot)
        elif system.target == "vm":
            inputs = {
                "driver": version,
                "timeout": stack.timeouts.reboot,
                "step": packages.stdout,
                "generation": step_outputs[1],
            }
            options = pulumi.ResourceOptions(parent=self, depends_on=[last])
            last = restart = GuestReboot(f"{name}-reboot", {**system.inputs, **inputs}, options)
            step_outputs.append(restart.boot_id)
        both = pulumi.Output.all(request, installed)
        if stack.container_toolkit is not None:
            configure = both.apply(lambda values: steps.toolkit(*values))
            last = toolkit = self._layer("toolkit", "container_toolkit", configure, last)
            step_outputs.append(toolkit.stdout)
        inputs = {
            "wanted": both.apply(lambda values: dataclasses.asdict(verification.Expected.of(*values))),
            "timeout": stack.timeouts.verify,
            "done": pulumi.Output.all(*step_outputs),
            "started": system.started,
        }
        verified = NvidiaVerification(
            f"{name}-verified",
            {**system.inputs, **inputs},
            pulumi.ResourceOptions(parent=self, depends_on=[last]),
        )
        self.result = verified.result
        self.register_outputs({"result": self.result})

    @classmethod
    def on_host(
        cls, name: str, host: HostInput, reboot: HostRebootArgs, before_reboot: Sequence[pulumi.Resource]
    ) -> NvidiaGuestStack | None:
        """A host's stack; None: the settings have none for it.

        :param host: its settings, the keys of docs/settings.md; so are `vm` and `container` below.
        :param reboot: arguments of the host's HostReboot, without the driver.
        :param before_reboot: resources that the reboot depends on besides the driver.
        """
        host = host_of(host)
        if host.nvidia is None:
            return None
        probe = reboot.probe
        system = System(
            "host",
            f"hosts.{name}",
            name,
            host,
            host.address,
            host.nvidia,
            (probe,),
            # Also what isn't in the settings and that homelab.vfio= keeps on vfio-pci (takeOver).
            passed=pulumi.Output.all(probe.gpus, probe.vfio_words).apply(lambda both: _passed(*both)),
            # A card that was a VM's alone so far, or that ids bind by hand, is on vfio-pci when the system is read.
            staying=probe.gpus.apply(lambda gpus: sorted(gpu["slot"] for gpu in gpus.values() if gpu["use"] != "vm"))
            if host.hands_over or host.take_over
            else None,
        )
        return cls(name, NvidiaGuestStackArgs(system=system, reboot=reboot, before_reboot=before_reboot))

    @classmethod
    def in_vm(cls, name: str, vm: VmInput, host: HostInput, gpu_vm: GpuVm) -> NvidiaGuestStack | None:
        """A VM's stack; None: the settings have none for it."""
        vm, host = vm_of(vm), host_of(host)
        if vm.nvidia is None:
            return None
        system = System(
            "vm",
            f"vms.{name}",
            vm.host,
            host.model_copy(update={"ssh": vm.ssh}),
            gpu_vm.vm.apply(lambda vm_output: address_of(name, vm_output)),
            vm.nvidia,
            (gpu_vm,),
            gpu_vm.in_force,
            started=gpu_vm.started,
            stays=vm.create is None or vm.create.protect,
        )
        return cls(name, NvidiaGuestStackArgs(system=system))

    @classmethod
    def in_container(
        cls,
        name: str,
        container: ContainerInput,
        host: HostInput,
        gpu_lxc: GpuLxc,
        boot: HostReboot,
        after: Sequence[pulumi.Resource] = (),
    ) -> NvidiaGuestStack | None:
        """A container's stack; None: the settings have none for it.

        :param boot: of the host, whose driver the container follows where this program installs it.
        :param after: resources that come before it: of the host, its NvidiaGuestStack, if it has one.
        """
        container, host = container_of(container), host_of(host)
        if container.nvidia is None:
            return None
        system = System(
            "lxc",
            f"containers.{name}",
            container.host,
            host,
            host.address,
            container.nvidia,
            (gpu_lxc, *after),
            pulumi.Output.all(gpu_lxc.in_force, boot.driver).apply(" ".join),
            container.ctid,
            started=gpu_lxc.started,
            stays=container.create is None or container.create.protect,
        )
        return cls(name, NvidiaGuestStackArgs(system=system))

    def _layer(self, step: str, layer: str, wanted: pulumi.Input[Any], after: pulumi.Resource) -> remote.Command:
        """A step's command.

        :param step: as NvidiaSystem calls it.
        :param wanted: the layer's `Wanted`.
        """
        options = pulumi.ResourceOptions(parent=self, depends_on=[after])
        name = f"{self.pulumi_resource_name}-{step}"
        return self._system.layer(name, layer, wanted, self._generation(step), self._agent, options)

    def _generation(self, layer: str) -> pulumi.Output[str]:
        """The layer's generation and the system's `after`: a change of either makes the step run again."""
        readings = pulumi.Output.all(self._nvidia_system.generation_of(layer), self._system.after)
        return readings.apply(lambda values: f"{values[0]} {values[1]}")


def _passed(gpus: dict[str, CardPlan], vfio_words: str) -> list[str]:
    """Slots of the cards that vfio-pci has from the next boot on."""
    slots = re.findall(r"[=,]([0-9a-f:]+)\.[0-7]=", vfio_words)  # homelab.vfio=
    return sorted({*slots}.union(gpu["slot"] for gpu in gpus.values() if gpu["use"] == "vm"))
