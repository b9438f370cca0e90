"""VfioBinding: every function of the chosen cards on vfio-pci from the next boot on.

Owns a script and a hook in initramfs-tools, /etc/modules-load.d/homelab-vfio.conf, the initramfs of every kernel, the
word `homelab.vfio=` on the kernel command line (the one switch: without it the script does nothing), and a second boot
entry "without GPU passthrough". First the initramfs, then the switch; undone the other way round, byte for byte.
"""

from __future__ import annotations

import pulumi

from homelab.host.resource import HostProbe
from homelab.settings import Host
from remote_scripts.both.cmdline import Wanted as Cmdline
from remote_scripts.both.needed import Wanted as Initramfs

from .component import HostComponent


class VfioBinding(HostComponent):
    """No outputs: what the next boot needs depends on it. `probe`: has the functions to bind, as command-line words."""

    def __init__(self, host: Host, *, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("host:VfioBinding", host, probe, opts)

        def wanted(words: str) -> Cmdline:
            return Cmdline(name="vfio", words=words, rollback_after=host.timeouts.rollback)

        needed = probe.vfio_words.apply(lambda words: Initramfs(needed=bool(words)))
        initramfs = self._step("initrd", "initramfs", needed, drifted="vfio")
        self._step("bind", "cmdline", probe.vfio_words.apply(wanted), initramfs, drifted="vfio")
        self.register_outputs({})
