"""What the layer judge_guests is asked, and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`vms`, `containers`: those that are to be made: name in the settings -> options as the API takes them, also the
    id (`vmid`)."""

    vms: dict[str, dict[str, str]]
    containers: dict[str, dict[str, str]]
    devices: tuple[tuple[str, ...], ...] = ()
    """A guest's name, an option, and the device of the host that it gives, as reading/vital.py looks for it."""


@dataclass(frozen=True)
class Answer:
    """`mistakes`: a guest's name -> an option -> what is wrong with it; `unjudged`: why Proxmox VE's code couldn't be
    asked, empty: it was."""

    mistakes: dict[str, dict[str, str]]
    unjudged: str = ""
