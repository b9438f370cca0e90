"""The handover of cards from containers to VMs."""

from __future__ import annotations

import functools

from remote_scripts.shared import guest_conf, handover, hookscripts
from remote_scripts.shared.boot_service import UNITS
from remote_scripts.shared.card_record import Record
from remote_scripts.shared.reading.answer import HandedOver
from remote_scripts.shared.reading.source import Source
from remote_scripts.shared.time_limit import within_limit

_ENABLED = (
    f"{UNITS}/multi-user.target.wants/homelab-handover.service",
    f"{UNITS}/timers.target.wants/homelab-handover.timer",
)


def handed_over(source: Source) -> HandedOver:
    """Reads all of it."""
    lost = []
    for vmid in (name for name in source.names(hookscripts.HOOKED) if name[:1] in "123456789"):
        path = f"{guest_conf.VMS}/{vmid}.conf"
        if (text := source.needed(path)) is not None and not _has_hook(source, text):
            lost.append(vmid)
    cards: dict[str, Record] = {}
    source.names(handover.FOLDER)  # that it can't be listed is noted
    names = sorted(handover.recorded_names(source.system))
    for name in names:
        read = functools.partial(handover.read_record, source.system, name)
        if record := source.noting(handover.note_of(name).path, read, None):
            cards[name] = record
    away = ""
    if len(cards) == len(names):
        away = source.noting(handover.FOLDER, lambda: handover.away(source.system), "")
    return HandedOver(all(map(source.is_link, _ENABLED)), away, lost, cards)


def _has_hook(source: Source, text: str) -> bool:
    """Whether a VM's configuration names our hookscript, by a storage that has it: a VM whose hookscript isn't found
    doesn't start.
    """
    name = hookscripts.named_of(guest_conf.own_lines(text))
    storages = hookscripts.storages_of(source.text(hookscripts.STORAGES), source.linked("/etc/pve/local"))
    script = next((storage.script for storage in storages if name == storage.volume), "")
    # As long as it isn't known, it is taken to be there: the reading says what isn't known.
    return bool(script) and source.noting(script, lambda: within_limit(lambda: source.is_executable(script)), True)
