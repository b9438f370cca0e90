"""StackOutputs: what the program puts out, as homelab/contract.py models it."""

from __future__ import annotations

from typing import Any

import pulumi

from homelab.contract import VERSION, put_out
from homelab.host.resource import HostProbe
from homelab.settings import Container, Host, Settings, Vm
from homelab.shapes import BootedHost, BootSeen, CardSeen, CardTest, ContainerOutput, GpuOutput, HostOutput, VmOutput
from homelab.show import result
from homelab.text import clean

from .gpu_cards import GpuCards
from .gpu_lxc import GpuLxc
from .gpu_vm import GpuVm
from .host_reboot import HostReboot
from .nvidia_guest_stack import NvidiaGuestStack


class StackOutputs:
    """The stack's outputs, to which each host and guest is added once it is declared."""

    def __init__(self, settings: Settings) -> None:
        self._stacks = settings.stacks
        takers = [((vm.host, use.gpu), vm.name) for vm in settings.vms.values() for use in vm.gpus]
        # Of a card that several VMs may take, only the host knows which VM has it.
        self._holders = {card: name for card, name in takers if [taken for taken, _ in takers].count(card) == 1}
        self._boots: dict[str, pulumi.Output[BootSeen]] = {}
        self._words: dict[str, pulumi.Output[str]] = {}
        self._hosts: dict[str, pulumi.Output[Any]] = {}
        self._vms: dict[str, pulumi.Output[Any]] = {}
        self._containers: dict[str, pulumi.Output[Any]] = {}

    def boot_before(self, host: Host) -> pulumi.Output[BootSeen] | None:
        """The boot of the node that restarts before a host; None: there is none."""
        return self._boots.get(host.before)

    def add_host(
        self, host: Host, probe: HostProbe, boot: HostReboot, cards: GpuCards, stack: NvidiaGuestStack | None
    ) -> None:
        """Adds a host, with its own stack of NVIDIA's."""
        self._boots[host.name], self._words[host.name] = boot.boot, probe.words
        verified = pulumi.Output.all(boot.host, cards.tests).apply(lambda seen: self._of_host(host, *seen))
        self._hosts[host.name] = _with_stack(HostOutput, verified, stack)

    def add_vm(self, vm: Vm, gpu_vm: GpuVm, stack: NvidiaGuestStack | None) -> None:
        """Adds a VM, with the stack in it."""
        self._vms[vm.name] = _with_stack(VmOutput, gpu_vm.vm, stack)

    def add_container(self, container: Container, gpu_lxc: GpuLxc, stack: NvidiaGuestStack | None) -> None:
        """Adds a container, with the stack in it."""
        self._containers[container.name] = _with_stack(ContainerOutput, gpu_lxc.container, stack)

    def export(self) -> None:
        """Puts all out. The output `result` is shown as the program's last message in an `up`; the display has it among
        all outputs besides. What the settings no longer name the engine removes once the program has ended.
        """
        values = {"version": VERSION, "hosts": self._hosts, "vms": self._vms, "containers": self._containers}
        kept = [place for place, stack in self._stacks.items() if stack.on_destroy == "keep"]
        lines = pulumi.Output.all(values, pulumi.Output.all(**self._words)).apply(
            lambda both: result.lines(both[0], both[1], kept)
        )
        for name, value in {**values, "result": lines}.items():
            pulumi.export(name, value)
        if not pulumi.runtime.is_dry_run():
            lines.apply(_tell)

    def _of_host(self, host: Host, booted: BootedHost, tests: dict[str, CardTest]) -> dict[str, Any]:
        gpus = {}
        for gpu, card in booted["gpus"].items():
            # A card that is handed over is for this stack's VMs alone: another project's have no hookscript.
            mapping = host.mapping_of(gpu) if host.gpus[gpu].use == "vm" else None
            own = {
                "mapping": mapping,
                "hostpci": mapping and f"mapping={mapping},pcie=1",
                "holder": self._holders.get((host.name, gpu)),
                "test": tests.get(gpu),
            }
            # The state may have the card as another version knows it.
            gpus[gpu] = {**card, **put_out(GpuOutput, own, beyond=CardSeen.__annotations__)}
        return {**booted, "node": host.node_name, "gpus": gpus}


def _with_stack(
    shape: type[Any], value: pulumi.Output[Any], stack: NvidiaGuestStack | None
) -> pulumi.Output[dict[str, Any]]:
    both = pulumi.Output.all(value, stack and stack.result)
    return both.apply(lambda values: put_out(shape, {**values[0], "nvidia": values[1]}))


def _tell(lines: list[str]) -> None:
    pulumi.log.info(clean("\n".join(["Result", *(f"  {line}" for line in lines)])))
