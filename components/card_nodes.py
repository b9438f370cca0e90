"""CardNodes: the device nodes of a host's cards, for its containers: now and at every boot, before the guests start.

Owns two services that run before pve-guests.service, and their programs in /usr/local/sbin: homelab-nvidia-nodes makes
the nodes of NVIDIA's driver, homelab-card-nodes gives containers the nodes that their cards have after a boot. Undone
by taking them away; the nodes stay until the next boot, as others may use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from homelab.container import makers
from homelab.resources import command as remote
from homelab.resources.described import ContainerInput, HostInput, container_of, host_of
from homelab.resources.host_probe import HostProbe
from remote_scripts.both.needed import Wanted


@dataclass(frozen=True, kw_only=True)
class CardNodesArgs:
    """`host`, `containers`: of the host, by name, each with the keys of docs/settings.md; `probe`: the host's cards and
    the layers' generations.
    """

    host: HostInput
    containers: Mapping[str, ContainerInput]
    probe: HostProbe


class CardNodes(pulumi.ComponentResource):
    """No outputs: what needs the nodes depends on it."""

    def __init__(self, name: str, args: CardNodesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:CardNodes", name, {}, opts)
        host, probe = host_of(args.host), args.probe
        containers = [container_of(container) for container in args.containers.values()]
        options = pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None)
        if any(container.may_have_nvidia(host.gpus) for container in containers):
            remote.layer(
                f"{name}-nodes",
                host,
                "nvidia_nodes",
                probe.gpus.apply(lambda gpus: Wanted(needed=makers.any_nvidia(containers, gpus))),
                options,
                generation=probe.generation_of("nodes"),
            )
        remote.layer(
            f"{name}-cards",
            host,
            "card_nodes",
            Wanted(needed=any(container.has_cards for container in containers)),
            options,
            generation=probe.generation_of("cards"),
        )
        self.register_outputs({})
