"""The gates of a host, in the order in which they are checked. A gate that can't be decided is closed.

Each gate is a function from facts and settings to refusals, so that a preview and an `up` refuse the same things with
the same words. One setting of its own opens a gate, if it can be opened.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from homelab import earlier
from homelab.errors import HomelabError
from homelab.host import consoles, graphics, ha, kernel_log, options, released, remapping, resets
from homelab.host.classes import NVIDIA
from homelab.host.devices import Device
from homelab.host.facts import CardUser, HostFacts, bound_by_word
from homelab.settings import Gpu, Host
from remote_scripts.reading.answer import Vital
from remote_scripts.tools.words import missing_words


def resolve(facts: HostFacts, gpus: dict[str, Gpu]) -> tuple[dict[str, str], list[HomelabError]]:
    """GPU name -> slot (`0000:01:00`), or address of a virtual function; and the errors of those that can't be
    resolved: no such card, several, or one under two names."""
    slots: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, gpu in gpus.items():
        devices = [device for device in facts.devices if _matches(device, gpu)]
        # A virtual function is a card of its own, named by its address.
        places = sorted({device.slot for device in devices if not device.physfn}) or sorted(
            device.address for device in devices
        )
        if len(places) == 1 and places[0] not in slots.values():
            slots[name] = places[0]
        elif len(places) == 1:
            errors.append(
                _same_card_error(
                    name, next(other_name for other_name, slot in slots.items() if slot == places[0]), places[0]
                )
            )
        else:
            errors.append(_unresolved_error(facts, name, gpu, places))
    return slots, errors


def choosing(facts: HostFacts, gpus: dict[str, Gpu]) -> HostFacts:
    """The reading, in which a card consists of the functions that the settings name for it (`functions`), if they
    do."""
    with_functions = {name: gpu for name, gpu in gpus.items() if gpu.functions}
    slots = resolve(facts, with_functions)[0]
    return replace(facts, chosen_functions={slot: gpus[name].functions for name, slot in slots.items()})


def _matches(device: Device, gpu: Gpu) -> bool:
    # Settings leave out the ".0" of a function. A slot may hold eight virtual functions, and each is another card.
    first = device.address.removesuffix(".0")
    if gpu.address is not None and gpu.address not in (device.address, first if device.physfn else device.slot):
        return False
    # It is what makes a card, also by address alone: buses are renumbered when hardware changes.
    return device.is_display and (gpu.match is None or device.id == gpu.match)


def _card_names(facts: HostFacts) -> str:
    return "; ".join(facts.card(device.address) for device in facts.display_devices) or "no graphics card at all"


def _same_card_error(name: str, other_name: str, slot: str) -> HomelabError:
    return HomelabError(
        wanted=f"gpus.{name} and gpus.{other_name} to be two cards",
        found=f"both are the one in {slot}",
        why="one card can be given away only once",
        next="correct their `match` or `address`",
    )


def _unresolved_error(facts: HostFacts, name: str, gpu: Gpu, places: list[str]) -> HomelabError:
    wanted = " at ".join(part for part in (gpu.match or "a graphics card", gpu.address) if part)
    if places:
        return HomelabError(
            wanted=f"gpus.{name}: one card ({wanted})",
            found=f"{len(places)}: {', '.join(places)}",
            why="identical cards can't be told apart by their id",
            next=f'add `address: "{places[0]}"` (or another of them) to gpus.{name}',
        )
    # Another function may have that id or address, such as the card's audio function.
    device = next(
        (device for device in facts.devices if not device.is_display and _has_id_or_address(device, gpu)), None
    )
    if device is not None:
        card = next((device for device in facts.functions(device.slot) if device.is_display), None)
        return HomelabError(
            wanted=f"gpus.{name}: a card ({wanted})",
            found=f"{facts.describe(device)}"
            + (f"; the graphics card of its slot is {facts.describe(card)}" if card else ""),
            why="a card is named by its graphics function; what else belongs to it follows",
            next=f'set `address: "{card.slot}"` or `match: {card.id}`'
            if card
            else "correct `match` or `address` (see `lspci -nn`)",
        )
    return HomelabError(
        wanted=f"gpus.{name}: a card ({wanted})",
        found=f"graphics cards here: {_card_names(facts)}",
        why="nothing is bound in place of a card that isn't there",
        next="correct `match` or `address`; if the card is missing from `lspci -nn`, look at its power and its slot",
    )


def _has_id_or_address(device: Device, gpu: Gpu) -> bool:
    return gpu.address in (None, device.address, device.slot) and gpu.match in (None, device.id)


# Of April 2024. Every container's dev[n] options are there from 8.1 on.
_OLDEST = (8, 2)


def release(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """A gate: Proxmox VE is new enough. A host without Proxmox VE has no version, and no guests either."""
    if not facts.pve or tuple(int(number) for number in re.findall(r"\d+", facts.pve)[:2]) >= _OLDEST:
        return []
    return [
        HomelabError(
            wanted="Proxmox VE 8.2 or later on the host",
            found="dpkg doesn't say that it is installed" if facts.pve == "unknown" else f"Proxmox VE {facts.pve}",
            why="older ones lack options by which guests get their cards; nothing was changed",
            next="finish its upgrade (`dpkg --configure -a`), then run `pulumi up` again"
            if facts.pve == "unknown"
            else "update the host (`apt full-upgrade`), reboot, then run `pulumi up` again",
        )
    ]


def writable(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """A gate: the host's cluster, if any, has a quorum. Without it no guest and no mapping can be changed, and no guest
    starts after a reboot."""
    if facts.cluster.quorate:
        return []
    return [
        HomelabError(
            wanted=f"the node {facts.cluster.node} in a cluster that takes changes",
            found="it has no quorum (`pvecm status`): most of the cluster's votes are missing",
            why="/etc/pve can only be read then: guests can't be changed or started, and a reboot would leave them "
            "off; nothing was changed",
            next="bring the missing nodes back, or wait until they are, then run `pulumi up` again",
        )
    ]


def guests_listed(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """A gate: the lists of running guests were read. A guest that isn't known to run could lose its card, or be
    switched off."""
    if not facts.guests.unlisted:
        return []
    return [
        HomelabError(
            wanted="to know which guests run",
            found=f"Proxmox VE's API on the host gives no answer: {facts.guests.unlisted}",
            why="without an answer every guest would look stopped, and its card unused; so nothing was done",
            next="see whether pvedaemon runs (`systemctl status pvedaemon`; the service pve-cluster, a storage or a "
            "guest may hang), and root@pam is enabled (`pveum user modify root@pam --enable 1`); when it answers, run "
            "`pulumi up` again",
        )
    ]


def undone(facts: HostFacts) -> list[HomelabError]:
    """A gate: no earlier version has left on the host what this one can't read."""
    agents = [
        earlier.refusal(f"its agent in /var/lib/homelab/agents/{owner}")
        for owner, version in facts.agents.items()
        if version and not version.startswith(earlier.AGENTS)
    ]
    notes = [name for name in sorted(facts.ledger) if name.startswith(earlier.NOTES)]
    switch = [earlier.unconfirmed(path) for path in earlier.SWITCH if path in facts.ledger]
    refused = [earlier.refusal(f"its note {name} below /var/lib/homelab", *earlier.LATER) for name in notes[:1]]
    return agents or switch or refused


