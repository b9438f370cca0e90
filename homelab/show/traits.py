"""What is set of a host, of its cards, and of how a VM has one: as it is by a reading, and as the settings want it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from homelab.host import acs, consoles, gates, handover, remapping, resets
from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from homelab.settings import Gpu, Host
from homelab.settings.vm import VmGpu
from homelab.show.cards import Traits

AWAKE = ("sleep", "kept awake (no D3cold)")
MIGRATION = ("live migration", "allowed by its mapping")
# Of a hostpci option: what is worth a line, and what stands for its being set to 1 or 0.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "driver": {"vfio": ""},
    "legacy-igd": {"1": "on", "0": ""},
    "rombar": {"0": "off", "1": ""},
    "romfile": {},
    "x-vga": {"1": "on", "0": ""},
}


# -- the host ------------------------------------------------------------------------------------------------------
def of_host(facts: HostFacts) -> Traits:
    """What the running kernel was told, beside what every such host is."""
    return (*_told(facts.cmdline.running.split()), *_left(facts))


def _left(facts: HostFacts) -> Traits:
    """VMs that were moved away for a restart of the host, and given up: nothing brings them back but a person."""
    return tuple(
        (
            f"VM {one.vmid}",
            f"left on {one.node} after a restart of this node; there: {one.way_back(facts.cluster.node)}",
        )
        for one in facts.left_elsewhere
    )


def wanted_of_host(facts: HostFacts, host: Host) -> Traits:
    """The same for the next boot: by the settings, and by what somebody else has configured."""
    slots, _ = gates.resolve(facts, host.gpus)
    by_hand = set() if host.take_over else facts.bound_by_hand()
    bound = [
        one.address
        for name, slot in slots.items()
        if host.gpus[name].use == "vm"
        for one in facts.functions(slot)
        if not one.physfn and one.address not in by_hand
    ]
    words = [*facts.cmdline.others.split(), *remapping.words(facts, host).split(), *consoles.words(facts, host, bound)]
    return (*_told(words), *_left(facts))


def _told(words: Sequence[str]) -> Traits:
    """What a kernel's words mean; of a word that stands twice, the last one counts."""
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        if key == acs.WORD:
            found["ACS override"] = value
        elif word == consoles.NO_FRAMEBUFFER:
            found["the firmware's picture"] = f"not shown ({word})"
        elif word == remapping.UNSAFE_INTERRUPTS:
            found["unsafe interrupts"] = "allowed"
        elif key == "intel_iommu" and "relax_rmrr" in value.split(","):
            found["reserved memory (RMRR)"] = "relaxed"
    return tuple(found.items())


# -- a card --------------------------------------------------------------------------------------------------------
def of_card(facts: HostFacts, slot: str, gpu: Gpu | None, mapping: str, name: str = "") -> Traits | None:
    """How a card that is for a VM is reset and sleeps; None: it is for nobody, or for containers.

    :param gpu: its settings, if it has some.
    :param mapping: the id of its mapping there.
    :param name: of the card there.
    """
    functions = facts.functions(slot)
    if gpu is not None and gpu.use == "shared":
        refused = facts.turned_away.get(name)
        return (
            ("in turn", handover.said(facts, name) or "with the host"),
            *([("refused", str(refused))] if refused else []),
        )
    if gpu is not None and gpu.use != "vm" or gpu is None and functions[0].driver != "vfio-pci":
        return None
    found = [*_resets({one.address: resets.methods(facts, one.address) for one in functions})]
    found += [AWAKE] if _is_awake(facts, functions, gpu) else []
    return (*found, *([MIGRATION] if mapping in facts.guests.migrating else []))


def wanted_of_card(facts: HostFacts | None, slot: str, gpu: Gpu, now: Traits | None) -> Traits | None:
    """The same as the settings want it. What they don't say stays, or gets back what it had before they said it.

    :param facts: None where nobody has read it.
    :param now: as it is.
    """
    if gpu.use == "shared":
        return now or (("in turn", "with the host"),)
    if gpu.use != "vm":
        return None
    kept = dict(now or ())
    if facts is None:
        return (
            *([("reset", gpu.reset)] if gpu.reset else []),
            *([AWAKE] if gpu.keep_awake else []),
            *([MIGRATION] if gpu.live_migration else []),
        )
    functions = facts.functions(slot)
    had = {address: state.had for address, state in facts.card_states.items()}
    known = {one.address: resets.methods(facts, one.address) for one in functions}
    if gpu.reset:
        # A companion that the kernel can't reset so is left as it is (card_values.sh).
        ways: dict[str, list[str] | None] = {
            one.address: [gpu.reset]
            if one.is_display or gpu.reset in (known[one.address] or [])
            else known[one.address]
            for one in functions
        }
        kept.update(_resets(ways))
    else:
        back = {one.address: had.get(one.address, {}).get("reset_method") for one in functions}
        kept.update(_resets({one: known[one] if before is None else before.split() for one, before in back.items()}))
    if gpu.keep_awake:
        kept.update([AWAKE])
    elif any(had.get(one.address, {}).get("d3cold_allowed") == "1" for one in functions):
        kept.pop(AWAKE[0], None)
    kept.pop(MIGRATION[0], None)
    kept.update([MIGRATION] if gpu.live_migration else [])
    return tuple(kept.items())


def _resets(ways: Mapping[str, list[str] | None]) -> list[tuple[str, str]]:
    """One line for a card, where all its functions are reset alike; nothing where the kernel doesn't say."""
    said = {address: ", ".join(way) or "none" for address, way in ways.items() if way is not None}
    if not said:
        return []
    if len({*said.values()}) == 1:
        return [("reset", next(iter(said.values())))]
    return [("reset", "; ".join(f"{address} by {way}" for address, way in said.items()))]


def _is_awake(facts: HostFacts, functions: Sequence[Device], gpu: Gpu | None) -> bool:
    """Has D3cold been switched off? That alone is no default of the kernel's; that it isn't managed (`on`) is one in places."""
    states = [facts.card_states[one.address] for one in functions if one.address in facts.card_states]
    if any(one.d3cold_allowed == "1" for one in states) or not any(one.d3cold_allowed == "0" for one in states):
        return False
    return gpu is None or not gpu.keep_awake or all(one.control in (None, "on") for one in states)


# -- a guest -------------------------------------------------------------------------------------------------------
def of_guest(options: Sequence[Mapping[str, str]]) -> Traits:
    """How a VM has a card, by its hostpci options."""
    found = {}
    for option in options:
        for key, meanings in _OPTIONS.items():
            if value := meanings.get(option.get(key, ""), option.get(key, "")):
                found[key] = value
    return tuple(found.items())


def wanted_of_guest(use: VmGpu, now: Traits = ()) -> Traits:
    """The same by its settings.

    :param now: as it is; of an option that is taken over, that stays.
    """
    values = {
        "driver": use.driver,
        "legacy-igd": str(int(use.legacy_igd)),
        "rombar": str(int(use.rombar)),
        "romfile": use.romfile or "",
        "x-vga": str(int(use.x_vga)),
    }
    return tuple({**dict(now if use.take_over else ()), **dict(of_guest([values]))}.items())
