"""VfioBinding: every function of the chosen cards on vfio-pci from the next boot on.

Owns a script and a hook in initramfs-tools, /etc/modules-load.d/homelab-vfio.conf, the initramfs of every kernel, the word
``homelab.vfio=`` on the kernel command line (the one switch: without it the script does nothing), and a second boot entry "without
GPU passthrough". First the initramfs, then the switch; undone the other way round, byte for byte.
"""

from __future__ import annotations

import pulumi

from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources.host_probe import HostProbe
from homelab.settings import Host


class VfioBinding(pulumi.ComponentResource):
    """Outputs: ``functions``, PCI address -> vendor:device of every function that is to be on vfio-pci."""

    functions: pulumi.Output[dict[str, str]]

    def __init__(self, name: str, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:VfioBinding", name, {}, opts)
        self.functions = probe.functions
        wanted = pulumi.Output.all(probe.vfio_words, probe.generation_of("vfio"))
        initramfs = remote.script(
            f"{name}-initramfs",
            host,
            wanted.apply(
                lambda values: scripts.vfio_initramfs(bool(values[0]), values[1], rollback_after=host.timeouts.rollback)
            ),
            pulumi.ResourceOptions(parent=self, depends_on=[probe]),
        )
        remote.script(
            f"{name}-cmdline",
            host,
            wanted.apply(
                lambda values: scripts.vfio_cmdline(values[0], values[1], rollback_after=host.timeouts.rollback)
            ),
            pulumi.ResourceOptions(parent=self, depends_on=[initramfs]),
        )
        self.register_outputs({"functions": self.functions})