def readable(facts: HostFacts) -> list[HomelabError]:
    """A gate: every file that a decision needs was read. Cards count as unused if no line names them, so a file that
    can't be read would make cards free that a guest has."""
    if not facts.unreadable:
        return []
    return [
        HomelabError(
            wanted="to read every file that tells who has a card, and what the host can't do without",
            found="; ".join(facts.unreadable),
            why="a card that a guest uses could look free; so nothing was done",
            next="read it on the host yourself (what is below /etc/pve is served by the service pve-cluster); mend "
            "what keeps it from being read, or remove it, and run `pulumi up` again",
        )
    ]


def loader(facts: HostFacts, _host: Host) -> list[HomelabError]:
    """A gate: the host's boot loader is certain."""
    if facts.loader:
        return []
    return [
        HomelabError(
            wanted="to know which boot loader makes the kernel command line",
            found=facts.loader_clues,
            why="the wrong one would be configured without effect",
            next="see `proxmox-boot-tool status`; remove from /etc/kernel/proxmox-boot-uuids the UUID of each ESP "
            "that the host no longer starts from, and run `pulumi up` again",
        )
    ]


def iommu(facts: HostFacts, host: Host) -> list[HomelabError]:
    """A gate: the IOMMU can be on. The firmware offers it, and no word on the command line switches it off for good."""
    if not (host.wants_iommu or host.gives_cards):
        return []
    errors = []
    intel = remapping.is_intel(facts)
    name = "Intel VT-d" if intel else "AMD-Vi (IOMMU)"
    if not facts.iommu.tables and facts.iommu.groups == 0:
        errors.append(
            HomelabError(
                wanted=f"{name} switched on in the firmware",
                found=f"no {'DMAR' if intel else 'IVRS'} table in /sys/firmware/acpi/tables, and no IOMMU group",
                why="without it no PCI device can be given to a guest, whatever the kernel is told",
                next=f"enter the firmware setup (BIOS/UEFI) of the host, switch on {name}, and run `pulumi up` again",
            )
        )
    return errors + [
        HomelabError(
            wanted="an IOMMU that the kernel uses",
            found=f"{word} on the kernel command line, which this program didn't put there",
            why="that word switches the IOMMU off, and no later word switches it on again",
            next=f"remove {word} (/etc/default/grub, or /etc/kernel/cmdline), and run `pulumi up` again",
        )
        for word in _switching_off(facts, intel)
    ]


def _switching_off(facts: HostFacts, intel: bool) -> list[str]:
    """The words by which the next boot's kernel leaves the IOMMU off.

    Of intel_iommu= the last on or off counts; the others are never taken back (arch/x86/kernel/pci-dma.c,
    drivers/iommu/amd/init.c, drivers/iommu/intel/iommu.c).
    """
    others = facts.cmdline.others
    for_good = {"iommu"} if intel else {"iommu", "amd_iommu"}
    words, last = [], ""
    for word in [*others.split(), *missing_words(facts.planned_words or "", others)]:
        name, _, value = word.replace('"', "").partition("=")
        states = [option for option in value.split(",") if option.startswith(("on", "off"))]
        if name.replace("-", "_") in for_good and any(state.startswith("off") for state in states):
            words.append(word)
        elif intel and name.replace("-", "_") == "intel_iommu" and states:
            last = word if states[-1].startswith("off") else ""
    return [*words, last] if last else words


