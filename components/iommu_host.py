"""IommuHost: the IOMMU switched on by the kernel command line of the next boot.

Owns amd_iommu=on or intel_iommu=on, iommu=pt and what the settings' `iommu` asks for on the command line, unless it is
there already by other configuration: GRUB's /etc/default/grub.d/zz-homelab-iommu.cfg, or the end of
/etc/kernel/cmdline's first line. Undone by the same layer's `revert`, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from homelab.resources import command as remote
from homelab.resources.described import HostInput, host_of
from homelab.resources.host_probe import HostProbe
from remote_scripts.both.cmdline import Wanted


@dataclass(frozen=True, kw_only=True)
class IommuHostArgs:
    """`host`: its settings, the keys of docs/settings.md; `probe`: the command-line words of the IOMMU, and the layer's
    generation.
    """

    host: HostInput
    probe: HostProbe


class IommuHost(pulumi.ComponentResource):
    """No outputs: what the next boot needs depends on it."""

    def __init__(self, name: str, args: IommuHostArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:IommuHost", name, {}, opts)
        host, probe = host_of(args.host), args.probe
        remote.layer(
            f"{name}-cmdline",
            host,
            "cmdline",
            probe.iommu_words.apply(
                lambda words: Wanted(name="iommu", words=words, rollback_after=host.timeouts.rollback)
            ),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            generation=probe.generation_of("iommu"),
        )
        self.register_outputs({})
