"""What a person or another program has set up on a host for its cards already, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from homelab.init.cards import Card
from homelab.nvidia.reading import SystemReading
from remote_scripts.shared import vfio_ids
from remote_scripts.shared.hookscripts import is_homelabs

# Words of the kernel command line that guides to passthrough name, without what follows the equals sign.
_WORDS = (
    *("amd_iommu", "intel_iommu", "iommu", "iommu.passthrough", "iommu.strict", "intremap", "nointremap"),
    *("pcie_acs_override", "modprobe.blacklist", "module_blacklist", "initcall_blacklist", "rd.driver.pre"),
    *("pci-stub.ids", "pci_stub.ids"),
    *("video", "nofb", "nomodeset", "textonly", "fbcon", "pci", "pcie_aspm", "pcie_port_pm"),
)
# Options of modules; vfio-pci's ids are told with the cards that they bind.
_OPTION = re.compile(
    r"(?:nvidia|nouveau|nova|radeon|amdgpu|ttm|i915|xe|snd_hda_intel|vfio|kvm)[\w-]*\.(?!ids(?:=|$))", re.ASCII
)


def present(
    facts: HostFacts, cards: Iterable[Card], node: str, systems: Mapping[str, SystemReading] | None = None
) -> list[str]:
    """A sentence for each.

    :param node: the host's name in Proxmox VE.
    :param systems: readings of containers, by their ids.
    """
    cards = list(cards)
    return [
        *_on_the_host(facts, cards),
        *_in_vms(facts, cards, node),
        *_in_containers(facts, cards, systems or {}),
    ]


def _on_the_host(facts: HostFacts, cards: Sequence[Card]) -> list[str]:
    lines = []
    words = [word for word in facts.cmdline.others.split() if word.partition("=")[0] in _WORDS or _OPTION.match(word)]
    if words:
        lines.append(f"{' '.join(words)} on the kernel command line: kept, and not added a second time")
    others: dict[str, list[str]] = {}
    for path, _, line in (line.partition(": ") for line in facts.module_lines):
        # Ids are told below, with the cards that they bind; what is in /usr/lib, packages have brought.
        if not (path in facts.vfio_files and "ids=" in line) and not path.startswith("/usr/lib/"):
            others.setdefault(path, []).append(line)
    if others:
        lines.append("; ".join(f"{path}: {', '.join(of_file)}" for path, of_file in others.items()) + ": kept")
    functions = {card.key: facts.functions(card.place) for card in cards}
    sources = facts.who_binds([device for devices in functions.values() for device in devices])
    for source in sources:
        by_key = {
            key: named
            for key, devices in functions.items()
            if (named := [device for device in devices if source in facts.who_binds([device])])
        }
        lines.append(f"{source}: kept; {_of_binding(facts, source, by_key)}")
    lines += [
        f"{path}, which names vfio-pci: kept; what it does to cards isn't looked at"
        for path in facts.vfio_mentions
        if path not in sources
    ]
    return lines


def _of_binding(facts: HostFacts, source: str, by_key: Mapping[str, Sequence[Device]]) -> str:
    """What a file or word does to the cards whose functions it names, by their keys, and what becomes of that."""
    keys, devices = ", ".join(by_key), [device for named in by_key.values() for device in named]
    if source == vfio_ids.MODULES or any(source in facts.override_files(device) for device in devices):
        return (
            f"it keeps {keys} for vfio-pci, whatever a word says. For containers or the host itself take that out "
            "there first"
        )
    instead = "With takeOver: true for the host a word of this program's counts instead, until `pulumi destroy`"
    if not any(device.driver == "vfio-pci" for device in devices):
        return f"it names {keys} for vfio-pci, without effect so far: from the next start on it may have one. {instead}"
    return f"{keys} {'counts' if len(by_key) == 1 else 'count'} as bound by it, and the plan says so. {instead}"


def _in_vms(facts: HostFacts, cards: Sequence[Card], node: str) -> list[str]:
    lines = []
    for card in cards:
        users = facts.users_of(card.place, node)
        for config in facts.guests.configs:
            options = facts.options_of(card.place, config.id, node)
            given = ", ".join(f"{option}: {config.values.get(option, '')}" for option in options)
            if given and config.is_template:
                lines.append(f"{given} of the template {config.id}: kept; it never runs, so that it takes no card")
            elif given:
                lines.append(
                    f"{given} of VM {config.id}: if the VM keeps {card.key}, `pulumi up` takes it over with "
                    "its other options, and `pulumi destroy` puts it back as it is"
                )
                if len(users) > 1:
                    lines[-1] += "; if another VM gets the card, it stays, and only one of them can run with it"
    for config in facts.guests.configs:
        if keys := [
            card.key for card in cards if {one.address for one in facts.functions(card.place)} & config.by_args
        ]:
            lines.append(
                f"args of VM {config.id}, which gives it {', '.join(keys)} past Proxmox VE: kept; a card that is to go "
                f"to a VM is refused until that device is out of it (`qm config {config.id}` shows all of it)"
            )
        script = config.values.get("hookscript", "")
        if script and not is_homelabs(script):
            lines.append(
                f"hookscript {script} of {'VM' if config.kind == 'vm' else 'container'} {config.id}: kept, and run as "
                "before; what it does to cards isn't looked at"
            )
            if config.kind == "vm":
                lines[-1] += ". A card that the VM takes in turn (shared) needs that place: take it out first"
    return lines


def _in_containers(facts: HostFacts, cards: Sequence[Card], systems: Mapping[str, SystemReading]) -> list[str]:
    lines = []
    named: set[int] = set()
    for card in cards:
        if ids := [config.id for config in facts.containers_with(card.place)]:
            named.update(ids)
            lines.append(f"lines for {card.key} of {_containers(ids)}: kept; they count towards what it needs")
    without_card = [
        config.id
        for config in facts.guests.configs
        if config.kind == "lxc"
        and config.id not in named
        and any(entry.source.startswith("/dev/nvidia") for entry in config.container.entries)
    ]
    if without_card:
        lines.append(
            f"lines for NVIDIA's device nodes of {_containers(without_card)}: kept; no card here has such a "
            "node now, so that they give none"
        )
    by_version: dict[str, list[int]] = {}
    for number, reading in systems.items():
        if reading.libraries and number.isdecimal() and "driver" not in reading.steps:
            by_version.setdefault(reading.libraries, []).append(int(number))
    for version, ids in by_version.items():
        lines.append(
            f"NVIDIA's libraries {version} in {_containers(ids)}: kept, unless NVIDIA's software is chosen there: "
            "then those of the host's driver replace them, and stay unless nvidia.onDestroy is purge"
        )
    return lines


def _containers(ids: Sequence[int]) -> str:
    return f"container{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"
