"""What a layer is asked that is needed on a host or isn't: card_nodes, initramfs, nvidia_nodes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`needed`: of nvidia_nodes and card_nodes: a container has such a card; of initramfs: homelab binds one."""

    needed: bool
