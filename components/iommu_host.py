"""IommuHost: the IOMMU switched on by the kernel command line of the next boot.

Owns amd_iommu=on or intel_iommu=on and iommu=pt on the command line, unless somebody else put them there: GRUB's
/etc/default/grub.d/zz-homelab-iommu.cfg, or the end of /etc/kernel/cmdline's first line. Undone by the same script's `revert`,
byte for byte.
"""

from __future__ import annotations

import pulumi

from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources.host_probe import HostProbe
from homelab.settings import Host


class IommuHost(pulumi.ComponentResource):
    """Outputs: ``words``, what the command line is to have, separated by spaces."""

    words: pulumi.Output[str]

    def __init__(self, name: str, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:IommuHost", name, {}, opts)
        self.words = probe.iommu_words
        remote.script(
            f"{name}-cmdline",
            host,
            pulumi.Output.all(probe.iommu_words, probe.generation_of("iommu")).apply(
                lambda values: scripts.iommu_cmdline(values[0], values[1], rollback_after=host.timeouts.rollback)
            ),
            pulumi.ResourceOptions(parent=self, depends_on=[probe]),
        )
        self.register_outputs({"words": self.words})
