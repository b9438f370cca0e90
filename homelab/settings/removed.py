"""Settings, and values of settings, that there were: each is refused with what is to be used instead."""

from __future__ import annotations

_MIGRATE = "removed: Proxmox VE's HA moves guests: put the VMs that are to run on under HA, and use maintenance"
_COPY = (
    "removed: no copy of a guest is made; make one yourself before `pulumi up` (`vzdump ID` on the host), and take "
    "this out"
)

# Place in the settings, with * for a name, or `place: value` -> what is said.
REMOVED = {
    "hosts.*.guestsAtReboot: migrate": _MIGRATE,
    "clusters.*.guestsAtReboot: migrate": _MIGRATE,
    "hosts.*.gpus.*.shutDown": "removed: all containers that have the card are shut down when a VM takes it; take "
    "this out",
    "vms.*.safety": _COPY,
    "vms.*.backupStorage": _COPY,
    "containers.*.safety": _COPY,
    "containers.*.backupStorage": _COPY,
}


def removed(location: tuple[int | str, ...], value: object) -> str | None:
    """What is said of a mistake at this place, where the setting or its value was removed; None: it wasn't.

    :param location: as pydantic has it.
    """
    parts = [str(part) for part in location]
    for key, text in REMOVED.items():
        place, _, old = key.partition(": ")
        wanted = place.split(".")
        fits = len(parts) == len(wanted) and all(one in ("*", part) for one, part in zip(wanted, parts, strict=True))
        if fits and old in ("", value):
            return text
    return None
