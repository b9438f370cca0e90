"""What the layer diagnose is asked, and what it answers."""

from dataclasses import dataclass

from remote_scripts.notes.card import CardStart


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`containers`: ids of those to look into; those that aren't here are left out. `vm`: the id of the one whose start
    is asked about; 0: none.
    """

    containers: tuple[int, ...] = ()
    vm: int = 0


@dataclass(frozen=True)
class ContainerInside:
    """`conf`: the lines of its configuration that are passed on; `running`: None where `pct status` doesn't say it;
    `inside`: what inspect_inside.sh printed, empty unless it runs; `problem`: why that failed, if it did.
    """

    id: int
    conf: str
    running: bool | None
    inside: str
    problem: str


@dataclass(frozen=True)
class Answer:
    """`machine`: its maker's name and model, its board's too; `processor`: its model; both empty where the firmware or
    the kernel doesn't say it. `failed_starts`: id of a guest -> the end of the log of its last start here, if that
    failed; `char_devices`: /proc/devices; `starts`: what the VM's start would find of its shared cards.
    """

    machine: str
    processor: str
    failed_starts: dict[str, str]
    char_devices: str
    containers: tuple[ContainerInside, ...]
    starts: tuple[CardStart, ...] = ()
