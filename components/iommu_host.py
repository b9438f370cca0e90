"""IommuHost: the IOMMU switched on by the kernel command line of the next boot.

Owns amd_iommu=on or intel_iommu=on, iommu=pt and what the settings' `iommu` asks for on the command line, unless it is
there already by other configuration: GRUB's /etc/default/grub.d/zz-homelab-iommu.cfg, or the end of
/etc/kernel/cmdline's first line. Undone by the same layer's `revert`, byte for byte.
"""

from __future__ import annotations

import pulumi

from homelab.host.resource import HostProbe
from homelab.settings import Host
from remote_scripts.both.cmdline import Wanted

from .component import HostComponent


class IommuHost(HostComponent):
    """No outputs: what the next boot needs depends on it. `probe`: has the words of the command line."""

    def __init__(self, host: Host, *, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("host:IommuHost", host, probe, opts)

        def wanted(words: str) -> Wanted:
            return Wanted(name="iommu", words=words, rollback_after=host.timeouts.rollback)

        self._step("cmdline", "cmdline", probe.iommu_words.apply(wanted), drifted="iommu")
        self.register_outputs({})
