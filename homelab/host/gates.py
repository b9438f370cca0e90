"""The gates of a host, in the order in which they are checked. A gate that can't be decided is closed.

Each gate is a function from facts and settings to refusals, so that a preview and an `up` refuse the same things with
the same words. One setting of its own opens a gate, if it can be opened.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from homelab import earlier
from homelab.cards import consoles, graphics, group_gates, remapping
from homelab.cards.resolving import resolve
from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.facts.host import HostFacts
from homelab.host import handover
from homelab.host.holder_gates import bound_by_hand, left_with_vm, out_of_vms, without_hook
from homelab.settings import Gpu, Host, Vm
from remote_scripts.tools.words import missing_words

# Of April 2024. Every container's dev[n] options are there from 8.1 on.
_OLDEST = (8, 2)


def release(facts: HostFacts) -> Iterator[HomelabError]:
    """A gate: Proxmox VE is new enough. A host without Proxmox VE has no version, and no guests either."""
    if facts.pve and tuple(int(number) for number in re.findall(r"\d+", facts.pve)[:2]) < _OLDEST:
        yield HomelabError(
            wanted="Proxmox VE 8.2 or later on the host",
            found=f"Proxmox VE {facts.pve}",
            why="older ones lack options by which guests get their cards; nothing was changed",
            next="update the host (`apt full-upgrade`), reboot, then run `pulumi up` again",
        )


def writable(facts: HostFacts) -> Iterator[HomelabError]:
    """A gate: the host's cluster, if any, has a quorum. Without it no guest and no mapping can be changed, and no guest
    starts after a reboot."""
    if not facts.cluster.quorate:
        yield HomelabError(
            wanted=f"the node {facts.cluster.node} in a cluster that takes changes",
            found="it has no quorum by `pvecm status`: its corosync is off, or most of the cluster's votes are missing",
            why="/etc/pve can only be read then: guests can't be changed or started, and a reboot would leave them "
            "off; nothing was changed",
            next="see `systemctl status corosync` on this node, and bring the missing nodes back, or wait until they "
            "are; then run `pulumi up` again",
        )


def guests_listed(facts: HostFacts) -> Iterator[HomelabError]:
    """A gate: the lists of running guests were read. A guest that isn't known to run could lose its card, or be
    switched off."""
    if facts.guests.unlisted:
        yield HomelabError(
            wanted="to know which guests run",
            found=f"Proxmox VE's API on the host gives no answer: {facts.guests.unlisted}",
            why="without an answer every guest would look stopped, and its card unused; so nothing was done",
            next="see whether pvedaemon runs (`systemctl status pvedaemon`; the service pve-cluster, a storage or a "
            "guest may hang), and root@pam is enabled (`pveum user modify root@pam --enable 1`); when it answers, run "
            "`pulumi up` again",
        )


def undone(facts: HostFacts) -> list[HomelabError]:
    """A gate: no earlier version has left on the host what this one can't read."""
    return [
        earlier.refusal(f"its agent in /var/lib/homelab/agents/{owner}")
        for owner, version in facts.agents.items()
        if version and not version.startswith(earlier.AGENTS)
    ]


def readable(facts: HostFacts) -> Iterator[HomelabError]:
    """A gate: every file that a decision needs was read. Cards count as unused if no line names them, so a file that
    can't be read would make cards free that a guest has."""
    if facts.unreadable:
        yield HomelabError(
            wanted="to read every file that tells who has a card, and what the host can't do without",
            found="; ".join(facts.unreadable),
            why="a card that a guest uses could look free; so nothing was done",
            next="read it on the host yourself (what is below /etc/pve is served by the service pve-cluster); mend "
            "what keeps it from being read, or remove it, and run `pulumi up` again",
        )


def loader(facts: HostFacts) -> Iterator[HomelabError]:
    """A gate: the host's boot loader is certain."""
    if not facts.loader:
        yield HomelabError(
            wanted="to know which boot loader makes the kernel command line",
            found=facts.loader_clues,
            why="the wrong one would be configured without effect",
            next="see `proxmox-boot-tool status`; remove from /etc/kernel/proxmox-boot-uuids the UUID of each ESP "
            "that the host no longer starts from, and run `pulumi up` again",
        )


