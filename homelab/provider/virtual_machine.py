"""The work on a VirtualMachine: makes it, changes it in place, removes it unless it is protected."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from homelab.errors import HomelabError
from homelab.properties import same
from homelab.provider.api import (
    MOVED,
    ApiWork,
    created_vm,
    id_in_use,
    is_marked,
    marked_anew,
    policy,
    reason_to_keep,
    require_same,
)
from homelab.remote.proxmox.errors import NotThereError
from homelab.remote.proxmox.machine import Machine
from homelab.resources.virtual_machine import VirtualMachine
from homelab.text import tell
from homelab.vm.config import Change
from homelab.vm.creation import SYSTEM_DISK

# Of `config`, what is read back on a refresh. Disks and network cards come back with what Proxmox VE added to them.
COMPARED = ("name", "cores", "memory", "balloon", "cpu", "machine", "bios", "ostype", "agent", "onboot")


class VirtualMachineWork(ApiWork[VirtualMachine.Inputs, VirtualMachine.Outputs]):
    """Creates a VM over the API, changes it in place, and removes it unless it is protected."""

    resource = VirtualMachine

    def id(self, inputs: VirtualMachine.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VirtualMachine.Inputs) -> VirtualMachine.Outputs:
        instance = secrets.token_hex(8)
        self._create(inputs, instance)
        return VirtualMachine.Outputs(instance=instance)

    def _machine(self, inputs: VirtualMachine.Inputs) -> Machine:
        return self.machine(inputs, inputs.vmid, inputs.vm)

    def _create(self, inputs: VirtualMachine.Inputs, instance: str) -> None:
        api, machine, vmid = self.api(inputs), self._machine(inputs), inputs.vmid
        limit = api.host.timeouts.create
        wanted = f"{machine.label} created"
        config: dict[str, Any] = {**inputs.config, **inputs.secret_config, "description": f"{inputs.mark} {instance}"}
        if machine.exists():
            self._finish(inputs, instance, config)
        elif inputs.template is None:
            machine.say("creating")
            path = f"nodes/{api.node}/qemu"
            api.carry_out("post", path, wanted, limit, machine.say, kinds=("qmcreate",), vmid=vmid, **config)
        else:
            source = f"nodes/{api.node}/qemu/{inputs.template}/clone"
            machine.say(f"cloning {inputs.template}")
            # The mark travels with the clone: the VM is known as homelab's from its first moment.
            parameters = {"newid": vmid, "full": 1, "name": config["name"], "description": config["description"]}
            parameters["storage"] = inputs.disk.storage
            api.carry_out("post", source, wanted, limit, machine.say, kinds=("qmclone",), **parameters)
            path = f"nodes/{api.node}/qemu/{vmid}/config"
            api.put(path, wanted, digest=api.get(path, wanted)["digest"], **config)
        if inputs.template is not None or inputs.image is not None:
            self._resize(inputs)

    def _resize(self, inputs: VirtualMachine.Inputs) -> None:
        """The disk as large as wanted, if it is smaller: that of an image or a template seldom is."""
        api, machine = self.api(inputs), self._machine(inputs)
        wanted = f"the disk of {machine.label} {inputs.disk.size} GiB large"
        path = f"nodes/{api.node}/qemu/{inputs.vmid}/resize"
        parameters = {"disk": SYSTEM_DISK, "size": f"{inputs.disk.size}G"}
        api.carry_out("put", path, wanted, api.host.timeouts.api_task, machine.say, kinds=("resize",), **parameters)

    def _finish(self, inputs: VirtualMachine.Inputs, instance: str, config: dict[str, str]) -> None:
        """Finishes an existing VM of that id that an interrupted run of this stack has made.

        :raises HomelabError: it is another one.
        """
        machine = self._machine(inputs)
        current = machine.config()
        if is_marked(inputs.mark, current) and "lock" not in current:
            machine.say("it was made by an earlier run that was interrupted: finishing it")
            wanted = {**config, "description": marked_anew(inputs.mark, instance, current)}

            def target(have: dict[str, str]) -> Change:
                values = {
                    key: value
                    for key, value in wanted.items()
                    if key not in have or (key in (*COMPARED, "description") and not same(key, have[key], value))
                }
                return Change(values)

            self.converge(inputs, machine, target, sorted(wanted), policy(inputs.shutdown), "keep")
            return
        raise id_in_use(inputs.mark, created_vm(inputs.vmid, inputs.vm), current)

    def read(self, inputs: VirtualMachine.Inputs, outputs: VirtualMachine.Outputs) -> VirtualMachine.Outputs:
        guest = created_vm(inputs.vmid, inputs.vm)
        drift = self.drift_of_created(inputs, guest, inputs.mark, outputs.instance, COMPARED, inputs.config)
        return outputs if drift is None else dataclasses.replace(outputs, drift=drift)

    def update(
        self, inputs: VirtualMachine.Inputs, before: VirtualMachine.Inputs, outputs: VirtualMachine.Outputs
    ) -> VirtualMachine.Outputs:
        _require_same_disk(before, inputs)
        machine = self._machine(inputs)
        if MOVED in outputs.drift:
            machine.config()  # refused, unless it is back
        if inputs.node != before.node:
            guest = created_vm(inputs.vmid, inputs.vm)
            require_same(guest, inputs, before, outputs.instance, machine.config())
        options = {**inputs.config, **inputs.secret_config}
        options_before = {**before.config, **before.secret_config}
        changed = [key for key, value in options.items() if options_before.get(key) != value or key in outputs.drift]
        removed = [key for key in options_before if key not in options]

        def target(config: dict[str, str]) -> Change:
            return Change({key: options[key] for key in changed}, [key for key in removed if key in config])

        if changed or removed:
            self.converge(inputs, machine, target, [*changed, *removed], policy(inputs.shutdown), "keep")
        if inputs.disk.size != before.disk.size:
            self._resize(inputs)
        return dataclasses.replace(outputs, drift=[])

    def delete(self, inputs: VirtualMachine.Inputs, outputs: VirtualMachine.Outputs) -> None:
        machine = self.machine_now(inputs, inputs.vmid, inputs.vm)
        try:
            config = machine.config()
        except NotThereError:
            return
        names = self.stack.adopting(machine.vmid, inputs.host, anywhere=machine.node != inputs.node)
        adopted, elsewhere = [f"vms.{name}" for name in names], machine.node != inputs.node
        if why := reason_to_keep(inputs, outputs.instance, config, "VM", adopted, elsewhere=elsewhere):
            tell(f"{inputs.vm}: VM {machine.vmid} stays: {why}")
            return
        if machine.running():
            machine.shut_down(policy(inputs.shutdown))
        machine.destroy()


def _require_same_disk(before: VirtualMachine.Inputs, inputs: VirtualMachine.Inputs) -> None:
    for what, original, wanted, changed in (
        ("disk.storage", before.disk.storage, inputs.disk.storage, before.disk.storage != inputs.disk.storage),
        ("disk.size", f"{before.disk.size} GiB", f"{inputs.disk.size} GiB", inputs.disk.size < before.disk.size),
        ("image", before.image, inputs.image, before.image != inputs.image),
        ("template", before.template, inputs.template, before.template != inputs.template),
    ):
        if changed:
            raise HomelabError(
                wanted=f"vms.{inputs.vm}.create.{what}: {wanted}",
                found=f"the VM was made with {original}",
                why="only a new VM could have that, and what is on the disk would be lost",
                next=f"put it back; or take vms.{inputs.vm} out, run `pulumi up`, and create it again",
            )
