"""GpuLease: which VM has a card, one resource for a card.

It writes nothing when it is made. When the card goes to another VM, it is replaced, the old one deleted first: that takes the card
out of the VM that had it, before the next one gets it, whichever way cards are exchanged in one `pulumi up`. An update in place of
the two VMs could come in either order.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult

from homelab.resources.api import ApiProvider, policy

HOLDER = ("host", "node", "vmid")


class GpuLeaseProvider(ApiProvider):
    """See the module. Inputs: host, node, mapping, slot, vmid (None: no VM), vm, shutdown."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(
            f"{props['mapping']}@{props.get('vmid', 'nobody')}", {**props, "by_hand": self._by_hand(props)}
        )

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        moved = [key for key in HOLDER if olds.get(key) != news.get(key)]
        changed = moved or any(olds.get(key) != news.get(key) for key in news if key != "by_hand")
        # From no VM to one: there is nothing to take away first.
        replaces = moved if olds.get("vmid") is not None else []
        return DiffResult(changes=bool(changed), replaces=replaces, stables=[], delete_before_replace=True)

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        by_hand = olds["by_hand"] if olds.get("vmid") is not None else self._by_hand(news)
        return UpdateResult({**news, "by_hand": by_hand})

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        """Takes the card out of its VM, unless somebody else had put it there. On destroy that has been done already."""
        from homelab.remote.proxmox.errors import NotThereError
        from homelab.vm.config import Change

        if props.get("vmid") is None or props.get("by_hand"):
            return

        def without_card(config: dict[str, str]) -> Change:
            return Change(delete=_options_with(config, props))

        try:
            machine = self.machine(props)
            keys = _options_with(machine.config(), props)
            if keys:
                machine.converge(without_card, keys, policy(props), "keep")
        except NotThereError:
            return

    def _by_hand(self, props: dict[str, Any]) -> bool:
        """Has somebody given the VM the card already? A VM that is yet to be made has not; what is noted on the host was us."""
        from homelab.remote.proxmox.errors import NotThereError

        if props.get("vmid") is None:
            return False
        try:
            config = self.machine(props).config()
        except NotThereError:
            return False
        options = _options_with(config, props)
        return bool(options) and not set(options) <= self._noted(props, config)

    def _noted(self, props: dict[str, Any], config: dict[str, str]) -> set[str]:
        """The VM's options that this program set, by what it noted on the host: a state that was lost doesn't know them."""
        from homelab.remote import ledger, ssh
        from homelab.vm.config import noted_of

        facts = asyncio.run(ssh.read(self.host(props)))
        record, restore = noted_of(config, ledger.found(facts.ledger, ledger.of_vm(int(props["vmid"]))))
        return {*record, *restore}


def _options_with(config: dict[str, str], props: dict[str, Any]) -> list[str]:
    """The hostpci options by which a VM has the card."""
    from homelab.vm.config import Card

    card = Card("", props["mapping"], props["slot"])
    return [key for key, value in config.items() if key.startswith("hostpci") and card.is_in(key, value)]


class GpuLease(Resource, module="homelab", name="GpuLease"):
    """The dynamic resource."""

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(GpuLeaseProvider(), name, {**inputs, "by_hand": None}, opts)