def named_functions(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: the functions that the settings name for the card exist, belong to its slot or its own switch, and its
    graphics function is among them."""
    if not gpu.functions:
        return []
    around = {device.address: device for device in facts.around(slot)}
    display = next((device for device in around.values() if device.is_display), None)
    wrong = []
    for address in gpu.functions:
        device = facts.by_address.get(address)
        if device is None:
            wrong.append(f"{address} is not there")
        elif address not in around:
            wrong.append(
                f"{facts.describe(device)} is neither in the card's slot nor behind a switch on the card, or it is a "
                "bridge or a virtual function (SR-IOV)"
            )
    if display is not None and display.address not in gpu.functions:
        wrong.append(f"the graphics function, {display.address}, is not among them")
    if not wrong:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name}.functions to be functions of the card at {slot}",
            found="; ".join(wrong),
            why="everything named there is bound to vfio-pci at boot, so it must belong to this card",
            next="take the list out: a virtual function is a card of its own"
            if not around
            else f"name functions of {', '.join(around)}, the graphics function among them; what shares only the IOMMU "
            f"group is named in gpus.{name}.allowGroupMembers",
        )
    ]


def one_function(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: no function of the card has virtual functions, since vfio-pci refuses a card with SR-IOV on
    (drivers/vfio/pci/vfio_pci_core.c)."""
    shared = [device for device in facts.functions(slot) if device.vfs]
    if not shared:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) whole",
            found="; ".join(
                f"{facts.describe(device)} has {device.vfs} virtual functions (SR-IOV)" for device in shared
            ),
            why="vfio-pci can't take a card that is split into virtual functions, and a guest that uses one of them "
            "would lose it",
            next="switch them off where they are switched on (`echo 0 "
            f">/sys/bus/pci/devices/{shared[0].address}/sriov_numvfs`; a module's option such as i915.max_vfs, "
            f"sysfs.conf), or give one of them to the VM: gpus.{name}.address with its address",
        )
    ]


def virtual_function(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: a virtual function (SR-IOV) can be given away. The IOMMU is on, and the host's driver has its physical
    function."""
    device = facts.by_address.get(slot)
    if device is None:
        return []
    wanted = f"gpus.{name} ({facts.card(slot)}), a virtual function, for a VM"
    why = "Proxmox VE binds a virtual function when a VM with it starts, which it can do only under a running IOMMU"
    errors = []
    if not facts.iommu.groups:
        errors.append(
            HomelabError(
                wanted=wanted,
                found="the host has no IOMMU groups yet",
                why=why,
                next=f"run `pulumi up` with iommu.enable: true and without gpus.{name} first, then add it",
            )
        )
    owner = facts.by_address.get(device.physfn)
    if owner is None or owner.driver == "vfio-pci":
        errors.append(
            HomelabError(
                wanted=wanted,
                found=f"the card that it is of, {device.physfn}, is {'not there' if owner is None else 'on vfio-pci'}",
                why="the virtual functions of such a card need a VFIO token, for which Proxmox VE has no option",
                next=f"give {device.physfn} back to the host's driver, which makes its virtual functions",
            )
        )
    if gpu.passthrough_test:
        errors.append(
            HomelabError(
                wanted=f"gpus.{name}.passthroughTest for a card that is bound at boot",
                found=f"{device.address} is a virtual function of {device.physfn} (SR-IOV)",
                why="the test takes a card that is on vfio-pci already; a virtual function gets there when its VM "
                "starts",
                next=f"take gpus.{name}.passthroughTest out",
            )
        )
    return errors


def divided(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: the card isn't set up to be divided among VMs (NVIDIA vGPU, mediated devices)."""
    states = {device.address: facts.card_states.get(device.address) for device in facts.functions(slot)}
    modes = {address: state.divided for address, state in states.items() if state is not None and state.divided}
    if not modes:
        return []
    mode_names = {"vgpu": "NVIDIA's vGPU driver", "mdev": "mediated devices (mdev_supported_types)"}
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) as a whole for a VM",
            found="; ".join(f"{address} is set up for {mode_names.get(mode, mode)}" for address, mode in modes.items()),
            why="it can serve several VMs, which would lose it; and Proxmox VE refuses a mapping of such a card "
            "that isn't marked for mdev",
            next="use it as it is set up (hostpci with mdev=, a mapping of your own), and take it out of the settings; "
            "or remove the vGPU driver, i915.enable_gvt or what else divides it, reboot, and run `pulumi up` again",
        )
    ]


