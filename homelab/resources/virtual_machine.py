"""VirtualMachine: a VM that this program makes. Its disk and the disk's source are never changed in place."""

from __future__ import annotations

from dataclasses import dataclass

from homelab.resources.base import NewGuest, NewGuestInputs, VmInputs


@dataclass(frozen=True, kw_only=True)
class DiskInputs:
    """`size` in GiB."""

    storage: str
    size: int


class VirtualMachine(NewGuest):
    """A VM that this program creates."""

    kind = "vm:Machine"
    replaced_by = frozenset(("host", "node", "vmid"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(VmInputs, NewGuestInputs):
        """`image`, `template`: what the disk is made of; both None: it is empty."""

        disk: DiskInputs
        image: str | None = None
        template: int | None = None
