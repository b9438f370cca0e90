"""The word that takes a card from vfio-pci: a card that stays with the host, though ids in configuration of others name
it. Pure.

If a module's parameter is given several times, the last value counts. kmod puts the options of the kernel command line
behind those of modprobe.d (libkmod/libkmod-config.c, kmod_config_new and kmod_config_add_options), and homelab's words
are the command line's last. So one word `vfio-pci.ids=` with the remaining ids counts in place of all ids in files and
other words. Nothing else is edited, and the other ids count again as soon as homelab's word is gone. Options on
modprobe's own command line come even later: those of initramfs-tools' file `modules`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from homelab.facts.devices import Device
from homelab.facts.host import HostFacts, bound_by_word
from homelab.settings import Host
from remote_scripts.boot import vfio_ids

WORD = "vfio-pci.ids="


def word(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> str:
    """The word that releases the cards that stay; empty: none is needed, or takeOver isn't set.

    :param slots: of all cards of the settings, name -> slot.
    """
    if not host.take_over or not _staying(facts, host, slots):
        return ""
    return WORD + ",".join(entry for entry in _other_ids(facts) if not _is_left_out(facts, host, slots, entry))


def kept(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> dict[str, str]:
    """Functions of the same ids as a card that stays, address -> vendor:device. The word would take them from vfio-pci,
    too. They belong to no card of the settings, so another word names each by its address.

    :param slots: of all cards of the settings, name -> slot.
    """
    staying = _staying(facts, host, slots) if host.take_over else []
    of_settings = {device.address for slot in slots.values() for device in facts.functions(slot)}
    shared = ",".join(entry for entry in _other_ids(facts) if _names_one_of(entry, staying))
    others = [device for device in facts.devices if device.driver == "vfio-pci" and device.is_named(shared)]
    # For what comes later no word can name an address: `why_still_bound`.
    return {
        device.address: device.id
        for device in others
        if device.address not in of_settings and not facts.pluggable(device.address)
    }


def why_still_bound(facts: HostFacts, functions: Collection[Device]) -> str:
    """Why a word of homelab's doesn't take these functions of a card from vfio-pci; empty: it does."""
    if stronger := stronger_than_words(facts, functions):
        return stronger
    running_ids, homelab_bound = ids_in_effect(facts), bound_by_word(facts.cmdline.running)
    # Functions that the running word still names, or that `homelab.vfio=` binds, are released by the next word.
    if running_ids is not None and any(
        device.address not in homelab_bound and not device.is_named(running_ids) for device in functions
    ):
        return "this program's word is on the running kernel's command line, and hasn't helped"
    shared = ",".join(entry for entry in _other_ids(facts) if _names_one_of(entry, functions))
    later = [
        device.address
        for device in facts.devices
        if device not in functions
        and device.driver == "vfio-pci"
        and device.is_named(shared)
        and facts.pluggable(device.address)
    ]
    return f"the same ids give {', '.join(later)} to vfio-pci, which can be plugged in later" if later else ""


def stronger_than_words(facts: HostFacts, functions: Collection[Device]) -> str:
    """The configuration that gives these functions to vfio-pci whatever a word says, in words; empty: there is none."""
    if any(map(facts.override_files, functions)):
        return "driverctl puts it there, whatever a word says"
    if _names_one_of(facts.vfio_files.get(vfio_ids.MODULES, ""), functions):
        return f"the options in {vfio_ids.MODULES} come later than any word"
    return ""


def ids_in_effect(facts: HostFacts) -> str | None:
    """The ids of homelab's word on the running kernel's command line; None: it has no such word."""
    others = facts.cmdline.others.split()
    words = [option for option in facts.cmdline.running.split() if option.startswith(WORD) and option not in others]
    return words[-1].removeprefix(WORD) if words else None


def _other_ids(facts: HostFacts) -> list[str]:
    """All ids that other configuration gives to vfio-pci, each once."""
    id_lists = facts.ids_by_others().values()
    return list(dict.fromkeys(entry for ids in id_lists for entry in ids.lower().split(",") if entry))


def _names_one_of(entry: str, devices: Iterable[Device]) -> bool:
    return any(device.is_named(entry) for device in devices)


def _staying(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> list[Device]:
    """Functions of cards that stay with the host, and that ids of other configuration give to vfio-pci."""
    ids, staying = ",".join(_other_ids(facts)), [slot for name, slot in slots.items() if host.gpus[name].use != "vm"]
    return [device for slot in staying for device in facts.functions(slot) if device.is_named(ids)]


def _is_left_out(facts: HostFacts, host: Host, slots: Mapping[str, str], entry: str) -> bool:
    """Whether an id is left out of homelab's word: it is of a card that stays, or it has had no effect. A function that
    a running VM has on vfio-pci is no proof of an effect."""
    running_ids = ids_in_effect(facts)
    if running_ids is not None:
        return _names_one_of(entry, _staying(facts, host, slots)) or entry not in running_ids.lower().split(",")
    drivers = {device.driver for device in facts.devices if device.is_named(entry)}
    return _names_one_of(entry, _staying(facts, host, slots)) or bool(drivers) and "vfio-pci" not in drivers
