"""IommuHost: the IOMMU switched on by the kernel command line of the next boot.

Owns amd_iommu=on or intel_iommu=on, iommu=pt and what the settings' `iommu` asks for on the command line, unless it is
there already by other configuration: GRUB's /etc/default/grub.d/zz-homelab-iommu.cfg, or the end of
/etc/kernel/cmdline's first line. Undone by the same layer's `revert`, byte for byte.
"""

from __future__ import annotations

import pulumi

from homelab.host.resource import HostProbe
from homelab.resources import command as remote
from homelab.settings import Host
from remote_scripts.both.cmdline import Wanted


class IommuHost(pulumi.ComponentResource):
    """No outputs: what the next boot needs depends on it. `probe`: has the words of the command line."""

    def __init__(self, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:IommuHost", host.name, {}, opts)
        remote.layer(
            f"{host.name}-cmdline",
            host,
            "cmdline",
            probe.iommu_words.apply(
                lambda words: Wanted(name="iommu", words=words, rollback_after=host.timeouts.rollback)
            ),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            generation=probe.generation_of("iommu"),
        )
        self.register_outputs({})
