"""The handover of cards from containers to VMs."""

from __future__ import annotations

import functools

from remote_scripts.notes import handover
from remote_scripts.notes.record import Record
from remote_scripts.pve import guest_conf, hookscripts
from remote_scripts.reading.answer import HandedOver
from remote_scripts.reading.source import Source
from remote_scripts.tools.boot_service import UNITS
from remote_scripts.tools.time_limit import within_limit

_ENABLED = (
    f"{UNITS}/multi-user.target.wants/homelab-handover.service",
    f"{UNITS}/timers.target.wants/homelab-handover.timer",
)


def handed_over(source: Source) -> HandedOver:
    """Reads all of it."""
    lost = []
    for vmid in (name for name in source.names(hookscripts.HOOKED) if name[:1] in "123456789"):
        look = functools.partial(hookscripts.names_hook, source.system, vmid)  # it may lie on a share that hangs
        is_here = source.needed(f"{guest_conf.VMS}/{vmid}.conf") is not None
        if is_here and not source.noting(f"{hookscripts.HOOKED}/{vmid}", functools.partial(within_limit, look), True):
            lost.append(vmid)
    cards: dict[str, Record] = {}
    source.names(handover.FOLDER)  # that it can't be listed is noted
    names = handover.recorded_names(source.system)
    for name in names:
        read = functools.partial(handover.read_record, source.system, name)
        if record := source.noting(handover.note_of(name).path, read, None):
            cards[name] = record
    away = ""
    if len(cards) == len(names):
        away = source.noting(handover.FOLDER, lambda: handover.away(source.system), "")
    return HandedOver(all(map(source.files.is_link, _ENABLED)), away, lost, cards)
