"""CardNodes: the device nodes of a host's cards, for its containers: now and at every boot, before the guests start.

Owns two services that run before pve-guests.service, and their programs in /usr/local/sbin: homelab-nvidia-nodes makes
the nodes of NVIDIA's driver, homelab-card-nodes gives containers the nodes that their cards have after a boot. Undone
by taking them away; the nodes stay until the next boot, as others may use them.
"""

from __future__ import annotations

import pulumi

from homelab.container import makers
from homelab.host.resource import HostProbe
from homelab.settings import Host
from remote_scripts.both.needed import Wanted

from .component import HostComponent


class CardNodes(HostComponent):
    """No outputs: what needs the nodes depends on it. `probe`: has the host's cards."""

    def __init__(self, host: Host, *, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("host:CardNodes", host, probe, opts)
        if any(makers.may_have_nvidia(container, host.gpus) for container in host.containers):
            of_nvidia = probe.gpus.apply(lambda gpus: Wanted(needed=makers.any_nvidia(host.containers, gpus)))
            self._step("nodes", "nvidia_nodes", of_nvidia, drifted="nodes")
        of_all = Wanted(needed=any(container.has_cards for container in host.containers))
        self._step("cards", "card_nodes", of_all, drifted="cards")
        self.register_outputs({})