def usable(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: the card answers and has its memory, without which no driver and no guest can use it."""
    addresses = [device.address for device in facts.functions(slot)]
    return [trouble.error for trouble in kernel_log.of_card(facts, f"gpus.{name}", addresses) if trouble.lasts]


def vgpu_host(facts: HostFacts, host: Host) -> list[HomelabError]:
    """A gate: NVIDIA's driver isn't installed over NVIDIA's vGPU driver."""
    signs = ["the module nvidia_vgpu_vfio is loaded"] if "nvidia_vgpu_vfio" in facts.modules else []
    signs += ["/usr/bin/nvidia-vgpu-mgr is there"] if facts.vgpu_manager else []
    if host.nvidia is None or not signs:
        return []
    return [
        HomelabError(
            wanted="NVIDIA's driver on the host (nvidia)",
            found=f"NVIDIA's vGPU driver: {'; '.join(signs)}",
            why="replacing that licensed driver would take the cards from the VMs that share them",
            next="take nvidia of this host out of the settings; or remove the vGPU driver yourself (its installer "
            "has --uninstall) and run `pulumi up` again",
        )
    ]


def loadable(facts: HostFacts, host: Host) -> list[HomelabError]:
    """A gate: nothing on the host keeps NVIDIA's driver, or vfio-pci, from being loaded by its name, as tools do that
    give all cards to VMs, or to none. A mere `blacklist nvidia` doesn't: this program loads it by its name."""
    errors = []
    if host.nvidia is not None:
        useless = "this keeps the kernel from ever loading the driver, so installing it would be useless"
        errors += _kept_off(facts, "nvidia", "nvidia", "NVIDIA's driver on the host (nvidia)", useless)
    if host.gives_cards:
        useless = "this keeps the kernel from ever loading vfio-pci, so the card would be left without a driver"
        errors += _kept_off(facts, "vfio", _OF_VFIO, "vfio-pci for the cards of VMs (gpus)", useless)
    return errors


_OF_VFIO = "vfio|vfio[-_]pci|vfio[-_]pci[-_]core|vfio[-_]iommu[-_]type1"


def _kept_off(facts: HostFacts, name: str, modules: str, wanted: str, why: str) -> list[HomelabError]:
    """The refusal where something keeps modules from ever being loaded: what the kernel refuses
    (kernel/module/main.c); what modprobe does in place of loading the module, or loads in its place: nothing has the
    name `off`, and an alias of the configuration comes before a module's own name.

    :param modules: a regular expression.
    """
    never_loaded = re.compile(rf": (?:install (?:{modules}) (?:\S*/)?(?:false|true|:)|alias (?:{modules}) off)(?:\s|$)")
    keeps_off = re.compile(rf"module_blacklist=(?:\S*,)?(?:{modules})(?:,\S*)?")
    configured, running = (
        [word for word in words.split() if keeps_off.fullmatch(word)]
        for words in (facts.cmdline.others, facts.cmdline.running)
    )
    lines = [line for line in facts.module_lines if never_loaded.search(line)]
    # A word that was taken away counts until the next boot.
    found = [*lines, *(f"{word} on the kernel command line" for word in configured)]
    found += [f"{word} on the command line of the kernel that runs" for word in running if word not in configured]
    if not found:
        return []
    steps = [f"take {name} out there"] if configured or lines else []
    steps += [new_entries(facts)] if configured else []
    steps += ["reboot"] if running else []
    return [
        HomelabError(
            wanted=wanted,
            found="; ".join(found),
            why=f"{why}; nothing was changed",
            next=f"{', '.join(steps)}; then run `pulumi up` again",
        )
    ]


def _without_group(facts: HostFacts, slot: str) -> list[Device]:
    """The functions of a card that are in no IOMMU group, although the host has groups."""
    return [device for device in facts.functions(slot) if device.group is None] if facts.iommu.groups else []


def grouped(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: every function of the card is in an IOMMU group, if the host has groups; else no word is going to leave
    it out (drivers/iommu/intel/iommu.c, disable_igfx_iommu)."""
    outside, started = _without_group(facts, slot), "was started"
    words = [word for word in facts.cmdline.running.split() if "igfx_off" in word]
    if not facts.iommu.groups:
        words = [word for word in facts.next_cmdline.split() if "igfx_off" in word]
        integrated = graphics.integrated_of(facts.functions(slot))
        outside, started = [integrated] if integrated and words else [], "is going to be started"
    if not outside:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) in an IOMMU group",
            found=f"the host has {facts.iommu.groups} groups, and in none of them is "
            f"{'; '.join(map(facts.describe, outside))}"
            + (f"; the kernel {started} with {' '.join(words)}" if words else ""),
            why="the IOMMU doesn't translate for it: Proxmox VE refuses to give such a device to a VM",
            next="take igfx_off out of where the words are (/etc/default/grub, or /etc/kernel/cmdline), "
            f"{new_entries(facts)}, {'and reboot' if facts.iommu.groups else 'and run `pulumi up` again'}"
            if words
            else "look for it in `dmesg | grep -iE 'DMAR|AMD-Vi'`; an update of the firmware may put it under the "
            "IOMMU",
        )
    ]


def new_entries(facts: HostFacts) -> str:
    """The command that brings changed words of the kernel command line into the boot entries."""
    return "`proxmox-boot-tool refresh`" if facts.loader == "systemd-boot" else "`update-grub`"


def _leaving_functions(facts: HostFacts, slot: str) -> list[Device]:
    """The functions that a VM's start with the card takes from the host: the card's and those of its groups."""
    return [*facts.functions(slot), *([] if _without_group(facts, slot) else facts.others_in_group(slot))]


def isolation(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: the card's IOMMU groups hold nothing but the card, bridges and what `allowGroupMembers` names, since a
    VM's start takes the whole group from the host."""
    if _without_group(facts, slot):
        return []  # without a group, nothing can be said of what is in it
    others = [device for device in facts.others_in_group(slot) if device.address not in gpu.allow_group_members]
    if not others:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) alone in its IOMMU group",
            found=f"it shares its {predicted(facts)}IOMMU group with {'; '.join(map(facts.describe, others))}",
            why="starting a VM with the card takes every device of the group from the host; with a disk or a "
            "network card it goes down",
            next="put the card into another slot, or switch ACS on in the firmware; a device that may leave the host "
            f"with the card is named in gpus.{name}.allowGroupMembers{remapping.override_hint(facts, slot)}",
        )
    ]


def predicted(facts: HostFacts) -> str:
    """`predicted `, for messages, while the host has no groups; else empty."""
    return "" if facts.iommu.groups else "predicted "


