"""Guests of the HA manager, and cards that are handed over (ADR 30). Pure.

HA starts a guest itself, tries again where a start fails (`max_restart`), then moves the guest to another node
(`max_relocate`), and gives up in the state `error` (PVE::HA::Manager). A card, and the service
that hands it over, are on one node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from homelab.errors import HomelabError
from homelab.settings import Container, Host, Vm
from remote_scripts.cluster import ha_files
from remote_scripts.pve.booleans import is_true
from remote_scripts.pve.guest_kinds import Kind
from remote_scripts.pve.sections import sections

if TYPE_CHECKING:
    from homelab.facts.host import HostFacts


def _words(value: str) -> list[str]:
    return re.split(r"[,;\s]+", value.strip())


def service(facts: HostFacts, kind: str, guest: int) -> dict[str, str] | None:
    """HA's options of a guest, key -> value; None: HA doesn't have the guest, or leaves it alone.

    :param kind: vm or ct.
    """
    files = facts.cluster.ha
    return ha_files.options_of(files.resources, files.status, f"{kind}:{guest}")


def is_kept_started(facts: HostFacts, vmid: int) -> bool:
    """Whether HA starts a VM whenever it is off, also after its node's restart, whatever its `onboot` says."""
    options = service(facts, "vm", vmid)
    return options is not None and options.get("state", "started") in ("started", "enabled")


def _stays_on_node(facts: HostFacts, vmid: int, group: str | None) -> bool:
    """Whether HA keeps a VM on this node: before Proxmox VE 9 by a restricted group, since then by a strict rule."""
    files, own_node = facts.cluster.ha, {facts.cluster.node}
    groups = [section.options for section in sections(files.groups) if (section.kind, section.name) == ("group", group)]
    rules = [section.options for section in sections(files.rules) if section.kind == "node-affinity"]
    return any(is_true(options.get("restricted", "")) and _nodes(options) == own_node for options in groups) or any(
        f"vm:{vmid}" in _words(options.get("resources", ""))
        and is_true(options.get("strict", ""))
        and not is_true(options.get("disable", ""))
        and options.get("affinity", "positive") == "positive"
        and _nodes(options) == own_node
        for options in rules
    )


def _nodes(options: Mapping[str, str]) -> set[str]:
    return {word.partition(":")[0] for word in _words(options.get("nodes", ""))}


def refused_under_ha(
    facts: HostFacts, host: Host, vms: Iterable[Vm], containers: Iterable[Container] = ()
) -> Iterator[HomelabError]:
    """The refusals of VMs that HA may move away from their shared card, and of containers that HA would start again.

    :param vms: of this host.
    :param containers: of this host.
    """
    for vm in vms:
        card = next((card for card in vm.cards if card in host.hands_over), None)
        options = service(facts, "vm", vm.vmid)
        if card is None or not facts.cluster.name or options is None:
            continue
        if _stays_on_node(facts, vm.vmid, options.get("group")):
            continue
        yield HomelabError(
            wanted=f"VM {vm.vmid}, which takes gpus.{card} in turn with containers, on {facts.cluster.node} alone",
            found=f"it is under HA, which may start it on other nodes of the cluster {facts.cluster.name}",
            why="the card, and what hands it over, are on this node: after a start that failed, or without this "
            "node, HA would move the VM away from them",
            next="give it a strict node affinity rule (before Proxmox VE 9 a restricted group) with "
            f"{facts.cluster.node} alone (Datacenter -> HA), or take it out of HA; then run `pulumi up` again",
        )
    for container in containers:
        has_shared_card = host.shares(container.cards) or bool(host.hands_over and container.numbers)
        if has_shared_card and service(facts, "ct", container.ctid) is not None:
            yield HomelabError(
                wanted=f"container {container.ctid} to be shut down when a VM takes {', '.join(host.hands_over)}",
                found="it is under HA, which would start it again",
                why="no VM would ever get a card that this container uses",
                next="take the container out of HA (Datacenter -> HA), or give it another card; then run "
                "`pulumi up` again",
            )


def refused_to_change(facts: HostFacts, kind: Kind, guest: int) -> list[HomelabError]:
    """The refusal of a change of a guest that HA switches on and off, as its host says it."""
    refused = ha_files.refused_to_change(facts.cluster.ha.resources, facts.cluster.ha.status, kind, guest)
    return [HomelabError(**vars(refused))] if refused else []


def refused_for_restart(facts: HostFacts, host: Host, vms: Iterable[Vm]) -> list[HomelabError]:
    """The refusals of VMs if this run restarts the host: HA would start them at once, though they get their cards only
    after the boot's confirmation, and then give up on them."""
    shared = [vm.vmid for vm in vms if host.shares(vm.cards)]
    kept_started = [vmid for vmid in shared if is_kept_started(facts, vmid)]
    return [
        HomelabError(
            wanted=f"VM {vmid} to stay off until the boot of this host is confirmed",
            found="HA is to keep it started",
            why="it takes a shared card, which it doesn't get before that: HA would try in vain, and give up on it "
            "(state error)",
            next=f"`ha-manager set vm:{vmid} --state stopped`, run `pulumi up` again, and afterwards set it to started",
        )
        for vmid in kept_started
    ]


def remarks_under_ha(facts: HostFacts, host: Host, vms: Iterable[Vm]) -> list[str]:
    """Remarks on VMs that HA has and that take a shared card, a sentence each."""
    return [
        f"VM {vm.vmid} is under HA: a start that is refused, because its card is in use or a run is at work here, "
        "counts as failed; after "
        f"{(int(options.get('max_restart', 1)) + 1) * (int(options.get('max_relocate', 1)) + 1)} of them HA gives up "
        f"(state error), until `ha-manager set vm:{vm.vmid} --state disabled`, and then started"
        for vm in vms
        if host.shares(vm.cards) and (options := service(facts, "vm", vm.vmid)) is not None
    ]
