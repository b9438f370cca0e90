"""GpuVm: a VM with cards. Adopted as it is, or created.

Owns the hostpci options of the cards and the options that had to change for them (machine, balloon, vga): nothing else of an
adopted VM, all of a created one. Undone by giving back each option that still is as it was set, with a shutdown and a start if the
VM runs; a created VM is removed, unless it is protected.
"""

from __future__ import annotations

from typing import Any

import pulumi

from components.gpu_cards import GpuCards
from components.host_reboot import HostReboot
from proxmox.virtual_machine import VirtualMachine, configuration
from proxmox.vm_change import VmChange
from proxmox.vm_record import VmRecord
from settings import Host, NewVm, Vm


class GpuVm(pulumi.ComponentResource):
    """Outputs: ``vm``, as the stack puts it out (contract.py)."""

    vm: pulumi.Output[dict[str, Any]]

    def __init__(
        self,
        name: str,
        vm: Vm,
        host: Host,
        boot: HostReboot,
        cards: GpuCards,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("homelab:gpu:GpuVm", name, {}, opts)
        about: dict[str, Any] = {
            "host": vm.host,
            "node": host.node or vm.host,
            "vm": name,
            "vmid": vm.vmid,
            "shutdown": vm.shutdown.model_dump(mode="json"),
        }
        depends_on: list[pulumi.Resource] = [cards]
        instance: pulumi.Input[str] = ""
        if vm.create is not None:
            made = VirtualMachine(
                f"{name}-vm",
                {**about, **_creation(name, vm.create)},
                pulumi.ResourceOptions(parent=self, depends_on=depends_on),
            )
            instance, depends_on = made.instance, [*depends_on, made]
        record = VmRecord(
            f"{name}-record",
            {
                **about,
                "cards": boot.host.apply(lambda found: [_card(host, use, found) for use in vm.gpus]),
                "machine": vm.machine,
                "display": vm.display,
                "shared_onboot": vm.allow_shared_onboot,
                "power": vm.wanted_power,
                "instance": instance,
                "goes_away": vm.create is not None and not vm.create.protect,
                "boot": boot.boot,
            },
            pulumi.ResourceOptions(parent=self, depends_on=depends_on),
        )
        change = VmChange(
            f"{name}-change",
            {
                **about,
                "record": record.record,
                "restore": record.restore,
                "running": record.running,
                "generation": record.generation,
                "power": vm.wanted_power,
                "address": vm.address or _static_address(vm),
            },
            pulumi.ResourceOptions(parent=self, depends_on=[record]),
        )
        self.vm = pulumi.Output.all(
            record=record.record, name=record.guest_name, state=change.state, address=change.guest_address
        ).apply(lambda found: _output(vm, host, found))
        self.register_outputs({"vm": self.vm})


def _card(host: Host, use: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The inputs of `vm_config.Card`."""
    return {
        **use.model_dump(mode="json"),
        "mapping": host.mapping_of(use.gpu),
        "slot": found["gpus"][use.gpu]["slot"],
    }


def _creation(name: str, new: NewVm) -> dict[str, Any]:
    """The inputs of a VirtualMachine beside those that every VM has."""
    password = new.cloud_init.password if new.cloud_init else None
    secret = {} if password is None else {"cipassword": password.get_secret_value()}
    plain = new.model_dump(mode="json", exclude={"cloud_init": {"password"}})
    return {
        "config": configuration(name, plain),
        "secret_config": pulumi.Output.secret(secret) if secret else {},
        "disk": plain["disk"],
        "image": new.image,
        "template": new.template,
        "protect": new.protect,
        "mark": f"Created by Pulumi: {pulumi.get_project()}/{pulumi.get_stack()}/{name}",
    }


def _static_address(vm: Vm) -> str | None:
    """What cloud-init was told."""
    ip = vm.create.cloud_init.ip if vm.create and vm.create.cloud_init else "dhcp"
    return None if ip == "dhcp" else ip.partition("/")[0]


def _output(vm: Vm, host: Host, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "host": vm.host,
        "node": host.node or vm.host,
        "vmid": vm.vmid,
        "name": found["name"],
        "state": found["state"],
        "gpus": [use.gpu for use in vm.gpus],
        "address": found["address"],
    }
