"""The work on a VirtualMachine: makes it, changes it in place, removes it unless it is protected."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from homelab.errors import HomelabError
from homelab.properties import same
from homelab.provider import started
from homelab.provider.new_guest import CreatedGuest, NewGuestWork, created_vm, id_in_use, is_marked, marked_anew
from homelab.provider.vm_transaction import VmTransaction
from homelab.remote.ledger import stack_of
from homelab.remote.proxmox.errors import NotThereError
from homelab.resources.virtual_machine import VirtualMachine
from homelab.text import tell
from homelab.vm.creation import SYSTEM_DISK
from remote_scripts.both.guest_cards import Wanted
from remote_scripts.both.terms import Terms

# Of `config`, what is read back on a refresh. Disks and network cards come back with what Proxmox VE added to them.
COMPARED = ("name", "cores", "memory", "balloon", "cpu", "machine", "bios", "ostype", "agent", "onboot")

# As Proxmox VE writes it (print_net).
_NETWORK_CARD = re.compile(r"[a-z0-9-]+=((?:[0-9A-F]{2}:){5}[0-9A-F]{2})(?:,|$)", re.IGNORECASE)


class VirtualMachineWork(NewGuestWork[VirtualMachine.Inputs]):
    """Creates a VM over the API, changes it in place, and removes it unless it is protected."""

    resource = VirtualMachine

    def guest(self, inputs: VirtualMachine.Inputs) -> CreatedGuest:
        return created_vm(inputs.vmid, inputs.vm)

    def make(self, inputs: VirtualMachine.Inputs, instance: str) -> None:
        api, vmid, label = self.api(inputs), inputs.vmid, self.guest(inputs).label
        limit = api.host.timeouts.create
        wanted = f"{label} created"
        config: dict[str, Any] = {**inputs.config, **inputs.secret_config, "description": f"{inputs.mark} {instance}"}
        say = partial(_say, inputs)
        if (current := self._current(inputs)) is not None:
            self._finish(inputs, instance, config, current)
        elif inputs.template is None:
            say("creating")
            path = f"nodes/{api.node}/qemu"
            api.carry_out("post", path, wanted, limit, say, vmid=vmid, **config)
        else:
            source = f"nodes/{api.node}/qemu/{inputs.template}/clone"
            say(f"cloning {inputs.template}")
            # The mark travels with the clone: the VM is known as homelab's from its first moment.
            parameters = {"newid": vmid, "full": 1, "name": config["name"], "description": config["description"]}
            parameters["storage"] = inputs.disk.storage
            api.carry_out("post", source, wanted, limit, say, **parameters)
            self._put(inputs, config)
        if inputs.template is not None or inputs.image is not None:
            self._resize(inputs)

    def _resize(self, inputs: VirtualMachine.Inputs) -> None:
        """The disk as large as wanted, if it is smaller: that of an image or a template seldom is."""
        api = self.api(inputs)
        wanted = f"the disk of {self.guest(inputs).label} {inputs.disk.size} GiB large"
        path = f"nodes/{api.node}/qemu/{inputs.vmid}/resize"
        parameters: dict[str, Any] = {"disk": SYSTEM_DISK, "size": f"{inputs.disk.size}G"}
        say = partial(_say, inputs)
        api.carry_out("put", path, wanted, api.host.timeouts.api_task, say, **parameters)

    def _current(self, inputs: VirtualMachine.Inputs) -> dict[str, str] | None:
        """Its configuration; None: there is no VM of this id."""
        try:
            return self.config(inputs)
        except NotThereError:
            return None

    def _put(self, inputs: VirtualMachine.Inputs, options: dict[str, Any]) -> None:
        """Sets options by digest; one that needs a start has to wait for it."""
        if options:
            api, guest = self.api(inputs), self.guest(inputs)
            path, wanted = guest.path(api.node), f"{guest.label} given {', '.join(options)}"
            api.put(path, wanted, digest=api.get(path, wanted)["digest"], **options)

    def _finish(
        self, inputs: VirtualMachine.Inputs, instance: str, config: dict[str, str], current: dict[str, str]
    ) -> None:
        """Finishes an existing VM of that id that an interrupted run of this stack has made.

        :raises HomelabError: it is another one.
        """
        if not is_marked(inputs.mark, current) or "lock" in current:
            raise id_in_use(inputs.mark, self.guest(inputs), current)
        _say(inputs, "it was made by an earlier run that was interrupted: finishing it")
        wanted = {**config, "description": marked_anew(inputs.mark, instance, current)}
        compared = (*COMPARED, "description")
        differs = {key: key in compared and not same(key, current.get(key), value) for key, value in wanted.items()}
        self._put(inputs, {key: wanted[key] for key, other in differs.items() if other or key not in current})

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

        config = self.config(inputs)
        settings: dict[str, str | None] = {
            key: _with_address(options[key], config.get(key, "")) for key in changed if key in inputs.config
        }
        settings |= dict.fromkeys(key for key in removed if key in config)
        # Proxmox VE alone is told these: on the host they would be noted, and shown.
        secrets = {key: options[key] for key in changed if key in inputs.secret_config}
        self._put(inputs, secrets)
        for key in secrets:
            _say(inputs, f"{key} set anew: the guest gets it at its next start")
        if settings:
            self._set(inputs, settings)
        if inputs.disk.size != before.disk.size:
            self._resize(inputs)

    def _set(self, inputs: VirtualMachine.Inputs, settings: dict[str, str | None]) -> None:
        """Sets options of its own, with a shutdown and a start if it runs and they need that."""
        host, wanted = self.host(inputs), self._wanted(inputs)
        before = started.awake(host, inputs.vmid, [])
        done = self._transaction(inputs).apply(replace(wanted, settings=settings))
        if done.started:
            started.require_cards(host, inputs.vm, inputs.vmid, inputs.node, before, done.log)

    def remove(self, inputs: VirtualMachine.Inputs) -> None:
        api, label, path = self.api(inputs), self.guest(inputs).label, f"nodes/{inputs.node}/qemu/{inputs.vmid}"
        wanted = self._wanted(inputs)
        if api.get(f"{path}/status/current", f"to see whether {label} runs")["status"] == "running":
            self._transaction(inputs).apply(replace(wanted, terms=replace(wanted.terms, power="stopped")))
        # A storage may overwrite the disks first (saferemove), for as long as writing them took.
        seconds = api.host.timeouts.create
        options: dict[str, Any] = {"purge": 1, "destroy-unreferenced-disks": 1}
        with suppress(NotThereError):  # a task of a run that was killed has done so meanwhile
            api.carry_out("delete", path, f"{label} removed", seconds, partial(_say, inputs), **options)

    def forget(self, inputs: VirtualMachine.Inputs) -> None:
        self._transaction(inputs).revert(self._wanted(inputs))

    def _transaction(self, inputs: VirtualMachine.Inputs) -> VmTransaction:
        return VmTransaction(self.host(inputs), inputs.vm)

    def _wanted(self, inputs: VirtualMachine.Inputs) -> Wanted:
        return Wanted(
            vmid=inputs.vmid,
            terms=Terms(
                owner=f"{stack_of(self.urn)}/{inputs.vm}",
                shutdown=inputs.shutdown.timeout,
                otherwise=inputs.shutdown.otherwise,
            ),
        )


def _say(inputs: VirtualMachine.Inputs, text: str) -> None:
    tell(f"{inputs.vm}: {text}")


def _with_address(value: str, current: str) -> str:
    """A network card with the hardware address that it has, by which it has a lease; of another option its value."""
    model, comma, rest = value.partition(",")
    address = _NETWORK_CARD.match(current)
    return f"{model}={address[1]}{comma}{rest}" if address and "=" not in model and "macaddr=" not in rest else value
