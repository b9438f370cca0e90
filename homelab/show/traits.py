"""Options of a host, its cards and its VMs' cards: as they are in a reading, and as the settings want them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from homelab.host import acs, consoles, gates, handover, remapping, resets
from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from homelab.settings import Gpu, Host
from homelab.show.cards import Traits
from remote_scripts.shared import vm_conf

AWAKE = ("sleep", "kept awake (no D3cold)")
MIGRATION = ("live migration", "allowed by its mapping")
# Keys of a hostpci option that get a line -> value -> text; a value without a text is shown as it is, an empty text
# isn't shown.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "driver": {"vfio": ""},
    "legacy-igd": {"1": "on", "0": ""},
    "rombar": {"0": "off", "1": ""},
    "romfile": {},
    "x-vga": {"1": "on", "0": ""},
}


# -- the host ------------------------------------------------------------------------------------------------------
def of_host(facts: HostFacts) -> Traits:
    """What the running kernel was told, beside what every such host is; and what of the host can't be read."""
    return (*_told(facts.cmdline.running.split()), *_unread(facts))


def wanted_of_host(facts: HostFacts, host: Host) -> Traits:
    """The same for the next boot: by the settings, and by what somebody else has configured."""
    slots, _ = gates.resolve(facts, host.gpus)
    by_hand = set() if host.take_over else facts.bound_by_hand()
    bound = [
        function.address
        for name, slot in slots.items()
        if host.gpus[name].use == "vm"
        for function in facts.functions(slot)
        if not function.physfn and function.address not in by_hand
    ]
    words = [*facts.cmdline.others.split(), *remapping.words(facts, host).split(), *consoles.words(facts, host, bound)]
    return (*_told(words), *_unread(facts))


def _unread(facts: HostFacts) -> Traits:
    """Files that tell who has a card, and that can't be read: what is shown lacks what is in them."""
    texts = "; ".join(facts.unreadable)
    return (("can't be read, so who has a card may be missing here", texts),) if texts else ()


def _told(words: Sequence[str]) -> Traits:
    """The meaning of command-line words; of a word that stands twice, the last one counts."""
    traits = {}
    for word in words:
        key, _, value = word.partition("=")
        if key == acs.WORD:
            traits["ACS override"] = value
        elif word == consoles.NO_FRAMEBUFFER:
            traits["the firmware's picture"] = f"not shown ({word})"
        elif word == remapping.UNSAFE_INTERRUPTS:
            traits["unsafe interrupts"] = "allowed"
        elif key == "intel_iommu" and "relax_rmrr" in value.split(","):
            traits["reserved memory (RMRR)"] = "relaxed"
    return tuple(traits.items())


# -- a card --------------------------------------------------------------------------------------------------------
def of_card(facts: HostFacts, slot: str, gpu: Gpu | None, mapping: str, name: str = "") -> Traits | None:
    """Reset, sleep and live migration of a card for VMs, or the handover of a shared one; None for any other card.

    :param gpu: its settings, if it has some.
    :param mapping: the id of its mapping.
    :param name: its name in the settings.
    """
    functions = facts.functions(slot)
    if gpu is not None and gpu.use == "shared":
        return (("in turn", handover.state_text(facts, name) or "with the host"),)
    if gpu is not None and gpu.use != "vm" or gpu is None and functions[0].driver != "vfio-pci":
        return None
    traits = [*_resets({function.address: resets.methods(facts, function.address) for function in functions})]
    traits += [AWAKE] if _is_awake(facts, functions, gpu) else []
    return (*traits, *([MIGRATION] if mapping in vm_conf.migrating(facts.guests.mappings) else []))


def wanted_of_card(facts: HostFacts | None, slot: str, gpu: Gpu, current: Traits | None) -> Traits | None:
    """A card's traits as the settings want them. Others stay, or go back to the original that this program had
    replaced.

    :param facts: None: the host wasn't read.
    :param current: as they are.
    """
    if gpu.use == "shared":
        return current or (("in turn", "with the host"),)
    if gpu.use != "vm":
        return None
    traits = dict(current or ())
    if facts is None:
        return (
            *([("reset", gpu.reset)] if gpu.reset else []),
            *([AWAKE] if gpu.keep_awake else []),
            *([MIGRATION] if gpu.live_migration else []),
        )
    functions = facts.functions(slot)
    originals = {address: state.had for address, state in facts.card_states.items()}
    methods = {function.address: resets.methods(facts, function.address) for function in functions}
    if gpu.reset:
        # A companion function for which the kernel hasn't this method is left as it is (layers/card_values.py).
        planned: dict[str, list[str] | None] = {
            function.address: [gpu.reset]
            if function.is_display or gpu.reset in (methods[function.address] or [])
            else methods[function.address]
            for function in functions
        }
        traits.update(_resets(planned))
    else:
        restored = {function.address: originals.get(function.address, {}).get("reset_method") for function in functions}
        traits.update(
            _resets(
                {
                    address: methods[address] if original is None else original.split()
                    for address, original in restored.items()
                }
            )
        )
    if gpu.keep_awake:
        traits.update([AWAKE])
    elif any(originals.get(function.address, {}).get("d3cold_allowed") == "1" for function in functions):
        traits.pop(AWAKE[0], None)
    traits.pop(MIGRATION[0], None)
    traits.update([MIGRATION] if gpu.live_migration else [])
    return tuple(traits.items())


def _resets(methods: Mapping[str, list[str] | None]) -> list[tuple[str, str]]:
    """The trait `reset` of a card; its functions are named if their methods differ. Empty where the kernel names no
    method.
    """
    texts = {address: ", ".join(names) or "none" for address, names in methods.items() if names is not None}
    if not texts:
        return []
    if len({*texts.values()}) == 1:
        return [("reset", next(iter(texts.values())))]
    return [("reset", "; ".join(f"{address} by {text}" for address, text in texts.items()))]


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
    traits = {}
    for option in options:
        for key, meanings in _OPTIONS.items():
            if value := meanings.get(option.get(key, ""), option.get(key, "")):
                traits[key] = value
    return tuple(traits.items())