def iommu(facts: HostFacts, host: Host) -> Iterator[HomelabError]:
    """A gate: the IOMMU can be on, and VMs can run. The firmware offers it, and no word on the command line switches it
    off for good."""
    if not (host.wants_iommu or host.gives_cards):
        return
    intel = remapping.is_intel(facts)
    name = "Intel VT-d" if intel else "AMD-Vi (IOMMU)"
    if not facts.iommu.tables and facts.iommu.groups == 0:
        yield HomelabError(
            wanted=f"{name} switched on in the firmware",
            found=f"no {'DMAR' if intel else 'IVRS'} table in /sys/firmware/acpi/tables, and no IOMMU group",
            why="without it no PCI device can be given to a guest, whatever the kernel is told",
            next=f"enter the firmware setup (BIOS/UEFI) of the host, switch on {name}, and run `pulumi up` again",
        )
    for word in _switching_off(facts, intel):
        yield HomelabError(
            wanted="an IOMMU that the kernel uses",
            found=f"{word} on the kernel command line, which this program didn't put there",
            why="that word switches the IOMMU off, and no later word switches it on again",
            next=f"remove {word} (/etc/default/grub, or /etc/kernel/cmdline), and run `pulumi up` again",
        )
    if host.gives_cards:
        yield from (one.error for one in kernel_log.of_host(facts, facts.cluster.node) if one.lasts)


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


def whole(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: the card isn't divided among guests: by virtual functions (SR-IOV), NVIDIA's vGPU, or mediated devices.
    vfio-pci refuses a card with SR-IOV on (drivers/vfio/pci/vfio_pci_core.c), and Proxmox VE a mapping of the others
    that isn't marked for mdev."""
    shared = [device for device in facts.functions(slot) if device.vfs]
    switches = [f"`echo 0 >/sys/bus/pci/devices/{device.address}/sriov_numvfs`" for device in shared]
    found = [f"{facts.describe(device)} has {device.vfs} virtual functions (SR-IOV)" for device in shared]
    states = {device.address: facts.card_states.get(device.address) for device in facts.functions(slot)}
    found += [
        f"{address} is set up for NVIDIA's vGPU driver, or mediated devices ({state.divided})"
        for address, state in states.items()
        if state is not None and state.divided
    ]
    if found:
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) as a whole",
            found="; ".join(found),
            why="it can serve several guests, which would lose it; and a card that is divided can't be given away as a "
            "whole",
            next=f"switch that off where it is switched on ({', '.join([*switches, 'the vGPU driver'])}; a module's "
            "option such as i915.max_vfs, sysfs.conf), reboot, and run `pulumi up` again; or give one part to a VM: a "
            f"virtual function as gpus.{name}.address, else by hostpci with mdev= and without these settings",
        )


