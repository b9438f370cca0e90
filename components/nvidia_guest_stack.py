"""NvidiaGuestStack: NVIDIA's driver, CUDA and the container toolkit on one system: a VM, a container, or the host
itself.

NvidiaSystem (what it is) ─► repository ─► driver ─► reboot, if needed ─► CUDA ─► container toolkit ─►
NvidiaVerification

Each step is a resource, so that a run that failed goes on where it stopped. What a step does follows from
homelab/nvidia/plan.py; a container has the libraries alone, of exactly its host's version. Undone on `onDestroy: purge`
by each step's own `revert`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.errors import HomelabError
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
from homelab.shapes import CardPlan, StackInUse
from homelab.stack import Refusal

from .gpu_lxc import GpuLxc
from .gpu_vm import GpuVm
from .host_reboot import HostReboot, HostRebootArgs

if TYPE_CHECKING:
    from pulumi_command import remote

    from homelab.nvidia import plan as planner
    from homelab.nvidia import state, verification
    from homelab.nvidia.plan import Plan
    from homelab.nvidia.request import Request
    from homelab.nvidia.verification import Expected
    from homelab.remote import nvidia_steps as steps
else:
    planner = later("homelab.nvidia.plan")
    state = later("homelab.nvidia.state")
    verification = later("homelab.nvidia.verification")
    steps = later("homelab.remote.nvidia_steps")


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A plan, the request that it was made from, and what a verification expects. `driver`: the installed version;
    empty: none is installed yet.
    """

    request: Request
    plan: Plan
    expected: Expected
    driver: str = ""


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
        # Made twice: from the system alone, and from what its repositories offer.
        self._plan = self._plan_for(None)

        def add_repository(planned: _Planned) -> Any:
            packages = planner.packages_to_ask_for(planned.request)
            return steps.repository(planned.plan, stack, planned.expected.context, packages)

        def install_driver(planned: _Planned) -> Any:
            return steps.driver(planned.plan, stack, planned.expected.context)

        def install_cuda(planned: _Planned) -> Any:
            return steps.cuda(planned.plan, stack, planned.expected.context)

        def install_toolkit(planned: _Planned) -> Any:
            return steps.toolkit(planned.plan, stack, planned.expected.context, planned.driver)

        repository = self._layer("repository", "nvidia_repository", add_repository, self._nvidia_system)
        self._plan = self._plan_for(_answer(repository, "offered"))
        driver = self._layer("driver", "nvidia_driver", install_driver, repository)
        version = _answer(driver, "version")
        self._plan = pulumi.Output.all(self._plan, version).apply(
            lambda values: dataclasses.replace(values[0], driver=str(values[1]))
        )
        last: pulumi.Resource = driver
        step_outputs: list[pulumi.Input[Any]] = [driver.stdout, self._generation("boot")]
        if args.reboot is not None:
            reboot = dataclasses.replace(
                args.reboot,
                driver=version,
                flavour=self._plan.apply(lambda planned: str(planned.plan.flavour or "")),
                # After an update was given up, the next try installs the same version, and needs a boot of its own.
                driver_generation=self._nvidia_system.generation_of("boot"),
            )
            last = self.boot = HostReboot(name, reboot, pulumi.ResourceOptions(depends_on=list(args.before_reboot)))
            step_outputs.append(self.boot.boot)
        elif system.target == "vm":
            inputs = {
                "driver": version,
                "timeout": stack.timeouts.reboot,
                "step": driver.stdout,
                "generation": step_outputs[1],
            }
            options = pulumi.ResourceOptions(parent=self, depends_on=[last])
            last = restart = GuestReboot(f"{name}-reboot", {**system.inputs, **inputs}, options)
            step_outputs.append(restart.boot_id)
        if stack.cuda is not None:
            last = cuda = self._layer("cuda", "cuda_toolkit", install_cuda, last)
            step_outputs.append(cuda.stdout)
        if stack.container_toolkit is not None:
            last = toolkit = self._layer("toolkit", "container_toolkit", install_toolkit, last)
            step_outputs.append(toolkit.stdout)
        inputs = {
            # The installed version: of a branch, one that was there already is as good as the newest.
            "wanted": self._plan.apply(
                lambda planned: {**dataclasses.asdict(planned.expected), "driver": planned.driver}
            ),
            "tried": self._plan.apply(lambda planned: steps.tried(planned.request, planned.plan)),
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

    def _layer(
        self, step: str, layer: str, wanted: Callable[[_Planned], Any], after: pulumi.Resource
    ) -> remote.Command:
        """A step's command.

        :param step: as NvidiaSystem calls it.
        :param wanted: makes the layer's `Wanted` of the plan.
        """
        word = "repo" if step == "repository" else step
        options = pulumi.ResourceOptions(parent=self, depends_on=[after])
        name = f"{self.pulumi_resource_name}-{word}"
        return self._system.layer(name, layer, self._plan.apply(wanted), self._generation(step), self._agent, options)

    def _generation(self, layer: str) -> pulumi.Output[str]:
        """The layer's generation and the system's `after`: a change of either makes the step run again."""
        readings = pulumi.Output.all(self._nvidia_system.generation_of(layer), self._system.after)
        return readings.apply(lambda values: f"{values[0]} {values[1]}")

    def _plan_for(self, offered: pulumi.Input[dict[str, list[str]] | None]) -> pulumi.Output[_Planned]:
        """The plan for the system.

        :param offered: package -> versions in the repositories; None: not read yet.
        """

        def plan_of(values: list[Any]) -> _Planned:
            system = self._system
            request = state.request_of(system.target, system.name, values[0], system.nvidia, values[1])
            try:
                plan = planner.plan_stack(request)
            except HomelabError as error:
                raise Refusal(error) from None
            return _Planned(request, plan, verification.Expected.of(request, plan))

        return pulumi.Output.all(self._nvidia_system.facts, offered).apply(plan_of)


def _passed(gpus: dict[str, CardPlan], vfio_words: str) -> list[str]:
    """Slots of the cards that vfio-pci has from the next boot on."""
    slots = re.findall(r"[=,]([0-9a-f:]+)\.[0-7]=", vfio_words)  # homelab.vfio=
    return sorted({*slots}.union(gpu["slot"] for gpu in gpus.values() if gpu["use"] == "vm"))


def _answer(step: remote.Command, key: str) -> pulumi.Output[Any]:
    return step.stdout.apply(lambda text: scripts.answer(text)[key])