def vital(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: no storage or network that the host can't do without leaves with the card or its groups. No setting opens
    it."""
    if _without_group(facts, slot):
        return []
    leaving = {device.address: device for device in _leaving_functions(facts, slot)}
    errors = []
    needs = [need for need in facts.vital if need.kind != "keyboard"]
    for address, device in leaving.items():
        carried = [need.name for need in needs if address in need.devices]
        if carried:
            errors.append(_carrier_error(facts, name, slot, device, carried))
    doubtful = [device for device in leaving.values() if device.may_carry]
    unknown = [need for need in needs if need.trouble]
    if doubtful and unknown:
        errors.append(_unknown_carrier_error(facts, name, slot, doubtful, unknown))
    return errors


def _carrier_error(facts: HostFacts, name: str, slot: str, device: Device, carried: list[str]) -> HomelabError:
    is_own = device.address in {function.address for function in facts.functions(slot)}
    relation = "is a function of the card" if is_own else f"is in the card's {predicted(facts)}IOMMU group"
    return HomelabError(
        wanted=f"gpus.{name} ({facts.card(slot)}) without anything that the host can't do without",
        found=f"{facts.describe(device)}, which {relation}, carries {', '.join(carried)}",
        why="a VM's start takes it from the host, which then loses its disk or its network and goes down; no "
        "setting allows that",
        next="connect the disk or the network cable to another controller, or put the card into another slot; or, "
        "if the host can do without it, end what uses it (`umount`, `zpool export`, `vgchange -an` for a guest's LVM, "
        "`ip link set NAME down`); then run `pulumi up` again"
        + ("" if is_own or facts.iommu.groups else remapping.SWITCH_ON),
    )


def _unknown_carrier_error(
    facts: HostFacts, name: str, slot: str, doubtful: list[Device], unknown: list[Vital]
) -> HomelabError:
    return HomelabError(
        wanted=f"to know what carries {', '.join(need.name for need in unknown)}, before a device that may carry it "
        f"leaves the host with gpus.{name} ({facts.card(slot)})",
        found="; ".join(need.trouble for need in unknown)
        + f"; with the card go {'; '.join(map(facts.describe, doubtful))}",
        why="a VM's start would take its own disk or network from the host, which then goes down; no setting allows "
        "that",
        next="put the card into a slot where it is alone in its group",
    )


def staying_cards_apart(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> list[HomelabError]:
    """A gate: no card that stays with the host is in the group of a card that a VM gets."""
    return [
        HomelabError(
            wanted=f"gpus.{other_name} ({facts.card(other_slot)}) with the host (use: {gpus[other_name].use}) while a "
            f"VM has gpus.{name} ({facts.card(slot)})",
            found=f"both are in one {predicted(facts)}IOMMU group",
            why=f"a VM's start with {name} takes every device of the group from the host, {other_name} too",
            next="put one of them into another slot, or give both to the same VM",
        )
        for name, slot in slots.items()
        for other_name, other_slot in slots.items()
        if gpus[name].may_leave
        and not gpus[other_name].may_leave
        and any(device in facts.functions(other_slot) for device in facts.others_in_group(slot))
    ]


def bound_by_hand(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> list[HomelabError]:
    """A gate: a card that stays with the host isn't bound to vfio-pci by other configuration than this program's, or
    takeOver lets this program's word count instead."""
    return [
        error
        for name, slot in slots.items()
        if host.gpus[name].use != "vm"
        for error in _card_bound_by_hand(facts, host, name, slot, slots)
    ]


def _card_bound_by_hand(
    facts: HostFacts, host: Host, name: str, slot: str, slots: Mapping[str, str]
) -> list[HomelabError]:
    # Also those that homelab's word binds, too (takeOver): the other configuration binds them once that word is gone.
    bound = [device for device in facts.functions(slot) if facts.kept_by_hand(device)]
    gpu, kept_reason = host.gpus[name], released.why_still_bound(facts, host, slots, bound)
    # Those that homelab's word has returned to the host's driver, and without takeOver won't any more.
    returned = [] if host.take_over or released.ids_in_effect(facts) is None else facts.functions(slot)
    returned = [device for device in returned if device not in bound and facts.named_at_next_boot(device)]
    bound += returned
    if not bound or (host.take_over and not kept_reason):
        return []
    sources = facts.who_binds(bound)
    ids = sorted({device.id for device in bound if facts.named_by_ids(device)})
    steps = [f"take {', '.join(ids)} out there"] if ids else []
    if any("on the kernel command line" in source for source in sources):
        steps.append(new_entries(facts))
    # Where no driver of the host's is loaded that takes the card, driverctl ends with an error, and keeps its file,
    # unless it is told not to look for one.
    steps += [
        f"`driverctl --noprobe unset-override {device.address}` while no VM runs with it"
        for device in bound
        if facts.has_override(device)
    ]
    if ids:
        steps.append("`update-initramfs -u -k all`")
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with the host's driver (use: {gpu.use})",
            found=f"{', '.join(device.address for device in bound)} "
            f"on vfio-pci{' from the next start on' if returned else ''}, by {', '.join(sources)}"
            + (f"; {kept_reason}" if host.take_over else ""),
            why="this program didn't write that and doesn't remove it, so the host's driver would not get the card",
            next=(
                ""
                if kept_reason
                else "set takeOver: true for the host: a word of this program's then counts instead, until "
                "`pulumi destroy`; or "
            )
            + f"{', '.join(steps)}, reboot, and run `pulumi up` again; or set gpus.{name}.use: vm",
        )
    ]


