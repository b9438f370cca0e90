"""The work on a VirtualMachine: makes it, changes it in place, removes it unless it is protected."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from homelab.errors import HomelabError
from homelab.properties import same
from homelab.provider.api import MOVED, ApiWork, is_marked, made_vm, marked_anew, policy, require_same, stays, taken
from homelab.remote.proxmox.errors import NotThereError
from homelab.remote.proxmox.machine import Machine
from homelab.resources.virtual_machine import VirtualMachine
from homelab.text import tell
from homelab.vm.config import Change
from homelab.vm.creation import SYSTEM_DISK

# Of `config`, what is read back on a refresh. Disks and network cards come back with what Proxmox VE added to them.
COMPARED = ("name", "cores", "memory", "balloon", "cpu", "machine", "bios", "ostype", "agent", "onboot")


class VirtualMachineWork(ApiWork[VirtualMachine.Inputs, VirtualMachine.Outputs]):
    """See the module."""

    resource = VirtualMachine

    def id(self, inputs: VirtualMachine.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VirtualMachine.Inputs) -> VirtualMachine.Outputs:
        instance = secrets.token_hex(8)
        self._made(inputs, instance)
        return VirtualMachine.Outputs(instance=instance)

    def _machine(self, inputs: VirtualMachine.Inputs) -> Machine:
        return self.machine(inputs, inputs.vmid, inputs.vm)

    def _made(self, inputs: VirtualMachine.Inputs, instance: str) -> None:
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
            # The mark travels with the clone: the VM is known as ours from its first moment.
            about = {"newid": vmid, "full": 1, "name": config["name"], "description": config["description"]}
            about["storage"] = inputs.disk.storage
            api.carry_out("post", source, wanted, limit, machine.say, kinds=("qmclone",), **about)
            path = f"nodes/{api.node}/qemu/{vmid}/config"
            api.put(path, wanted, digest=api.get(path, wanted)["digest"], **config)
        if inputs.template is not None or inputs.image is not None:
            self._resize(inputs)

    def _resize(self, inputs: VirtualMachine.Inputs) -> None:
        """The disk as large as wanted, if it is smaller: that of an image or a template seldom is."""
        api, machine = self.api(inputs), self._machine(inputs)
        wanted = f"the disk of {machine.label} {inputs.disk.size} GiB large"
        path = f"nodes/{api.node}/qemu/{inputs.vmid}/resize"
        about = {"disk": SYSTEM_DISK, "size": f"{inputs.disk.size}G"}
        api.carry_out("put", path, wanted, api.host.timeouts.api_task, machine.say, kinds=("resize",), **about)

    def _finish(self, inputs: VirtualMachine.Inputs, instance: str, config: dict[str, str]) -> None:
        """An existing VM of that id is our own, from an interrupted run, and is finished; or nothing is done."""
        machine = self._machine(inputs)
        found = machine.config()
        if is_marked(inputs.mark, found) and "lock" not in found:
            machine.say("it was made by an earlier run that was interrupted: finishing it")
            wanted = {**config, "description": marked_anew(inputs.mark, instance, found)}

            def target(have: dict[str, str]) -> Change:
                values = {
                    key: value
                    for key, value in wanted.items()
                    if key not in have or (key in (*COMPARED, "description") and not same(key, have[key], value))
                }
                return Change(values)

            self.converge(inputs, machine, target, sorted(wanted), policy(inputs.shutdown), "keep")
            return
        raise taken(inputs.mark, made_vm(inputs.vmid, inputs.vm), found)

    def read(self, inputs: VirtualMachine.Inputs, outputs: VirtualMachine.Outputs) -> VirtualMachine.Outputs:
        guest = made_vm(inputs.vmid, inputs.vm)
        drift = self.drift_of_made(inputs, guest, inputs.mark, outputs.instance, COMPARED, inputs.config)
        return outputs if drift is None else dataclasses.replace(outputs, drift=drift)

    def update(
        self, inputs: VirtualMachine.Inputs, had: VirtualMachine.Inputs, outputs: VirtualMachine.Outputs
    ) -> VirtualMachine.Outputs:
        _require_same_disk(had, inputs)
        machine = self._machine(inputs)
        if MOVED in outputs.drift:
            machine.config()  # refused, unless it is back
        if inputs.node != had.node:
            guest = made_vm(inputs.vmid, inputs.vm)
            require_same(guest, inputs, had, outputs.instance, machine.config())
        both = {**inputs.config, **inputs.secret_config}
        before = {**had.config, **had.secret_config}
        again = [key for key, value in both.items() if before.get(key) != value or key in outputs.drift]
        gone = [key for key in before if key not in both]

        def target(config: dict[str, str]) -> Change:
            return Change({key: both[key] for key in again}, [key for key in gone if key in config])

        if again or gone:
            self.converge(inputs, machine, target, [*again, *gone], policy(inputs.shutdown), "keep")
        if inputs.disk.size != had.disk.size:
            self._resize(inputs)
        return dataclasses.replace(outputs, drift=[])

    def delete(self, inputs: VirtualMachine.Inputs, outputs: VirtualMachine.Outputs) -> None:
        machine = self.machine_now(inputs, inputs.vmid, inputs.vm)
        try:
            config = machine.config()
        except NotThereError:
            return
        same = self.stack.adopting(machine.vmid, inputs.host, anywhere=machine.node != inputs.node)
        adopted, elsewhere = [f"vms.{name}" for name in same], machine.node != inputs.node
        if why := stays(inputs, outputs.instance, config, "VM", adopted, elsewhere=elsewhere):
            tell(f"{inputs.vm}: VM {machine.vmid} stays: {why}")
            return
        if machine.running():
            machine.shut_down(policy(inputs.shutdown))
        machine.destroy()


def _require_same_disk(had: VirtualMachine.Inputs, new: VirtualMachine.Inputs) -> None:
    for what, before, wanted, changed in (
        ("disk.storage", had.disk.storage, new.disk.storage, had.disk.storage != new.disk.storage),
        ("disk.size", f"{had.disk.size} GiB", f"{new.disk.size} GiB", new.disk.size < had.disk.size),
        ("image", had.image, new.image, had.image != new.image),
        ("template", had.template, new.template, had.template != new.template),
    ):
        if changed:
            raise HomelabError(
                wanted=f"vms.{new.vm}.create.{what}: {wanted}",
                found=f"the VM was made with {before}",
                why="only a new VM could have that, and what is on the disk would be lost",
                next=f"put it back; or take vms.{new.vm} out, run `pulumi up`, and create it again",
            )
