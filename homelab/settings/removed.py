"""Settings, and values of settings, that were removed: each is refused with a sentence that names the replacement."""

from __future__ import annotations

_MIGRATE = "removed: Proxmox VE's HA moves guests: put the VMs that are to run on under HA, and use maintenance"
_COPY = (
    "removed: no copy of a guest is made; make one yourself before `pulumi up` (`vzdump ID` on the host), and take "
    "this out"
)

# Place in the settings, with * for a name, or `place: value` -> text of the refusal.
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
    """The text of the refusal, if the setting at a place, or its value, was removed; None: it wasn't.

    :param location: of an error, as pydantic has it.
    :param value: the setting's value.
    """
    parts = [str(part) for part in location]
    for key, text in REMOVED.items():
        place, _, removed_value = key.partition(": ")
        pattern = place.split(".")
        fits = len(parts) == len(pattern) and all(
            expected in ("*", part) for expected, part in zip(pattern, parts, strict=True)
        )
        if fits and removed_value in ("", value):
            return text
    return None
