"""NvidiaNodes: the device nodes of NVIDIA's driver on a host, now and at every boot before guests start.

Owns /usr/local/sbin/homelab-nvidia-nodes and the service that runs it before pve-guests.service. Undone by taking both away; the
nodes stay until the next boot, as others may use them.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.settings import Host


@dataclass(frozen=True, kw_only=True)
class NvidiaNodesArgs:
    """``generation``: raised when the nodes drifted, as HostProbe puts it out."""

    host: Host
    generation: pulumi.Input[int]


class NvidiaNodes(pulumi.ComponentResource):
    """No outputs: what needs the nodes depends on it."""

    def __init__(self, name: str, args: NvidiaNodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:NvidiaNodes", name, {}, opts)
        remote.script(
            f"{name}-service",
            args.host,
            pulumi.Output.from_input(args.generation).apply(scripts.nvidia_nodes),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            told=True,
        )
        self.register_outputs({})
