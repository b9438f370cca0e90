"""Guests of the HA manager, and cards that are handed over (ADR 30). Pure.

HA starts a guest itself, tries again where a start fails (`max_restart`), then moves the guest to another node
(`max_relocate`), and gives up in the state `error` (PVE::HA::Manager). A card, and the service
that hands it over, are on one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from homelab.errors import HomelabError
from homelab.settings import Container, Host, Vm
from remote_scripts.cluster import ha_files
from remote_scripts.pve.guest_kinds import CONTAINER, VM, Kind

if TYPE_CHECKING:
    from homelab.facts.host import HostFacts


def _service(facts: HostFacts, kind: Kind, guest: int) -> dict[str, str] | None:
    """HA's options of a guest, key -> value; None: HA doesn't have the guest, or leaves it alone."""
    files = facts.cluster.ha
    return ha_files.options_of(files.resources, files.status, f"{kind.ha}:{guest}")


def is_kept_started(facts: HostFacts, vmid: int) -> bool:
    """Whether HA starts a VM whenever it is off, also after its node's restart, whatever its `onboot` says."""
    options = _service(facts, VM, vmid)
    return options is not None and options.get("state", "started") in ("started", "enabled")


def refused_under_ha(
    facts: HostFacts, host: Host, vms: Iterable[Vm], containers: Iterable[Container] = ()
) -> Iterator[HomelabError]:
    """The refusals of guests that have a card in turn: HA would start them while others have it, or on other nodes.

    :param vms: of this host.
    :param containers: of this host.
    """
    sharing = [(VM, vm.vmid) for vm in vms if host.shares(vm.cards)]
    for container in containers:
        if host.shares(container.cards) or (host.hands_over and container.numbers):
            sharing.append((CONTAINER, container.ctid))
    for kind, guest in sharing:
        if _service(facts, kind, guest) is not None:
            yield HomelabError(
                wanted=f"{kind.label} {guest} to have {', '.join(f'gpus.{card}' for card in host.hands_over)} in turn "
                "with others",
                found="it is under HA",
                why="HA starts a guest again that is shut down for another one, counts a start that is refused "
                "meanwhile as failed, and may move the guest to a node that doesn't have the card",
                next=f"have HA ignore it (`ha-manager set {kind.ha}:{guest} --state ignored`), take it out of HA "
                "(Datacenter -> HA), or give it another card; then run `pulumi up` again",
            )


def refused_to_change(facts: HostFacts, kind: Kind, guest: int) -> list[HomelabError]:
    """The refusal of a change of a guest that HA switches on and off, as its host says it."""
    refused = ha_files.refused_to_change(facts.cluster.ha.resources, facts.cluster.ha.status, kind, guest)
    return [HomelabError(**vars(refused))] if refused else []
