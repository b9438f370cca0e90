"""Options of a host, its cards and its VMs' cards, as they are in a reading. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from homelab.cards import consoles, remapping
from homelab.facts import acs
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts
from homelab.host import handover
from homelab.settings import Gpu, Host
from homelab.show.cards import Traits
from remote_scripts.pve import vm_conf

AWAKE = ("sleep", "kept awake (no D3cold)")
MIGRATION = ("live migration", "allowed by its mapping")
# Keys of a hostpci option that get a line -> Proxmox VE's default, which gets none.
_OPTIONS = {"driver": "vfio", "legacy-igd": "0", "rombar": "1", "romfile": "", "x-vga": "0"}


# -- the host ------------------------------------------------------------------------------------------------------
def of_host(facts: HostFacts) -> Traits:
    """What the running kernel was told, beside what every such host is; and what of the host can't be read."""
    return (*_unusual(facts.cmdline.running), *_unread(facts))


def _unread(facts: HostFacts) -> Traits:
    """Files that tell who has a card, and that can't be read: what is shown lacks what is in them."""
    texts = "; ".join(facts.unreadable)
    return (("can't be read, so who has a card may be missing here", texts),) if texts else ()


def _unusual(words: str) -> Traits:
    """Words of the command line that not every such host has; of one that stands twice, the last one counts."""
    traits = {}
    for word in words.split():
        key, _, value = word.partition("=")
        if key == acs.WORD or word in (consoles.NO_FRAMEBUFFER, remapping.UNSAFE_INTERRUPTS) or "relax_rmrr" in value:
            traits[key] = value
    return tuple(traits.items())


# -- a card --------------------------------------------------------------------------------------------------------
def of_card(facts: HostFacts, slot: str, host: Host, name: str) -> Traits | None:
    """Reset, sleep and live migration of a card for VMs, or the handover of a shared one; None for any other card.

    :param name: its name in the settings; empty: it has none.
    """
    functions, gpu = facts.functions(slot), host.gpus.get(name)
    if gpu is not None and gpu.use == "shared":
        return (("in turn", handover.state_text(facts, name) or "with the host"),)
    if gpu is not None and gpu.use != "vm" or gpu is None and functions[0].driver != "vfio-pci":
        return None
    described = facts.resets_of(functions)
    traits = [("reset", described)] if described else []
    traits += [AWAKE] if _is_awake(facts, functions, gpu) else []
    migrates = name and host.mapping_of(name) in vm_conf.migrating(facts.guests.mappings)
    return (*traits, *([MIGRATION] if migrates else []))


def _is_awake(facts: HostFacts, functions: Sequence[Device], gpu: Gpu | None) -> bool:
    """Whether D3cold is off. The kernel never has that by default, while power management is off (`on`) by default in
    places.
    """
    states = [facts.card_states[function.address] for function in functions if function.address in facts.card_states]
    if any(state.d3cold_allowed == "1" for state in states) or not any(state.d3cold_allowed == "0" for state in states):
        return False
    return gpu is None or not gpu.keep_awake or all(state.control in (None, "on") for state in states)


# -- a guest -------------------------------------------------------------------------------------------------------
def of_guest(options: Sequence[Mapping[str, str]]) -> Traits:
    """A VM's options of a card.

    :param options: its hostpci options, by key.
    """
    # Of several options each counts.
    found = [
        (key, value)
        for option in options
        for key, default in _OPTIONS.items()
        if (value := option.get(key, default)) != default
    ]
    return tuple(dict.fromkeys(found))
