"""NvidiaNodes: the device nodes of NVIDIA's driver on a host, now and at every boot before guests start; nothing where containers have
cards of other makers alone.

Owns /usr/local/sbin/homelab-nvidia-nodes and the service that runs it before pve-guests.service. Undone by taking both away; the
nodes stay until the next boot, as others may use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from homelab.container import makers
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.settings import Container, Host
from homelab.shapes import CardPlan


@dataclass(frozen=True, kw_only=True)
class NvidiaNodesArgs:
    """`containers`: of the host, by name; `cards`: all of the host, and `generation`: raised when the nodes drifted, both as HostProbe
    puts them out."""

    host: Host
    containers: Mapping[str, Container]
    cards: pulumi.Input[dict[str, CardPlan]]
    generation: pulumi.Input[int]


class NvidiaNodes(pulumi.ComponentResource):
    """No outputs: what needs the nodes depends on it."""

    def __init__(self, name: str, args: NvidiaNodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:NvidiaNodes", name, {}, opts)
        containers = list(args.containers.values())
        remote.script(
            f"{name}-nodes",
            args.host,
            pulumi.Output.all(args.cards, args.generation).apply(
                lambda found: scripts.nvidia_nodes(int(found[1]), needed=makers.any_nvidia(containers, found[0]))
            ),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            told=True,
        )
        self.register_outputs({})