def usable(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """A gate: the card answers and has its memory, without which no driver and no guest can use it."""
    addresses = [device.address for device in facts.functions(slot)]
    return [trouble.error for trouble in kernel_log.of_card(facts, f"gpus.{name}", addresses) if trouble.lasts]


def vgpu_host(facts: HostFacts, host: Host) -> Iterator[HomelabError]:
    """A gate: NVIDIA's driver isn't installed over NVIDIA's vGPU driver."""
    if host.nvidia is not None and facts.vgpu_signs:
        yield HomelabError(
            wanted="NVIDIA's driver on the host (nvidia)",
            found=f"NVIDIA's vGPU driver: {'; '.join(facts.vgpu_signs)}",
            why="replacing that licensed driver would take the cards from the VMs that share them",
            next="take nvidia of this host out of the settings; or remove the vGPU driver yourself (its installer "
            "has --uninstall) and run `pulumi up` again",
        )


def loadable(facts: HostFacts, host: Host) -> Iterator[HomelabError]:
    """A gate: nothing on the host keeps NVIDIA's driver, or vfio-pci, from being loaded by its name, as tools do that
    give all cards to VMs, or to none. A mere `blacklist nvidia` doesn't: this program loads it by its name."""
    if host.nvidia is not None:
        useless = "this keeps the kernel from ever loading the driver, so installing it would be useless"
        yield from _kept_off(facts, "nvidia", "nvidia", "NVIDIA's driver on the host (nvidia)", useless)
    if host.gives_cards:
        useless = "this keeps the kernel from ever loading vfio-pci, so the card would be left without a driver"
        yield from _kept_off(facts, "vfio", _OF_VFIO, "vfio-pci for the cards of VMs (gpus)", useless)


_OF_VFIO = "vfio|vfio[-_]pci|vfio[-_]pci[-_]core|vfio[-_]iommu[-_]type1"


def _kept_off(facts: HostFacts, name: str, modules: str, wanted: str, why: str) -> Iterator[HomelabError]:
    """The refusal if something keeps modules from ever being loaded: the kernel refuses them (kernel/module/main.c);
    modprobe runs a command in place of loading them; or modprobe loads another name, as an alias of the configuration
    comes before a module's own name, and no module has the name `off`.

    :param modules: a regular expression.
    """
    never_loaded = re.compile(rf": (?:install (?:{modules}) (?:\S*/)?(?:false|true|:)|alias (?:{modules}) off)(?:\s|$)")
    keeps_off = re.compile(rf"module_blacklist=(?:\S*,)?(?:{modules})(?:,\S*)?")
    # A word that was taken away counts until the next boot.
    words = dict.fromkeys(f"{facts.cmdline.others} {facts.cmdline.running}".split())
    found = [line for line in facts.module_lines if never_loaded.search(line)]
    found += [f"{word} on the kernel command line" for word in words if keeps_off.fullmatch(word)]
    if found:
        yield HomelabError(
            wanted=wanted,
            found="; ".join(found),
            why=f"{why}; nothing was changed",
            next=f"take {name} out there; a word also takes {group_gates.new_entries(facts)}, and a reboot; then run "
            "`pulumi up` again",
        )


_GIVES_BACK = " (the boot entry 'without GPU passthrough' gives the screen back)"


def console(facts: HostFacts, gpus: dict[str, Gpu], slots: dict[str, str]) -> Iterator[HomelabError]:
    """A gate: neither a card that a VM gets nor a member of its groups is the host's screen."""
    leaving = {name: slot for name, slot in slots.items() if gpus[name].may_leave}
    for name, slot in leaving.items():
        gpu, screens = gpus[name], consoles.screens(facts, group_gates.leaving_functions(facts, slot))
        if gpu.allow_console or not screens:
            continue
        others = consoles.instead(facts, [*leaving.values(), screens[0].slot])
        sign = "boot_vga" if screens[0].boot_vga else "the kernel draws into its memory"
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) not to be the host's console",
            found=f"the host's screen is {facts.describe(screens[0])}, of the card or its "
            f"{group_gates.predicted(facts)}IOMMU group ({sign})",
            why="once it is bound, the host shows nothing on its screen after the boot menu; it can be reached "
            "over the network only",
            next=(f"make {others} the primary one in the firmware, or " if others else "")
            + f"accept it with gpus.{name}.allowConsole: true"
            + ("" if any(map(facts.kept_by_hand, screens)) else _GIVES_BACK),
        )


# Minor numbers from here on are no cards of NVIDIA's major (NV_MINOR_DEVICE_NUMBER_REGULAR_MAX, nv-chardev-numbers.h:
# 247).
_NVIDIA_MINORS = 248


def containers(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: no container uses the card, or another one of its groups, through the host's driver."""
    addresses = {device.address for device in group_gates.leaving_functions(facts, slot)}
    drm_nodes = {address: facts.drm_nodes(address) for address in facts.drm if address in addresses}
    nodes = {address: names for address, names in drm_nodes.items() if not facts.by_address[address].is_nvidia}
    for address, minor in facts.nvidia_minors.items():
        if address in addresses:
            nodes[address] = [f"/dev/nvidia{minor}"]
    if any(facts.by_address[address].driver == "nvidia" for address in addresses - facts.nvidia_minors.keys()):
        # The reading has no minor number for this card: it may be any that no other card has.
        minors = set(range(_NVIDIA_MINORS)).difference(facts.nvidia_minors.values())
        nodes[""] = [f"/dev/nvidia{minor}" for minor in minors]
    # All of /dev/dri is given for the sake of another card: NVIDIA's driver has nodes of its own.
    found = facts.containers_having(nodes, drm_nodes)
    if users := [config.id for config in found if config.id not in gpu.allow_containers]:
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) free to be taken from the host",
            found=f"containers that use it: {', '.join(map(str, users))}",
            why="on vfio-pci the card has no node in /dev any more: these containers would not start, or run without "
            "it",
            next=f"take the card out of them first, or accept it with gpus.{name}.allowContainers: {users}",
        )


