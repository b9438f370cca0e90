"""A card that stays with the host, and that ids of somebody else's configuration give to vfio-pci: taken from that by a
word of ours. Pure.

Of a module's parameter that is given several times, the last value counts. kmod puts what the kernel command line says
behind all that modprobe.d says (libkmod/libkmod-config.c, kmod_config_new and kmod_config_add_options), and our words
are the command line's last. So one word with the ids that are left counts instead of all ids in files and words of
others: nobody's configuration is edited, and what was there counts again as soon as our word is gone. What gives
options on modprobe's own command line comes later still: initramfs-tools' file `modules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from homelab.host import vfio_ids
from homelab.host.facts import bound_by_word

if TYPE_CHECKING:
    from homelab.host.devices import Device
    from homelab.host.facts import HostFacts
    from homelab.settings import Host

WORD = "vfio-pci.ids="
# Lines of modules with their options, which modprobe is called with.
MODULES = "/etc/initramfs-tools/modules"


def word(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> str:
    """The word; empty: none is needed, or it isn't wanted (takeOver).

    :param slots: of the cards.
    """
    if not host.take_over or not _staying(facts, host, slots):
        return ""
    return WORD + ",".join(one for one in _ids(facts) if not _goes(facts, host, slots, one))


def kept_bound(facts: HostFacts, host: Host, slots: Mapping[str, str], bound: Iterable[Device]) -> str:
    """Why such a word doesn't take these functions of a card from vfio-pci; empty: it does.

    :param slots: of all cards.
    """
    functions = list(bound)
    if any(facts.has_override(device) for device in functions):
        return "driverctl puts it there, whatever a word says"
    if any(_names(facts.vfio_files.get(MODULES, ""), device) for device in functions):
        return f"the options in {MODULES} come later than any word"
    given, ours = at_work(facts), bound_by_word(facts.cmdline.running)
    # What that word leaves to the ids, or another one of ours binds, is let go of by the next one.
    if given is not None and any(one.address not in ours and not _names(given, one) for one in functions):
        return "this program's word is on the running kernel's command line, and hasn't helped"
    also = [
        device.address
        for one in _ids(facts)
        if _names_one_of(one, functions)
        for device in _left(facts, host, slots, one)
    ]
    return (
        f"the same ids give {', '.join(sorted(set(also)))} to vfio-pci, which no card of the settings is"
        if also
        else ""
    )


def at_work(facts: HostFacts) -> str | None:
    """The ids of our word that the running kernel has; None: it has none."""
    others = facts.cmdline.others.split()
    found = [one for one in facts.cmdline.running.split() if one.startswith(WORD) and one not in others]
    return found[-1].removeprefix(WORD) if found else None


def _ids(facts: HostFacts) -> list[str]:
    """All ids that others give, each once."""
    given = [facts.vfio_ids, *facts.ids_by_others().values()]
    return list(dict.fromkeys(one for ids in given for one in ids.lower().split(",") if one))


def _names(ids: str, device: Device) -> bool:
    return vfio_ids.names(ids, device.id, device.subsystem, device.class_code)


def _names_one_of(one: str, devices: Iterable[Device]) -> bool:
    return any(_names(one, device) for device in devices)


def _staying(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> list[Device]:
    """Functions of cards that stay with the host, which others' ids give to vfio-pci."""
    mine = [one for name, slot in slots.items() if host.gpus[name].use != "vm" for one in facts.functions(slot)]
    return [one for one in mine if _names_one_of(",".join(_ids(facts)), [one])]


def _left(facts: HostFacts, host: Host, slots: Mapping[str, str], one: str) -> list[Device]:
    """Functions on vfio-pci that this id names, and that neither stay nor are bound by our own word."""
    known = {
        device.address
        for slot in slots.values()
        for device in facts.functions(slot)
        if not facts.pluggable(device.address)
    }
    named = [device for device in facts.devices if _names(one, device)]
    return [device for device in named if device.driver == "vfio-pci" and device.address not in known]


def _goes(facts: HostFacts, host: Host, slots: Mapping[str, str], one: str) -> bool:
    """Is an id left out of our word: one of a card that stays, and one that has had no effect? What a running VM has on
    vfio-pci tells of no effect."""
    given = at_work(facts)
    if given is not None:
        return _names_one_of(one, _staying(facts, host, slots)) or one not in given.lower().split(",")
    drivers = {device.driver for device in facts.devices if _names(one, device)}
    return _names_one_of(one, _staying(facts, host, slots)) or bool(drivers) and "vfio-pci" not in drivers
