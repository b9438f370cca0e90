"""CardNodes: the device nodes of a host's cards, for its containers: now and at every boot, before the guests start.

Owns two services that run before pve-guests.service, and their programs in /usr/local/sbin: homelab-nvidia-nodes makes
the nodes of NVIDIA's driver, homelab-card-nodes gives containers the nodes that their cards have after a boot. Undone
by taking them away; the nodes stay until the next boot, as others may use them.
"""

from __future__ import annotations

import pulumi

from homelab.container import makers
from homelab.host.resource import HostProbe
from homelab.resources import command as remote
from homelab.settings import Host
from remote_scripts.both.needed import Wanted


class CardNodes(pulumi.ComponentResource):
    """No outputs: what needs the nodes depends on it. `probe`: has the host's cards."""

    def __init__(self, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:CardNodes", host.name, {}, opts)
        options = pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None)
        if any(makers.may_have_nvidia(container, host.gpus) for container in host.containers):
            remote.layer(
                f"{host.name}-nodes",
                host,
                "nvidia_nodes",
                probe.gpus.apply(lambda gpus: Wanted(needed=makers.any_nvidia(host.containers, gpus))),
                options,
                generation=probe.generation_of("nodes"),
            )
        remote.layer(
            f"{host.name}-cards",
            host,
            "card_nodes",
            Wanted(needed=any(container.has_cards for container in host.containers)),
            options,
            generation=probe.generation_of("cards"),
        )
        self.register_outputs({})
