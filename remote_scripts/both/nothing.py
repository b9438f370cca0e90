"""What a layer is asked to which nothing is to be said: boot_entries, cluster_turn, reboot_guest."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Nothing."""
