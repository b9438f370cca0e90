"""VfioBinding: every function of the chosen cards on vfio-pci from the next boot on.

Owns a script and a hook in initramfs-tools, /etc/modules-load.d/homelab-vfio.conf, the initramfs of every kernel, the
word `homelab.vfio=` on the kernel command line (the one switch: without it the script does nothing), and a second boot
entry "without GPU passthrough". First the initramfs, then the switch; undone the other way round, byte for byte.
"""

from __future__ import annotations

import pulumi

from homelab.host.resource import HostProbe
from homelab.resources import command as remote
from homelab.settings import Host
from remote_scripts.both.cmdline import Wanted as Cmdline
from remote_scripts.both.needed import Wanted as Initramfs


class VfioBinding(pulumi.ComponentResource):
    """No outputs: what the next boot needs depends on it. `probe`: has the functions to bind, as command-line words."""

    def __init__(self, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:VfioBinding", host.name, {}, opts)
        initramfs = remote.layer(
            f"{host.name}-initrd",
            host,
            "initramfs",
            probe.vfio_words.apply(lambda words: Initramfs(needed=bool(words))),
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            generation=probe.generation_of("vfio"),
        )
        remote.layer(
            f"{host.name}-bind",
            host,
            "cmdline",
            probe.vfio_words.apply(
                lambda words: Cmdline(name="vfio", words=words, rollback_after=host.timeouts.rollback)
            ),
            pulumi.ResourceOptions(parent=self, depends_on=[initramfs]),
            generation=probe.generation_of("vfio"),
        )
        self.register_outputs({})
