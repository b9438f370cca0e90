"""A VM with what it is to have: shuts it down, changes it, starts it, and says why its card keeps it from that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from homelab.errors import HomelabError, raise_all
from homelab.host import kernel_log
from homelab.host.facts import HostFacts
from homelab.provider.api import ApiWork, while_a_reset_lasts
from homelab.remote import ssh
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ApiError
from homelab.resources.vm_cards import VmCards
from homelab.shapes import Record
from homelab.text import tell
from homelab.vm.config import change_to
from remote_scripts.shared.properties import functions_of

# How long a guest agent may take to answer after a start, and how often it is asked: nothing tells when it is there.
AGENT_SECONDS = 120
AGENT_POLL_SECONDS = 1.0


class VmStart(ApiWork[VmCards.Inputs, VmCards.Outputs]):
    """Brings a VM's options into force, with a shutdown and a start if it runs."""

    def bring_into_force(self, inputs: VmCards.Inputs, planned: VmCards.Outputs) -> VmCards.Outputs:
        """Changes the VM to what it is to have, and starts it again if it ran.

        :param planned: what it is to have; `starts`: how often it was started so far.
        :raises HomelabError: as `converge`.
        """
        record, restore = planned.record, planned.restore
        before = self._answering(inputs, record)
        machine = self.machine(inputs, inputs.vmid, inputs.vm)
        try:
            runs = self.converge(
                inputs,
                machine,
                lambda config: change_to(config, record, restore),
                sorted({*record, *restore}),
                inputs.shutdown,
                inputs.power,
                before,
            )
        except ApiError as error:
            if not error.wanted.startswith(f"{machine.label} started"):
                raise
            raise self._explained(error, inputs, record, here=machine.node == inputs.node) from error
        if machine.node != inputs.node:
            tell(
                f"{inputs.vm}: HA has started VM {inputs.vmid} on {machine.node} instead of {inputs.node}: run `pulumi "
                "up` again, which counts it there and looks at its cards"
            )
        address = inputs.address
        if address == "agent":
            address = _agent_address(self.api(inputs).at(machine.node), inputs) if runs else None
        state, starts = "running" if runs else "stopped", planned.starts + machine.starts
        return replace(planned, state=state, guest_address=address or "", starts=starts)

    def _answering(self, inputs: VmCards.Inputs, record: Record) -> HostFacts | None:
        """The host before anything is changed, where the VM has cards and may be started; None where not.

        :raises HomelabError: a card is lost, or the host can't be read: it isn't known then.
        """
        if inputs.power == "stopped" or not _places(record):
            return None
        for _ in while_a_reset_lasts():
            facts = ssh.read(self.host(inputs), kernel_log=True)
            silent = replace(facts, kernel_log="")  # what it says may be of long ago
            troubles = kernel_log.of_card(silent, _card(inputs), _functions(facts, record))
            if not troubles:
                break
        raise_all([trouble.error for trouble in troubles])
        return facts

    def _explained(self, error: HomelabError, inputs: VmCards.Inputs, record: Record, *, here: bool) -> HomelabError:
        """A start that failed, with what the host's kernel, or else QEMU, says of the VM's cards.

        :param here: on this host, and not where HA has moved it.
        """
        if not here:
            return _by_qemu(error, inputs.vmid)
        try:
            facts = ssh.read(self.host(inputs), kernel_log=True)
        except HomelabError:
            return _by_qemu(error, inputs.vmid)  # the start's own message is what there is
        troubles = [
            *kernel_log.of_card(facts, _card(inputs), _functions(facts, record)),
            *kernel_log.of_host(facts, inputs.host),
        ]
        troubles = [trouble for trouble in troubles if not trouble.harmless]
        if not troubles:
            return _by_qemu(error, inputs.vmid)
        return _with_causes(
            error, [trouble.error for trouble in troubles], [trouble.error.found for trouble in troubles]
        )


def _by_qemu(error: HomelabError, vmid: int) -> HomelabError:
    """The error, with the meaning of QEMU's message in it where that is known."""
    causes = kernel_log.of_start(error.found, vmid)
    return _with_causes(error, causes) if causes else error


def _with_causes(
    error: HomelabError, causes: Sequence[HomelabError | kernel_log.StartSign], found: Sequence[str] = ()
) -> HomelabError:
    """The error, with the causes that are known first in what to do.

    :param found: what was found besides.
    """
    return error.retold(
        found="\n        ".join([error.found, *found]),
        why="; ".join([error.why, *(cause.why for cause in causes)]),
        next="; ".join([*(cause.next for cause in causes), error.next]),
    )


def _card(inputs: VmCards.Inputs) -> str:
    return f"the card of VM {inputs.vmid}"


def _places(record: Record) -> list[str]:
    """Slots and functions of the VM's cards; a card that isn't its slot has several."""
    paths = sorted({str(entry["slot"]) for entry in record.values() if entry.get("slot")})
    return [place for path in paths for place in functions_of(path)]


def _functions(facts: HostFacts, record: Record) -> list[str]:
    return [function.address for place in _places(record) for function in facts.functions(place)]


def _agent_address(api: Api, inputs: VmCards.Inputs) -> str | None:
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
            address = _first_address(answer["result"])
            if address is not None:
                return address
        if time.monotonic() > deadline:
            tell(
                f"{inputs.vm}: its guest agent has named no address for {AGENT_SECONDS} seconds: install "
                "qemu-guest-agent in it"
            )
            return None
        time.sleep(AGENT_POLL_SECONDS)


def _first_address(interfaces: list[dict[str, Any]]) -> str | None:
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
