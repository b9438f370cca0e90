"""VmChange: brings what VmRecord recorded into force. An act: it runs again whenever the record was made anew, and owns nothing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult

from homelab.resources.api import ApiProvider, policy
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.errors import HomelabError
    from homelab.remote.proxmox.api import Api

OUTPUTS = ("state", "guest_address", "starts")
# How long a guest agent may take to answer after a start, and how often it is asked: it tells nobody when it is there.
AGENT_SECONDS = 120
AGENT_POLL_SECONDS = 1.0


class VmChangeProvider(ApiProvider):
    """See the module. Inputs: host, node, vm, vmid, record, restore, running, generation, power, shutdown, address."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(int(props["vmid"])), {**props, **self._done(props, 0)})

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult({**news, **self._done(news, int(olds.get("starts") or 0))})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        changed = any(olds.get(key) != news.get(key) for key in news if key not in OUTPUTS)
        replaces = [key for key in ("host", "node", "vmid") if olds.get(key) != news.get(key)]
        return DiffResult(changes=changed, replaces=replaces, stables=[], delete_before_replace=True)

    def _done(self, props: dict[str, Any], starts: int) -> dict[str, Any]:
        """``starts``: how often it was started so far."""
        from homelab.remote.proxmox.errors import ApiError
        from homelab.vm.config import change_to

        record, restore = props["record"], props["restore"]
        machine = self.machine(props)
        try:
            runs = machine.converge(
                lambda config: change_to(config, record, restore),
                sorted({*record, *restore}),
                policy(props),
                props["power"],
                ran=bool(props["running"]),
            )
        except ApiError as error:
            if not error.wanted.startswith(f"{machine.label} started"):
                raise
            raise self._explained(error, props) from error
        address = props.get("address")
        if address == "agent":
            address = _asked(self.api(props), props) if runs else None
        return {"state": "running" if runs else "stopped", "guest_address": address, "starts": starts + machine.starts}

    def _explained(self, error: HomelabError, props: dict[str, Any]) -> HomelabError:
        """A start that failed, with what the host's kernel says of the VM's cards."""
        from homelab.errors import HomelabError
        from homelab.host import kernel_log
        from homelab.remote import ssh

        try:
            facts = asyncio.run(ssh.read(self.host(props), kernel_log=True))
        except HomelabError:
            return error  # the start's own message is what there is
        slots = {str(entry["slot"]) for entry in props["record"].values() if entry.get("slot")}
        functions = [one.address for slot in sorted(slots) for one in facts.functions(slot)]
        found = [
            *kernel_log.of_card(facts, f"the card of VM {int(props['vmid'])}", functions),
            *kernel_log.of_host(facts, props["host"]),
        ]
        if not found:
            return error
        return HomelabError(
            wanted=error.wanted,
            found="\n        ".join([error.found, *(trouble.error.found for trouble in found)]),
            why="; ".join([error.why, *(trouble.error.why for trouble in found)]),
            next="; ".join([*(trouble.error.next for trouble in found), error.next]),
        )


def _asked(api: Api, props: dict[str, Any]) -> str | None:
    """The guest's address, as its agent says; None, with a word about it, if it says nothing."""
    from homelab.remote.proxmox.errors import ApiError

    vmid = int(props["vmid"])
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
                f"{props['vm']}: its guest agent has named no address for {AGENT_SECONDS} seconds: install qemu-guest-agent in it"
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


class VmChange(Resource, module="homelab", name="VmChange"):
    """The dynamic resource. Outputs: ``state`` (running or stopped, as it was left), ``guest_address``, ``starts`` (how often it
    was started here; None in a state from before that was counted).
    """

    state: pulumi.Output[str]
    starts: pulumi.Output[int | None]
    guest_address: pulumi.Output[str | None]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(VmChangeProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)
