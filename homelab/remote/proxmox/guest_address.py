"""The address of a VM's guest, as its agent says."""

from __future__ import annotations

import time
from typing import Any

from homelab.errors import ApiError
from homelab.remote.proxmox.api import Api
from homelab.text import tell

# How long a guest agent may take to answer after a start, and how often it is asked: nothing tells when it is there.
AGENT_SECONDS = 120
AGENT_POLL_SECONDS = 1.0


def asked(api: Api, vmid: int) -> str:
    """Empty: the agent names none.

    :raises ApiError: there is no agent, or it doesn't run.
    """
    path = f"nodes/{api.node}/qemu/{vmid}/agent/network-get-interfaces"
    return first_of(api.get(path, f"to ask VM {vmid}'s guest agent for its address")["result"])


def by_agent(api: Api, vmid: int, label: str) -> str:
    """Empty, with a word about it, if the agent says nothing.

    :param label: the VM's name in the settings.
    """
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            if address := asked(api, vmid):
                return address
        except ApiError as error:
            if "agent is not running" not in error.reason:
                raise
        if time.monotonic() > deadline:
            tell(
                f"{label}: its guest agent has named no address for {AGENT_SECONDS} seconds: install qemu-guest-agent "
                "in it"
            )
            return ""
        time.sleep(AGENT_POLL_SECONDS)


def first_of(interfaces: list[dict[str, Any]]) -> str:
    """The first address by which others reach the guest; empty: none."""
    others = (interface for interface in interfaces if interface.get("name") != "lo")
    addresses = [address for interface in others for address in interface.get("ip-addresses", [])]
    texts = [str(address["ip-address"]) for address in addresses if address["ip-address-type"] == "ipv4"]
    return next((text for text in texts if not text.startswith("169.254.")), "")
