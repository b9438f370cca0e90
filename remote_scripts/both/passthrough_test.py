"""What the layer passthrough_test is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass

#: Of the test VM.
NAME = "homelab-passthrough-test"
FOLDER = "/run/homelab-passthrough-test"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`functions`: address -> vendor:device of the functions that the VM gets, whole cards; `vmid`: None for the next
    free one; `timeout`: seconds from the VM's start until it has said all. `half`: nothing any more, but a request that
    differs from the one in a stack's state would be carried out anew, while a VM may run with the card.
    """

    functions: dict[str, str]
    vmid: int | None = None
    timeout: int = 180
    half: str = ""


@dataclass(frozen=True)
class Answer:
    """`kernel`: its release; `functions`: of each as the VM sees it `guest` (its address there), `address` (on the
    host), `id`, `class` and `bars`.
    """

    kernel: str
    vmid: int | None
    functions: tuple[Mapping[str, object], ...]
