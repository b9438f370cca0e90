"""Which guests HA has, by the texts of its files below /etc/pve/ha. Pure: both halves decide by it."""

from __future__ import annotations

import json

from remote_scripts.pve.guest_kinds import Kind
from remote_scripts.pve.sections import sections
from remote_scripts.tools.errors import Failure


def options_of(resources: str, manager: str, service: str) -> dict[str, str] | None:
    """HA's options of a guest that HA starts and stops, key -> value. None: HA doesn't know the guest, ignores it
    (state `ignored`), or is disarmed and ignores all (PVE::HA::Config::service_is_ha_managed).

    :param resources: the text of resources.cfg.
    :param manager: the text of manager_status.
    :param service: the guest's id, such as vm:200.
    """
    for section in sections(resources):
        if f"{section.kind}:{section.name}" == service:
            is_left_alone = section.options.get("state") == "ignored" or _ignores_all(manager)
            return None if is_left_alone else section.options
    return None


def _ignores_all(manager: str) -> bool:
    try:
        return bool(json.loads(manager)["disarm"]["mode"] == "ignore")
    except (ValueError, LookupError, TypeError):
        return False


def refused_to_change(resources: str, manager: str, kind: Kind, vmid: int) -> Failure | None:
    """The refusal of a change of a guest that HA switches on and off; None: it doesn't. Files as of `options_of`."""
    options = options_of(resources, manager, f"{kind.ha}:{vmid}")
    if options is None:
        return None
    return Failure(
        f"{kind.label} {vmid} changed by this program",
        f"HA manages it ({options.get('state', 'started')})",
        "HA would switch it on or off in the midst of the change; nothing was changed",
        f"`ha-manager set {kind.ha}:{vmid} --state ignored`, run the same again, then set the state back",
    )
