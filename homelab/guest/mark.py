"""Whose a guest is, by the mark in its description. Pure: a preview and the work on the guest ask the same."""

from __future__ import annotations

import re
from collections.abc import Mapping

from homelab.errors import HomelabError
from homelab.guest.settings import NewGuest
from remote_scripts.pve.guest_kinds import VM, Kind


def is_marked(mark: str, config: Mapping[str, str]) -> bool:
    """Does the guest's description carry this mark? What only begins so is the mark of another name."""
    return re.search(rf"{re.escape(mark)}(?!\S)", config.get("description", "")) is not None


def names_another_instance(mark: str, instance: str, config: Mapping[str, str]) -> bool:
    """Does the guest's description name another making of it than `instance`?"""
    match = re.search(rf"{re.escape(mark)} ([0-9a-f]{{16}})(?!\S)", config.get("description", ""))
    return match is not None and instance not in ("", match[1])


def made_as(marks: str, config: Mapping[str, str]) -> str:
    """The name in the settings as which a stack has made the guest; empty: it hasn't.

    :param marks: what the marks of the stack's guests begin with.
    """
    match = re.search(rf"{re.escape(marks)}([^\s/]+)", config.get("description", ""))
    return match[1] if match else ""


def is_noted(mark: str, owner: str) -> bool:
    """Is a guest the one of this mark by this program's own note?

    :param owner: PROJECT/STACK/NAME, of the note of that very guest; empty: nothing is noted of it.
    """
    return mark.endswith(f" {owner}")


def id_in_use(kind: Kind, guest: int, mark: str, config: Mapping[str, str], owner: str = "") -> HomelabError:
    """Why a guest isn't made, changed or removed where there is one of its id without its mark.

    :param mark: of the one to be made.
    :param config: of the one that is there.
    :param owner: of that one, see `is_noted`.
    """
    stack, _, name = mark.rpartition("/")
    section, label = "vms" if kind is VM else "containers", f"{kind.label} {guest}"
    wanted = f"{label} ({name}) created"
    adopting = f"leave `create` out of {section}.{name} to adopt that {kind.label} as it is"
    if (other := made_as(f"{stack}/", config)) not in ("", name):
        return HomelabError(
            wanted=wanted,
            found=f"this stack has created {label} as {section}.{other}",
            why="under another name Pulumi would make a new guest, and delete this one with its disks; nothing was "
            "changed",
            next=f"put the name {other} back in the settings; or {adopting}, which a destroy leaves there",
        )
    if is_noted(mark, owner) and not is_marked(mark, config):
        return HomelabError(
            wanted=f"{label} ({name}) with the line in its Notes by which homelab knows what it has created",
            found="its Notes (Summary, in the web interface) were rewritten, and lack that line; by homelab's own note "
            f"it is {section}.{name}",
            why="without that line nothing is changed or removed: the note is kept of adopted guests, too",
            next=f"if homelab hasn't created it, {adopting}. If it has, write this line into its Notes again, then run "
            f"the same again: {mark}",
        )
    id_key, name_key = ("vmid", "name") if kind is VM else ("ctid", "hostname")
    return HomelabError(
        wanted=wanted,
        found=f"there is a {label} already: {config.get(name_key, 'without a name')}"
        + (f", locked ({config['lock']})" if "lock" in config else ""),
        why="it is not this program's, or not finished; nothing was changed",
        next=(
            "if an earlier run of this stack was making it: wait until the task on the node has ended, then run the "
            "same again, which finishes it. Otherwise "
            if config.get("lock") in ("create", "clone")
            else ""
        )
        + f"choose another {id_key}, or {adopting}",
    )


def goes_away(made: NewGuest | None) -> bool:
    """Whether a `destroy` removes the guest itself.

    :param made: as its settings have it made; None: it is adopted.
    """
    return made is not None and not made.protect