def past_proxmox(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: no VM has the card by options of QEMU itself (`args`), of which Proxmox VE knows nothing."""
    addresses = {device.address for device in facts.functions(slot)}
    for guest in facts.guests.configs:
        if given := sorted(guest.by_args & addresses):
            yield HomelabError(
                wanted=f"gpus.{name} ({facts.card(slot)}) given to VMs by Proxmox VE (hostpci)",
                found=f"VM {guest.id} ({guest.values.get('name', '')}) has {', '.join(given)} by its option args "
                "(-device vfio-pci)",
                why="Proxmox VE knows nothing of such a device: it would give the card to another VM, or to this one a "
                "second time, and the start would fail",
                next=f"take that device out of the option args (`qm config {guest.id}` shows all of it), then run "
                "`pulumi up` again",
            )


def handed_over(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: a card that containers and a VM have in turn is NVIDIA's, as a whole."""
    display = facts.display_of(slot)
    if display is None or not display.is_nvidia:
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) in turn for containers and a VM (use: shared)",
            found="it is not one of NVIDIA's, as a whole",
            why="this program knows only for NVIDIA's driver when a card can be taken from it while the host runs",
            next=f"set gpus.{name}.use: vm, or lxc",
        )


def check_host(facts: HostFacts) -> list[HomelabError]:
    """Checks the gates of a host as it is, whatever is wanted of it."""
    return [
        *release(facts),
        *undone(facts),
        *readable(facts),
        *loader(facts),
        *writable(facts),
        *guests_listed(facts),
    ]


def check(
    facts: HostFacts, host: Host, vms: Collection[Vm] = (), *, card: str = "", is_whole: bool = True
) -> tuple[dict[str, str], list[HomelabError]]:
    """Checks all gates.

    :param vms: of this host.
    :param card: the only one that is asked about, by its name in the settings; empty: all are.
    :param is_whole: whether the settings say all that is wanted of the host, so that a card that they lack leaves.
    :returns: the slot of each card that could be resolved, and every refusal.
    """
    facts, gpus = remapping.to_be(facts, host), {card: host.gpus[card]} if card else host.gpus
    slots, unresolved = resolve(facts, gpus)
    errors = [
        *check_host(facts),
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
    errors += [
        *console(facts, host.gpus, slots),
        *group_gates.staying_cards_apart(facts, host.gpus, slots),
        *group_gates.split_groups(facts, host, slots),
    ]
    if is_whole and not unresolved:
        before = {one.slot for one in facts.display_devices if facts.bound_by_homelab(one.address)}
        errors += left_with_vm(facts, host, slots, before)
    # Before the restart, adopted VMs get the hookscript (CardHandover); a created one gets it afterwards (GpuVm).
    with_hook = handover.takers(host, [vm for vm in vms if vm.create is None])
    return slots, [*errors, *without_hook(facts, host, slots, with_hook)]


# The gates of a card that leaves the host, at its boot (GIVEN) or in turn with containers (HANDED_OVER); of one that
# stays (STAYING); and of the real groups, after the reboot (VERIFIED).
LEAVING = (
    whole,
    graphics.rebound,
    usable,
    group_gates.grouped,
    group_gates.vital,
    group_gates.isolation,
    remapping.one_to_one,
    past_proxmox,
)
GIVEN = (*LEAVING, graphics.unstarted, containers)
HANDED_OVER = (handed_over, *LEAVING)
STAYING = (out_of_vms, usable)
GATES = {"vm": GIVEN, "lxc": STAYING, "host": STAYING, "shared": HANDED_OVER}
VERIFIED = (
    graphics.rebound,
    group_gates.grouped,
    group_gates.isolation,
    group_gates.vital,
    consoles.freed,
    remapping.one_to_one,
)
