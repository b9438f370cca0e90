"""What the layer passthrough_test is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: Of the test VM.
NAME = "homelab-passthrough-test"
FOLDER = "/run/homelab-passthrough-test"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`functions`: address -> vendor:device of the functions that the VM gets, whole cards; `vmid`: None for the next
    free one; `timeout`: seconds from the VM's start until it has said all. `half`, for any QEMU, without Proxmox VE:
    `build` makes FOLDER/initrd.img; after a boot of it with `-serial file:FOLDER/console -no-reboot`, `report` answers
    from that file.
    """

    functions: dict[str, str]
    vmid: int | None = None
    timeout: int = 180
    half: Literal["", "build", "report"] = ""


@dataclass(frozen=True)
class Answer:
    """`kernel`: its release; `functions`: of each as the VM sees it `guest` (its address there), `address` (on the
    host), `id`, `class` and `bars`.
    """

    kernel: str
    vmid: int | None
    functions: tuple[Mapping[str, object], ...]


@dataclass(frozen=True)
class Built:
    """What any QEMU is to boot."""

    kernel: str
    initrd: str
    append: str
