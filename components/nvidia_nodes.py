"""NvidiaNodes: the device nodes of NVIDIA's driver on a host, now and at every boot before guests start.

Owns /usr/local/sbin/homelab-nvidia-nodes and the service that runs it before pve-guests.service. Undone by taking both away; the
nodes stay until the next boot, as others may use them.
"""

from __future__ import annotations

import pulumi

from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources.host_probe import HostProbe
from homelab.settings import Host


class NvidiaNodes(pulumi.ComponentResource):
    """No outputs: what needs the nodes depends on it."""

    def __init__(self, name: str, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:NvidiaNodes", name, {}, opts)
        remote.script(
            f"{name}-service",
            host,
            probe.generation_of("nodes").apply(scripts.nvidia_nodes),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            told=True,
        )
        self.register_outputs({})
