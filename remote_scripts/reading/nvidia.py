"""The driver that containers share, and whether its nodes are there, now and at the next boot."""

from __future__ import annotations

from remote_scripts.nvidia import nvidia as driver
from remote_scripts.reading.answer import Nvidia
from remote_scripts.reading.source import Source
from remote_scripts.tools.pci import DEVICES

_ENABLED = "/etc/systemd/system/multi-user.target.wants/homelab-nvidia-nodes.service"
_VENDOR = "0x10de"


def minors(source: Source) -> dict[str, int]:
    """The numbers N of /dev/nvidiaN that the host's driver gave to its cards, by address; they need not be in PCI
    order.
    """
    return source.noting(driver.GPUS, lambda: driver.minors(source.system), {})


def nvidia(source: Source) -> Nvidia:
    """Where no card of NVIDIA's is, nothing is wrong with its driver."""
    version = source.noting("/proc/driver/nvidia/version", lambda: driver.loaded(source.system).version, "")
    enabled = source.files.is_link(_ENABLED)
    if not any(source.word(f"{DEVICES}/{address}/vendor") == _VENDOR for address in source.functions()):
        return Nvidia(version, nodes_enabled=enabled)
    trouble = source.noting("/proc/driver/nvidia", lambda: driver.trouble(source.system), None)
    return Nvidia(
        version=version,
        installed=trouble is None or trouble.has_module,
        trouble=[trouble.found, trouble.next] if trouble else ["", ""],
        missing_nodes=source.noting("/proc/driver/nvidia", lambda: driver.missing_nodes(source.system), []),
        nodes_enabled=enabled,
    )