def out_of_vms(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: a card that goes back to the host's driver is in no VM's configuration.

    The host restarts before a card is taken out of a VM, and a VM that starts with the host would take the card from
    that driver.
    """
    return _still_in_vm(facts, name, gpu, slot, facts.users_of(slot, facts.cluster.node))


def without_hook(
    facts: HostFacts, host: Host, slots: Mapping[str, str], hooked: Mapping[str, Collection[int]]
) -> list[HomelabError]:
    """A gate: a VM that starts with the host and has a card that is going to be handed over (use: shared) gets the
    hookscript before the restart.

    :param hooked: card's name -> ids of the adopted VMs that may take it, which get the hookscript before the host
        restarts.
    """
    errors = []
    for name, slot in slots.items():
        if host.gpus[name].use == "shared":
            users = facts.users_of(slot, facts.cluster.node)
            starting = [user for user in users if user.onboot or ha.is_kept_started(facts, user.vmid)]
            unhooked = [user for user in starting if user.vmid not in hooked.get(name, ())]
            errors += _still_in_vm(facts, name, host.gpus[name], slot, unhooked)
    return errors


def _still_in_vm(facts: HostFacts, name: str, gpu: Gpu, slot: str, users: list[CardUser]) -> list[HomelabError]:
    if not users or not (facts.bound_by_homelab(slot) or any(map(facts.kept_by_hand, facts.functions(slot)))):
        return []
    first = f"set gpus.{name}.use: vm again, without a container, and take {name}"
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with the host's driver from its next start on (use: {gpu.use})",
            found=f"it is bound for VMs, and {_holders_with_options(facts, slot, users)}",
            why=_WHY_RELEASE_FIRST,
            next=_release_steps(facts, slot, users, first, f"set use: {gpu.use}"),
        )
    ]


def left_with_vm(facts: HostFacts, host: Host, slots: dict[str, str]) -> list[HomelabError]:
    """A gate: a card that the settings no longer name, and that NVIDIA's driver is going to have, is in no VM's
    configuration.

    :param slots: of all cards that the settings name.
    """
    if len(slots) < len(host.gpus) or not (host.nvidia or facts.nvidia.version or facts.nvidia.installed):
        return []
    leaving = {
        device.slot
        for device in facts.display_devices
        if device.vendor == NVIDIA
        and device.slot not in slots.values()
        and facts.bound_by_homelab(device.address)
        and not facts.named_at_next_boot(device)  # that keeps it on vfio-pci
    }
    users = {slot: facts.users_of(slot, facts.cluster.node) for slot in sorted(leaving)}
    return [
        HomelabError(
            wanted=f"{facts.card(slot)} with NVIDIA's driver from the host's next start on, since no card of gpus "
            "is it",
            found=f"it is bound for VMs (homelab.vfio), and {_holders_with_options(facts, slot, holders)}",
            why=_WHY_RELEASE_FIRST,
            next=_release_steps(
                facts, slot, holders, "put it back into gpus with use: vm, and take it", "take it out of gpus"
            ),
        )
        for slot, holders in users.items()
        if holders
    ]


_WHY_RELEASE_FIRST = (
    "the host restarts before a card is taken out of a VM: a VM that starts then would take the card from its new "
    "driver; nothing was changed"
)


def _holders_with_options(facts: HostFacts, slot: str, users: list[CardUser]) -> str:
    """The VMs that have the card, each with its options, for messages."""
    options = {user: ", ".join(_option_lines(facts, slot, user)) for user in users}
    return "; ".join(f"{user} has it ({lines or 'it runs with it'})" for user, lines in options.items())


def _option_lines(facts: HostFacts, slot: str, user: CardUser) -> list[str]:
    """The options by which a VM has the card, as lines of its configuration."""
    config = facts.guests.config(user.vmid)
    keys = facts.options_of(slot, user.vmid, facts.cluster.node)
    return [f"{key}: {config.values.get(key) or config.current[key]}" for key in keys] if config else []


def _release_steps(facts: HostFacts, slot: str, users: list[CardUser], first: str, afterwards: str) -> str:
    """The steps by which the user takes the card out of the VMs before the host restarts.

    :param first: the change of the settings before that, if this program gave a VM the card.
    :param afterwards: the change of the settings after that.
    """
    given_users = [user for user in users if facts.given_by_homelab(slot, user.vmid)]
    steps = [_release_by_hand(facts, slot, user) for user in users if user not in given_users]
    if not given_users:
        return f"{'; '.join(steps)}; then run `pulumi up` again"
    given_names = ", ".join(map(str, given_users))
    otherwise = "; ".join(_release_by_hand(facts, slot, user) for user in given_users)
    steps.append(
        f"{first} out of the VM's gpus: `pulumi up` then takes it out of {given_names}. If it is still there after "
        f"that (a VM had it before, or Pulumi's state doesn't know the VM any more), {otherwise}"
    )
    return f"first {'; '.join(steps)}. After that {afterwards}: a second `pulumi up` restarts the host"


def _release_by_hand(facts: HostFacts, slot: str, user: CardUser) -> str:
    keys = ",".join(facts.options_of(slot, user.vmid, facts.cluster.node))
    command = f"; note that line, which nothing else keeps: `qm set {user.vmid} --delete {keys}`" if keys else ""
    return f"shut {user} down, if it runs, and take the card out of it{command}"


def console(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> list[HomelabError]:
    """A gate: neither a card that a VM gets nor a member of its groups is the host's screen."""
    errors = []
    leaving = {name: slot for name, slot in slots.items() if gpus[name].may_leave}
    for name, slot in leaving.items():
        gpu, screens = gpus[name], consoles.screens(facts, _leaving_functions(facts, slot))
        if gpu.allow_console or not screens:
            continue
        is_own = screens[0] in facts.functions(slot)
        screen_text = (
            "this card" if is_own else f"{facts.describe(screens[0])}, which is in its {predicted(facts)}IOMMU group,"
        )
        others = consoles.instead(facts, [*leaving.values(), screens[0].slot])
        errors.append(
            HomelabError(
                wanted=f"gpus.{name} ({facts.card(slot)}) not to be the host's console",
                found=f"the firmware uses {screen_text} as its screen "
                f"({'boot_vga' if screens[0].boot_vga else 'the kernel draws into its memory'})",
                why="once it is bound, the host shows nothing on its screen after the boot menu; it can be reached "
                "over the network only",
                next=(f"make {others} the primary one in the firmware, or " if others else "")
                + f"accept it with gpus.{name}.allowConsole: true (the boot entry 'without GPU passthrough' gives the "
                "screen back)",
            )
        )
    return errors


# Minor numbers from here on are no cards of NVIDIA's major (NV_MINOR_DEVICE_NUMBER_REGULAR_MAX, nv-chardev-numbers.h:
# 247).
_NVIDIA_MINORS = 248


def containers(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: no container uses the card, or another one of its groups, through the host's driver."""
    addresses = {device.address for device in _leaving_functions(facts, slot)}
    drm_nodes = {address: facts.drm_nodes(address) for address in facts.drm if address in addresses}
    nodes = {address: names for address, names in drm_nodes.items() if facts.by_address[address].vendor != NVIDIA}
    for address, minor in facts.nvidia_minors.items():
        if address in addresses:
            nodes[address] = [f"/dev/nvidia{minor}"]
    if any(facts.by_address[address].driver == "nvidia" for address in addresses - facts.nvidia_minors.keys()):
        # The reading has no minor number for this card: it may be any that no other card has.
        minors = set(range(_NVIDIA_MINORS)).difference(facts.nvidia_minors.values())
        nodes[""] = [f"/dev/nvidia{minor}" for minor in minors]
    # All of /dev/dri is given for the sake of another card: NVIDIA's driver has nodes of its own.
    found = facts.containers_having(nodes, drm_nodes)
    users = [config.id for config in found if config.id not in gpu.allow_containers]
    if not users:
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) free to be taken from the host",
            found=f"containers that use it: {', '.join(map(str, users))}",
            why="on vfio-pci the card has no node in /dev any more: these containers would not start, or run "
            "without it",
            next=f"take the card out of them first, or accept it with gpus.{name}.allowContainers: {users}",
        )
    ]


