"""The work on a VirtualMachine: makes it, changes it in place, removes it unless it is protected."""

from __future__ import annotations

import re
from typing import Any

from homelab.errors import HomelabError
from homelab.properties import same
from homelab.provider.new_guest import CreatedGuest, NewGuestWork, created_vm, id_in_use, is_marked, marked_anew
from homelab.remote.proxmox.machine import Machine
from homelab.resources.virtual_machine import VirtualMachine
from homelab.vm.config import Change
from homelab.vm.creation import SYSTEM_DISK

# Of `config`, what is read back on a refresh. Disks and network cards come back with what Proxmox VE added to them.
COMPARED = ("name", "cores", "memory", "balloon", "cpu", "machine", "bios", "ostype", "agent", "onboot")

# As Proxmox VE writes it (print_net).
_NETWORK_CARD = re.compile(r"[a-z0-9-]+=((?:[0-9A-F]{2}:){5}[0-9A-F]{2})(?:,|$)", re.IGNORECASE)


class VirtualMachineWork(NewGuestWork[VirtualMachine.Inputs]):
    """Creates a VM over the API, changes it in place, and removes it unless it is protected."""

    resource = VirtualMachine

    def guest(self, inputs: VirtualMachine.Inputs) -> CreatedGuest:
        return created_vm(inputs.vmid, inputs.vm)

    def _machine(self, inputs: VirtualMachine.Inputs) -> Machine:
        return self.machine(inputs, inputs.vmid, inputs.vm)

    def make(self, inputs: VirtualMachine.Inputs, instance: str) -> None:
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
        parameters: dict[str, Any] = {"disk": SYSTEM_DISK, "size": f"{inputs.disk.size}G"}
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

            self.converge(inputs, machine, target, sorted(wanted), inputs.shutdown, "keep")
            return
        raise id_in_use(inputs.mark, self.guest(inputs), current)

    def compared(self, inputs: VirtualMachine.Inputs) -> tuple[str, ...]:
        return COMPARED

    def require_same_disk(self, inputs: VirtualMachine.Inputs, before: VirtualMachine.Inputs) -> None:
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

    def change(self, inputs: VirtualMachine.Inputs, before: VirtualMachine.Inputs, drift: list[str]) -> None:
        options = {**inputs.config, **inputs.secret_config}
        options_before = {**before.config, **before.secret_config}
        changed = [key for key, value in options.items() if options_before.get(key) != value or key in drift]
        removed = [key for key in options_before if key not in options]

        def target(config: dict[str, str]) -> Change:
            values = {key: _with_address(options[key], config.get(key, "")) for key in changed}
            return Change(values, [key for key in removed if key in config])

        if changed or removed:
            self.converge(inputs, self._machine(inputs), target, [*changed, *removed], inputs.shutdown, "keep")
        if inputs.disk.size != before.disk.size:
            self._resize(inputs)

    def remove(self, inputs: VirtualMachine.Inputs) -> None:
        machine = self._machine(inputs)
        if machine.running():
            machine.shut_down(inputs.shutdown)
        machine.destroy()


def _with_address(value: str, current: str) -> str:
    """A network card with the hardware address that it has, by which it has a lease; of another option its value."""
    model, comma, rest = value.partition(",")
    address = _NETWORK_CARD.match(current)
    return f"{model}={address[1]}{comma}{rest}" if address and "=" not in model and "macaddr=" not in rest else value
