"""CardNodes: at every boot of a host, before its guests start, containers get the nodes that their cards have by then.

Owns /usr/local/sbin/homelab-card-nodes and the service that runs it before pve-guests.service. Undone by taking both away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.settings import Container, Host


@dataclass(frozen=True, kw_only=True)
class CardNodesArgs:
    """`containers`: of the host, by name; `generation`: raised when its files drifted, as HostProbe puts it out."""

    host: Host
    containers: Mapping[str, Container]
    generation: pulumi.Input[int]


class CardNodes(pulumi.ComponentResource):
    """No outputs: what needs the service depends on it."""

    def __init__(self, name: str, args: CardNodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:CardNodes", name, {}, opts)
        needed = any(container.has_cards for container in args.containers.values())
        remote.script(
            f"{name}-cards",
            args.host,
            pulumi.Output.from_input(args.generation).apply(lambda found: scripts.card_nodes(needed, int(found))),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            told=True,
        )
        self.register_outputs({})