def past_proxmox(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: no VM has the card by options of QEMU itself (`args`), of which Proxmox VE knows nothing."""
    addresses = {device.address for device in facts.functions(slot)}
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) given to VMs by Proxmox VE (hostpci)",
            found=f"VM {guest.id} ({guest.values.get('name', '')}) has {', '.join(sorted(guest.by_args & addresses))} "
            "by its option args (-device vfio-pci)",
            why="Proxmox VE knows nothing of such a device: it would give the card to another VM, or to this one a "
            "second time, and the start would fail",
            next=f"take that device out of the option args (`qm config {guest.id}` shows all of it), then run "
            "`pulumi up` again",
        )
        for guest in facts.guests.configs
        if guest.by_args & addresses
    ]


def handed_over(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: a card that containers and a VM have in turn is NVIDIA's, as a whole."""
    functions = facts.functions(slot)
    if any(device.is_display and device.vendor == NVIDIA and not device.physfn for device in functions):
        return []
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) in turn for containers and a VM (use: shared)",
            found="it is not one of NVIDIA's, as a whole",
            why="this program knows only for NVIDIA's driver when a card can be taken from it while the host runs",
            next=f"set gpus.{name}.use: vm, or lxc",
        )
    ]


def check(facts: HostFacts, host: Host) -> tuple[dict[str, str], list[HomelabError]]:
    """Checks all gates.

    :returns: the slot of each GPU that could be resolved, and every refusal.
    """
    facts = remapping.to_be(facts, host)
    slots, unresolved = resolve(facts, host.gpus)
    errors = [
        *release(facts, host),
        *undone(facts),
        *readable(facts),
        *loader(facts, host),
        *writable(facts, host),
        *guests_listed(facts, host),
        *iommu(facts, host),
        *remapping.refused(facts, host),
        *vgpu_host(facts, host),
        *loadable(facts, host),
        *unresolved,
    ]
    errors += bound_by_hand(facts, host, slots)
    for name, slot in slots.items():
        gpu = host.gpus[name]
        for gate in GATES[gpu.use]:
            errors += gate(facts, name, gpu, slot)
    errors += [*console(facts, host.gpus, slots), *staying_cards_apart(facts, host.gpus, slots)]
    return slots, errors + remapping.split_groups(facts, host, slots)


# The gates of a card that leaves the host, at its boot (GIVEN) or in turn with containers (HANDED_OVER); of one that
# stays (STAYING); and of the real groups, after the reboot (VERIFIED).
LEAVING = (
    named_functions,
    one_function,
    virtual_function,
    divided,
    options.migratable,
    graphics.rebound,
    usable,
    resets.refused,
    grouped,
    vital,
    isolation,
    remapping.one_to_one,
    past_proxmox,
)
GIVEN = (*LEAVING, graphics.unstarted, containers)
HANDED_OVER = (handed_over, *LEAVING)
STAYING = (out_of_vms, usable)
GATES = {"vm": GIVEN, "lxc": STAYING, "host": STAYING, "shared": HANDED_OVER}
VERIFIED = (graphics.rebound, grouped, isolation, vital, consoles.freed, remapping.one_to_one)


def remarks(facts: HostFacts, host: Host, slots: dict[str, str]) -> list[str]:
    """Remarks on the cards, which refuse nothing: a sentence each."""
    vm_slots = {name: slot for name, slot in slots.items() if host.gpus[name].use == "vm"}
    return [
        *remapping.remarks(facts, host, slots),
        *(remark for name, slot in vm_slots.items() for remark in _card_remarks(facts, host, name, slot)),
        *_keyboard_remarks(facts, vm_slots),
        *(
            remark
            for name, slot in slots.items()
            if name not in vm_slots
            for remark in (
                *_unknown_binding_remarks(facts, name, slot),
                *_taken_back_remarks(facts, host, name, slots),
                *_named_remarks(facts, host, name, slots),
            )
        ),
    ]


