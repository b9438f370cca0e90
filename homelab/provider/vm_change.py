"""The work on a VmChange: shuts the VM down, changes it, starts it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from homelab.errors import HomelabError
from homelab.host import kernel_log
from homelab.provider.api import ApiWork, policy
from homelab.remote import ssh
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ApiError
from homelab.resources.vm_change import VmChange
from homelab.text import tell
from homelab.vm.config import change_to

# How long a guest agent may take to answer after a start, and how often it is asked: it tells nobody when it is there.
AGENT_SECONDS = 120
AGENT_POLL_SECONDS = 1.0


class VmChangeWork(ApiWork[VmChange.Inputs, VmChange.Outputs]):
    """See the module."""

    resource = VmChange

    def id(self, inputs: VmChange.Inputs) -> str:
        return str(inputs.vmid)

    def create(self, inputs: VmChange.Inputs) -> VmChange.Outputs:
        return self._done(inputs, 0)

    def update(self, inputs: VmChange.Inputs, had: VmChange.Inputs, outputs: VmChange.Outputs) -> VmChange.Outputs:
        return self._done(inputs, outputs.starts)

    def _done(self, inputs: VmChange.Inputs, starts: int) -> VmChange.Outputs:
        """``starts``: how often it was started so far."""
        record, restore = inputs.record, inputs.restore
        machine = self.machine(inputs, inputs.vmid, inputs.vm)
        try:
            runs = machine.converge(
                lambda config: change_to(config, record, restore),
                sorted({*record, *restore}),
                policy(inputs.shutdown),
                inputs.power,
                ran=inputs.running,
            )
        except ApiError as error:
            if not error.wanted.startswith(f"{machine.label} started"):
                raise
            raise self._explained(error, inputs) from error
        address = inputs.address
        if address == "agent":
            address = _asked(self.api(inputs), inputs) if runs else None
        state = "running" if runs else "stopped"
        return VmChange.Outputs(state=state, guest_address=address or "", starts=starts + machine.starts)

    def _explained(self, error: HomelabError, inputs: VmChange.Inputs) -> HomelabError:
        """A start that failed, with what the host's kernel says of the VM's cards."""
        try:
            facts = asyncio.run(ssh.read(self.host(inputs), kernel_log=True))
        except HomelabError:
            return error  # the start's own message is what there is
        slots = {str(entry["slot"]) for entry in inputs.record.values() if entry.get("slot")}
        functions = [one.address for slot in sorted(slots) for one in facts.functions(slot)]
        found = [
            *kernel_log.of_card(facts, f"the card of VM {inputs.vmid}", functions),
            *kernel_log.of_host(facts, inputs.host),
        ]
        if not found:
            return error
        return HomelabError(
            wanted=error.wanted,
            found="\n        ".join([error.found, *(trouble.error.found for trouble in found)]),
            why="; ".join([error.why, *(trouble.error.why for trouble in found)]),
            next="; ".join([*(trouble.error.next for trouble in found), error.next]),
        )


def _asked(api: Api, inputs: VmChange.Inputs) -> str | None:
    """The guest's address, as its agent says; None, with a word about it, if it says nothing."""
    vmid = inputs.vmid
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            answer = api.get(
                f"nodes/{api.node}/qemu/{vmid}/agent/network-get-interfaces",
                f"to ask VM {vmid}'s guest agent for its address",
            )
        except ApiError as error:
            if "agent is not running" not in error.reason:
                raise
        else:
            address = _first(answer["result"])
            if address is not None:
                return address
        if time.monotonic() > deadline:
            tell(
                f"{inputs.vm}: its guest agent has named no address for {AGENT_SECONDS} seconds: install qemu-guest-agent in it"
            )
            return None
        time.sleep(AGENT_POLL_SECONDS)


def _first(interfaces: list[dict[str, Any]]) -> str | None:
    for interface in interfaces:
        for address in interface.get("ip-addresses", []):
            text = str(address["ip-address"])
            if (
                interface.get("name") != "lo"
                and address["ip-address-type"] == "ipv4"
                and not text.startswith("169.254.")
            ):
                return text
    return None
