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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.errors import HomelabError
from homelab.later import later
from homelab.remote import scripts
from homelab.resources import limits
from homelab.resources.nvidia import DriverTrial, GuestReboot, NvidiaSystem, NvidiaVerification
from homelab.resources.system import System, address_of
from homelab.settings import Container, Host, Vm
from homelab.shapes import StackInUse
from homelab.stack import Refusal, locks

from .gpu_lxc import GpuLxc
from .gpu_vm import GpuVm
from .host_reboot import HostReboot, HostRebootArgs

if TYPE_CHECKING:
    from pulumi_command import remote

    from homelab.nvidia import plan as planner
    from homelab.nvidia import state, verification
    from homelab.nvidia.plan import Plan, Request
    from homelab.nvidia.verification import Expected
    from homelab.remote import nvidia_steps as steps
else:
    planner = later("homelab.nvidia.plan")
    state = later("homelab.nvidia.state")
    verification = later("homelab.nvidia.verification")
    steps = later("homelab.remote.nvidia_steps")


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A plan, what it was made from, and what it leads to. `driver`: the installed version; empty: none is yet."""

    request: Request
    plan: Plan
    wanted: Expected
    driver: str = ""


@dataclass(frozen=True, kw_only=True)
class NvidiaGuestStackArgs:
    """`reboot`: for a host: its HostReboot's, but for the driver; `before_reboot`: what that waits for besides. A VM is
    rebooted from inside, a container not at all."""

    system: System
    reboot: HostRebootArgs | None = None
    before_reboot: Sequence[pulumi.Resource] = ()


class NvidiaGuestStack(pulumi.ComponentResource):
    """Outputs: `result` (contract.NvidiaOutput). `place`: of the system in the settings; `boot`: of a host: its
    HostReboot."""

    result: pulumi.Output[StackInUse]
    place: str
    boot: HostReboot

    def __init__(self, name: str, args: NvidiaGuestStackArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:nvidia:Stack", name, {}, opts)
        system = args.system
        self.place = system.name
        self._system = system
        stack = system.nvidia
        self._found = NvidiaSystem(
            f"{name}-system",
            system.inputs,
            pulumi.ResourceOptions(parent=self, depends_on=list(system.depends_on)),
        )
        # Made twice: from the system alone, and from what its repositories offer.
        self._plan = self._planned(None)

        def add_repository(made: _Planned, generation: str) -> str:
            asked = planner.packages_to_ask_for(made.request)
            return steps.repository(made.plan, stack, asked, context=made.wanted.context, generation=generation)

        def install_driver(made: _Planned, generation: str) -> str:
            return steps.driver(made.plan, stack, context=made.wanted.context, generation=generation)

        def install_cuda(made: _Planned, generation: str) -> str:
            return steps.cuda(made.plan, stack, context=made.wanted.context, generation=generation)

        def install_toolkit(made: _Planned, generation: str) -> str:
            return steps.toolkit(made.plan, stack, made.driver, context=made.wanted.context, generation=generation)

        repository = self._step("repository", add_repository, self._found)
        self._plan = self._planned(_answered(repository, "offered"))
        driver = self._step("driver", install_driver, repository)
        version = _answered(driver, "version")
        self._plan = pulumi.Output.all(self._plan, version).apply(
            lambda found: dataclasses.replace(found[0], driver=str(found[1]))
        )
        last: pulumi.Resource = driver
        done: list[pulumi.Input[Any]] = [driver.stdout, self._generation("boot")]
        if args.reboot is not None:
            reboot = dataclasses.replace(
                args.reboot,
                driver=version,
                flavour=self._plan.apply(lambda found: str(found.plan.flavour or "")),
                # After a way back, the second try installs the same version, and needs its boot.
                driver_generation=self._found.generation.apply(lambda found: int(found["boot"])),
            )
            last = self.boot = HostReboot(name, reboot, pulumi.ResourceOptions(depends_on=list(args.before_reboot)))
            done.append(self.boot.boot)
        elif system.target == "vm":
            about = {"driver": version, "timeout": stack.timeouts.reboot, "step": driver.stdout, "generation": done[1]}
            options = pulumi.ResourceOptions(parent=self, depends_on=[last])
            last = restart = GuestReboot(f"{name}-reboot", {**system.inputs, **about}, options)
            done.append(restart.boot_id)
        if stack.cuda is not None:
            last = cuda = self._step("cuda", install_cuda, last)
            done.append(cuda.stdout)
        if stack.container_toolkit is not None:
            last = toolkit = self._step("toolkit", install_toolkit, last)
            done.append(toolkit.stdout)
        about = {
            # The installed version: of a branch, one that was there already is as good as the newest.
            "wanted": self._plan.apply(lambda found: {**dataclasses.asdict(found.wanted), "driver": found.driver}),
            "tried": self._plan.apply(lambda found: steps.tried(found.request, found.plan)),
            "timeout": stack.timeouts.verify,
            "done": pulumi.Output.all(*done),
            "started": system.started,
        }
        self._done = done
        self._verified = NvidiaVerification(
            f"{name}-verified",
            {**system.inputs, **about},
            pulumi.ResourceOptions(parent=self, depends_on=[last]),
        )
        self.result = self._verified.result
        self.register_outputs({"result": self.result})

    @classmethod
    def on_host(
        cls, name: str, host: Host, reboot: HostRebootArgs, before_reboot: Sequence[pulumi.Resource]
    ) -> NvidiaGuestStack | None:
        """The host's own; None: the settings have none for it.

        :param reboot: of the host, but for the driver.
        :param before_reboot: what the reboot waits for besides.
        """
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
            passed=probe.gpus.apply(lambda gpus: sorted(gpu["slot"] for gpu in gpus.values() if gpu["use"] == "vm")),
            # One that was a VM's alone so far, or that ids bind by hand, is on vfio-pci when this is read.
            staying=probe.gpus.apply(lambda gpus: sorted(gpu["slot"] for gpu in gpus.values() if gpu["use"] != "vm"))
            if host.hands_over or host.take_over
            else None,
        )
        return cls(name, NvidiaGuestStackArgs(system=system, reboot=reboot, before_reboot=before_reboot))

    @classmethod
    def in_vm(cls, name: str, vm: Vm, host: Host, gpu_vm: GpuVm) -> NvidiaGuestStack | None:
        """A VM's; None: the settings have none for it."""
        if vm.nvidia is None:
            return None
        system = System(
            "vm",
            f"vms.{name}",
            vm.host,
            host.model_copy(update={"ssh": vm.ssh}),
            gpu_vm.vm.apply(lambda found: address_of(name, found)),
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
        container: Container,
        host: Host,
        gpu_lxc: GpuLxc,
        boot: HostReboot,
        tried: Sequence[pulumi.Resource],
    ) -> NvidiaGuestStack | None:
        """A container's; None: the settings have none for it.

        :param boot: of the host, whose driver it follows where this stack installs it.
        :param tried: as of `tried_in`.
        """
        if container.nvidia is None:
            return None
        system = System(
            "lxc",
            f"containers.{name}",
            container.host,
            host,
            host.address,
            container.nvidia,
            (gpu_lxc, *tried),
            pulumi.Output.all(gpu_lxc.in_force, boot.driver).apply(" ".join),
            container.ctid,
            started=gpu_lxc.started,
            at=gpu_lxc.at,
            stays=container.create is None or container.create.protect,
        )
        return cls(name, NvidiaGuestStackArgs(system=system))

    def tried_in(self, containers: Mapping[str, Container], ready: Sequence[pulumi.Resource]) -> list[pulumi.Resource]:
        """What these containers' own stacks wait for: an update of this host's driver has been tried in each of them.

        :param ready: the containers with their devices.
        """
        following = {name: one.nvidia for name, one in containers.items() if one.nvidia is not None}
        if not following:
            return []
        names = [f"containers.{name}" for name in following]
        about = {
            "locks": {name: lock.model_dump(mode="json") for name, lock in locks().items() if name in names},
            # Of a host that has given up, the way back, too.
            "timeout": sum(
                limits.of_script(self._system.reached, stack) for stack in (self._system.nvidia, *following.values())
            ),
            "done": pulumi.Output.all(names, *self._done),
        }
        options = pulumi.ResourceOptions(parent=self, depends_on=[self._verified, *ready])
        return [DriverTrial(f"{self.pulumi_resource_name}-tried", {**self._system.inputs, **about}, options)]

    def _step(self, layer: str, script: Callable[[_Planned, str], str], after: pulumi.Resource) -> remote.Command:
        """:param script: composes it, from the plan and the layer's generation."""
        text = pulumi.Output.all(self._plan, self._generation(layer)).apply(lambda found: script(*found))
        if self._system.nvidia.proxy:  # its address may hold a password
            text = pulumi.Output.secret(text)
        word = "repo" if layer == "repository" else layer
        options = pulumi.ResourceOptions(parent=self, depends_on=[after])
        return self._system.script(f"{self.pulumi_resource_name}-{word}", text, options)

    def _generation(self, layer: str) -> pulumi.Output[str]:
        """How often the layer had to be mended, and what for: a new one makes its step run again."""
        known = pulumi.Output.all(self._found.generation, self._system.after)
        return known.apply(lambda found: f"{int(found[0][layer])} {found[1]}")

    def _planned(self, offered: pulumi.Input[dict[str, list[str]] | None]) -> pulumi.Output[_Planned]:
        """:param offered: package -> versions; None as long as nobody has looked."""

        def planned(known: list[Any]) -> _Planned:
            system = self._system
            request = state.request_of(
                system.target, system.name, known[0], system.nvidia, known[1], locks().get(system.name)
            )
            try:
                plan = planner.plan_stack(request)
            except HomelabError as error:
                raise Refusal(error) from None
            return _Planned(request, plan, verification.Expected.of(request, plan))

        return pulumi.Output.all(self._found.facts, offered).apply(planned)


def _answered(step: remote.Command, key: str) -> pulumi.Output[Any]:
    return step.stdout.apply(lambda text: scripts.answer(text)[key])