def _card_remarks(facts: HostFacts, host: Host, name: str, slot: str) -> list[str]:
    sentences = []
    functions, in_group = facts.functions(slot), facts.others_in_group(slot)
    left = [device for device in facts.in_slot(slot) if device not in functions and device not in in_group]
    if left := [device for device in left if not _given_apart(facts, slot, device.address)]:
        sentences.append(
            f"gpus.{name}: in the same slot, but left with the host: {'; '.join(map(facts.describe, left))}"
        )
    path = facts.path_of(slot).split(";")
    if len(path) > 1 and not any(_given_apart(facts, slot, address) for address in path):
        sentences.append(
            f"gpus.{name}: its mapping offers {path[0]} alone, since Proxmox VE compares a mapping's id with each of "
            f"its functions; all of them ({', '.join(path)}) go with byAddress"
        )
    owner = next((device.physfn for device in functions), "")
    if owner:
        sentences.append(
            f"gpus.{name} is a virtual function of {owner}: Proxmox VE binds it when its VM starts. What makes it "
            "(sysfs.conf, a module's option) is left to you, and must have made it before the VM starts"
        )
    sentences += resets.remarks(facts, f"gpus.{name}", slot)
    sentences += consoles.remarks(facts, host, f"gpus.{name}", slot)
    holders = facts.holders_of(
        device.address for device in _leaving_functions(facts, slot) if device.driver != "vfio-pci"
    )
    if holders:
        sentences.append(
            f"gpus.{name} is in use by {', '.join(map(str, holders))}: after the reboot the card is gone for them"
        )
    if any(facts.pluggable(device.address) for device in functions):
        sentences.append(
            f"gpus.{name} hangs on an external port (Thunderbolt, USB4): it must be connected and on when the host "
            "starts; homelab binds none that comes later"
            + ("; ids for vfio-pci that were set by hand do bind it, so takeOver leaves them" if host.take_over else "")
        )
    return sentences


def _given_apart(facts: HostFacts, slot: str, address: str) -> bool:
    """Whether a VM has a function of the slot by an option of its own, which doesn't give the card's graphics."""
    graphics_function, node = facts.path_of(slot).partition(";")[0], facts.cluster.node
    return any(
        facts.options_of(address, user.vmid, node).keys() - facts.options_of(graphics_function, user.vmid, node).keys()
        for user in facts.users_of(address, node)
    )


def _keyboard_remarks(facts: HostFacts, vm_slots: dict[str, str]) -> list[str]:
    addresses = {device.address for slot in vm_slots.values() for device in _leaving_functions(facts, slot)}
    keyboards = [keyboard for keyboard in facts.vital if keyboard.kind == "keyboard"]
    leaving_keyboards = [keyboard for keyboard in keyboards if addresses.intersection(keyboard.devices)]
    if not leaving_keyboards or len(leaving_keyboards) < len(keyboards):
        return []
    return [
        f"the host's last keyboard goes with a card: {', '.join(keyboard.name for keyboard in leaving_keyboards)}; "
        "its console takes no input then"
    ]


def _unknown_binding_remarks(facts: HostFacts, name: str, slot: str) -> list[str]:
    """The remark on a card that stays and that something unknown has put on vfio-pci, or kept for it: one sentence or
    none. A rule of udev's leaves a function without a driver where vfio-pci was loaded before."""
    homelab_bound = bound_by_word(facts.cmdline.running)
    bound = [
        f"{device.address} is on {device.driver or 'no driver'}"
        for device in facts.functions(slot)
        if device.driver == "vfio-pci" or (not device.driver and facts.vfio_mentions)
        if device.address not in homelab_bound and not facts.kept_by_hand(device)
    ]
    if not bound or any(user.running for user in facts.users_of(slot, facts.cluster.node)):
        return []
    advice = (
        f"look at {', '.join(facts.vfio_mentions)}"
        if facts.vfio_mentions
        else "driverctl, a script, or a VM that had it"
    )
    return [f"gpus.{name}: {', '.join(bound)}, not by this program, and that stays so: {advice}"]


def _taken_back_remarks(facts: HostFacts, host: Host, name: str, slots: Mapping[str, str]) -> list[str]:
    """The remark on a card that stays and that homelab's word takes from other configuration: one sentence or none."""
    bound = [device for device in facts.functions(slots[name]) if facts.kept_by_hand(device)]
    word = released.word(facts, host, slots)
    if not bound or not word:
        return []
    kept = ", ".join(sorted(released.kept(facts, host, slots)))
    return [
        f"gpus.{name}: {', '.join(device.address for device in bound)} is on vfio-pci by "
        f"{', '.join(facts.who_binds(bound))}: from the next start on {word} on the kernel "
        "command line counts instead, until `pulumi destroy`; nothing else is changed there"
        + (f"; {kept}, which the same ids name, stays on vfio-pci by homelab.vfio=" if kept else "")
    ]


def _named_remarks(facts: HostFacts, host: Host, name: str, slots: Mapping[str, str]) -> list[str]:
    """The remark on a card that stays, and that other configuration than this program's names for vfio-pci, without
    effect so far: one sentence or none."""
    named = [device for device in facts.functions(slots[name]) if facts.named_at_next_boot(device)]
    if not named or any(device.driver == "vfio-pci" for device in named):
        return []
    stronger = released.stronger_than_words(facts, named)
    if released.word(facts, host, slots) and not stronger:
        return []
    return [
        f"gpus.{name}: {', '.join(facts.who_binds(named))} names {', '.join(device.address for device in named)} for "
        "vfio-pci, without effect so far; from the next start on the card may be there, without the host's driver: "
        + (f"{stronger}: take that out there" if stronger else "takeOver: true for the host keeps it with the host")
    ]
