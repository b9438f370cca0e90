"""What the agent is asked for a host's next boot, and to read it, where a test takes a composed script, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from homelab.remote import agent
from homelab.remote.scripts import ROLLBACK_SECONDS
from remote_scripts.layers import cmdline
from remote_scripts.layers import initramfs as initramfs_layer
from remote_scripts.layers import read_host as read_host_layer


@dataclass(frozen=True)
class Asked:
    """A layer, and its `Wanted`."""

    layer: str
    wanted: Any

    def sent(self, verb: str) -> str:
        """Standard input for `agent.command_in_memory`."""
        return agent.sent_along(verb, agent.request(self.layer, self.wanted))


def initramfs(needed: bool = True, *, rollback_after: int = ROLLBACK_SECONDS) -> Asked:
    """The initramfs of a host with, or without, cards of ours."""
    return Asked("initramfs", initramfs_layer.Wanted(needed=needed, rollback_after=rollback_after))


def iommu(words: str, *, rollback_after: int = ROLLBACK_SECONDS) -> Asked:
    """The IOMMU's words."""
    return Asked("cmdline", cmdline.Wanted(name="iommu", words=words, entry=False, rollback_after=rollback_after))


def vfio(words: str, *, rollback_after: int = ROLLBACK_SECONDS) -> Asked:
    """The words that bind cards, and the second boot entry."""
    return Asked("cmdline", cmdline.Wanted(name="vfio", words=words, entry=True, rollback_after=rollback_after))


def read_host(**wanted: Any) -> Asked:
    """A reading of a host, by the verb `read`."""
    return Asked("read_host", read_host_layer.Wanted(**wanted))
