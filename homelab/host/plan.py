"""The plan of a host from facts and settings: words on the command line, functions on vfio-pci; the drift from it; the
plan as text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from homelab.cards import consoles, graphics, released, remapping, resolving
from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.facts.classes import NVIDIA_DRIVERS
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts, bound_by_word
from homelab.host import gates
from homelab.host.reboot import drivers_after, in_short, stopping
from homelab.settings import Host, Vm
from homelab.shapes import CardPlan, HostPlan
from remote_scripts.both.reboot import Planned
from remote_scripts.tools.words import missing_words

# Drivers that would claim an NVIDIA card. Blacklisted only where one goes to a VM and none stays with the host, as belt
# and braces: the binding doesn't need it. Other makers' drivers never are (NVIDIA_DRIVERS).
NVIDIA_BLACKLIST = f"modprobe.blacklist={','.join(NVIDIA_DRIVERS)}"

# What gives a device to a guest.
VFIO_MODULES = ("vfio", "vfio_iommu_type1", "vfio_pci")


Wanted = HostPlan


def wanted(facts: HostFacts, host: Host, vms: Collection[Vm] = ()) -> Wanted:
    """The plan of a host with these facts and settings, for the cards that are found. Whether it may be carried out,
    the gates say (gates.py).

    :param vms: of this host.
    """
    slots, _ = resolving.resolve(facts, host.gpus)
    gpus = {name: card_plan(facts, host, name, slot, vms) for name, slot in slots.items()}
    functions = {
        function["address"]: function["id"]
        for gpu in gpus.values()
        # A virtual function is made while the host runs: Proxmox VE binds it when its VM starts.
        if gpu["use"] == "vm" and "." not in gpu["slot"]
        for function in gpu["functions"]
    }
    by_hand = sorted(facts.bound_by_hand() & set(functions))
    if host.take_over:
        # What can be plugged in later needs its ids with vfio-pci: homelab's word is for what is there at the boot.
        by_hand = [address for address in by_hand if facts.pluggable(address)]
    by_homelab = {address: ids for address, ids in functions.items() if address not in by_hand}
    return Wanted(
        iommu_words=remapping.words(facts, host),
        vfio_words=" ".join(_vfio_words(facts, host, slots, by_homelab, set(functions))),
        functions=functions,
        by_hand=by_hand,
        gpus=gpus,
    )


def _vfio_words(
    facts: HostFacts, host: Host, slots: Mapping[str, str], by_homelab: dict[str, str], bound: set[str]
) -> Iterator[str]:
    if named := by_homelab | released.kept(facts, host, slots):
        yield "homelab.vfio=" + ",".join(f"{address}={ids}" for address, ids in sorted(named.items()))
    # If homelab has configured it already, it stays: taking it away would need a reboot.
    applies = NVIDIA_BLACKLIST in facts.own_words or any(facts.by_address[address].is_nvidia for address in bound)
    one_stays = any(device.is_nvidia and device.address not in bound for device in facts.display_devices)
    if by_homelab and applies and not one_stays:
        yield NVIDIA_BLACKLIST
    yield from consoles.words(facts, host, sorted(by_homelab))
    if releasing := released.word(facts, host, slots):
        yield releasing


def card_plan(facts: HostFacts, host: Host, name: str, slot: str, vms: Collection[Vm] = ()) -> CardPlan:
    return {
        "name": next((facts.model(device) for device in facts.functions(slot) if device.is_display), ""),
        "slot": slot,
        "path": facts.path_of(slot),
        "use": host.gpus[name].use,
        "functions": [
            {"address": device.address, "id": device.id, "subsystem": device.subsystem, "class": device.class_code}
            for device in _needed(facts, host, name, slot, vms)
        ],
        "iommuGroup": next((device.group for device in facts.functions(slot)), None),
        # Proxmox VE is told to leave the driver of a card alone that is handed over, if it knows that option: then only
        # the handover unbinds it.
        "keep": host.gpus[name].use == "shared" and not [*graphics.keep_refused(facts, name)],
    }


def _needed(facts: HostFacts, host: Host, name: str, slot: str, vms: Collection[Vm]) -> list[Device]:
    """The functions of a card that its use needs. Where a mapping offers only the graphics function, a VM gets another
    one if the settings name it or give the card by address, or if it is in the same IOMMU group, of which the host can
    keep none. What its owner gives it by another line Proxmox VE binds at its start. One that this program binds
    already stays bound: only a reboot would take that back."""
    offered, *others = facts.path_of(slot).split(";")
    gpu, functions = host.gpus[name], facts.functions(slot)
    by_address = any(use.gpu == name and use.by_address for vm in vms for use in vm.gpus)
    if not others or gpu.use != "vm" or gpu.functions or by_address:
        return functions
    needed = {offered, *bound_by_word(facts.cmdline.configured)} | {one.address for one in facts.group_of(offered)}
    return [device for device in functions if device.address in needed]


def returns_to_driver(slot: str, facts: HostFacts, gpus: Mapping[str, CardPlan], vfio_words: str) -> bool:
    """Whether the settings give a card back to the host's driver that this program has bound to vfio-pci, or whose
    binding by hand it takes over.

    :param gpus: the host's cards of the settings, as HostProbe has them.
    :param vfio_words: of its next boot.
    """
    bound_slots = {address.rpartition(".")[0] for address in bound_by_word(facts.cmdline.running)}
    takes_over = released.WORD in vfio_words and any(map(facts.kept_by_hand, facts.functions(slot)))
    stays = any(card["slot"] == slot and card["use"] != "vm" for card in gpus.values())
    return stays and (slot in bound_slots or takes_over)


def driver_after(device: Device, facts: HostFacts, want: Wanted) -> str:
    """The driver of a card's function once the plan is carried out."""
    is_released = device.driver == "vfio-pci" and returns_to_driver(device.slot, facts, want.gpus, want.vfio_words)
    return "vfio-pci" if device.address in want.functions else "the host's driver" if is_released else device.driver


def drift(facts: HostFacts, want: Wanted) -> dict[str, list[str]]:
    """Each layer of a host -> its drift from `want`, a sentence each.

    Only a reboot repairs `boot`. `nodes`: NVIDIA's device nodes; `cards`: the service for those of other makers' cards;
    `values`: how cards are reset and sleep; `handover`: what hands them over.
    """
    # What was on trial is no more: also where the words that remain are all there.
    ended = [facts.rolled_back] if facts.rolled_back else []
    return {
        "iommu": [
            *ended,
            *_changed_files(facts, "iommu"),
            *_lost_words(facts, want.iommu_words),
            *_unfinished(facts, "boot", "the boot configuration"),
        ],
        "vfio": [
            *ended,
            *_changed_files(facts, "vfio"),
            *_lost_words(facts, want.vfio_words),
            *_lost_binding(facts, want),
            *_unfinished(facts, "initramfs", "the initramfs"),
        ],
        "boot": [*(facts.boot_lacks or ()), *ended],
        "nodes": _lost_service(
            facts, "nodes", "homelab-nvidia-nodes.service", facts.nvidia.nodes_enabled, facts.nvidia.missing_nodes
        ),
        "cards": _lost_service(facts, "cards", "homelab-card-nodes.service", facts.cards_enabled),
        "handover": [
            *_lost_service(facts, "handover", "homelab-handover.service or its timer", facts.handover.enabled),
            *(
                f"VM {vmid} has lost the hookscript that hands it its card: the host's timer sets it again within a "
                "minute. Leave the VM off until then, or containers that use the card hang. To be rid of it for good, "
                "take the card out of the VM in the settings and run `pulumi up`"
                for vmid in facts.handover.lost_hooks
            ),
        ],
        "values": [*_changed_files(facts, "values"), *facts.lost_values],
    }


def _lost_service(facts: HostFacts, layer: str, units: str, is_enabled: bool, missing: Sequence[str] = ()) -> list[str]:
    """The drift of a layer that has a service, if it is installed.

    :param missing: paths that the service makes, and that aren't there.
    """
    if not any(file.layer == layer for file in facts.managed):
        return []
    lost = [f"{units} is not enabled"] * (not is_enabled) + [f"{path} is not there" for path in missing]
    return _changed_files(facts, layer) + lost


def _changed_files(facts: HostFacts, layer: str) -> list[str]:
    state_texts = {"changed": "was changed by hand", "missing": "is gone"}
    return [
        f"{file.path} {state_texts[file.state]}"
        for file in facts.managed
        if file.layer == layer and file.state in state_texts
    ]


def _lost_words(facts: HostFacts, words: str) -> list[str]:
    if lost := missing_words(words, facts.cmdline.configured):
        return [f"{' '.join(lost)} is not on the configured kernel command line"]
    lost = missing_words(words, facts.cmdline.generated) if facts.cmdline.generated else []
    return [f"{' '.join(lost)} is not in the generated boot configuration (grub.cfg)"] if lost else []


def _unfinished(facts: HostFacts, step: str, result: str) -> list[str]:
    # The drift by a step that an interrupted run didn't reach.
    return [f"{result} was not made after the last change"] if step in facts.pending else []


def misplaced(facts: HostFacts, want: Wanted) -> list[str]:
    """Functions that aren't at their address in the plan, a sentence each: hardware was changed, or buses were
    renumbered."""
    differences = []
    for address, ids in want.functions.items():
        device = facts.by_address.get(address)
        if device is None or device.id != ids:
            differences.append(f"{address} is {device.id if device else 'not there'}, not {ids}")
    return differences


def stale(facts: HostFacts, want: Wanted) -> bool:
    """Whether a plan must be made again: hardware was changed, or a binding that was made by hand is gone."""
    return bool(misplaced(facts, want)) or not facts.bound_by_hand().issuperset(want.by_hand)


def _lost_binding(facts: HostFacts, want: Wanted) -> list[str]:
    differences = misplaced(facts, want)
    if want.binds:
        if not any(file.path.endswith("/init-top/homelab-vfio") for file in facts.managed):
            differences.append("the initramfs script for vfio-pci is not there")
        differences += [f"the initramfs of {kernel} is older than its script" for kernel in facts.stale_initramfs]
    return differences


def verify(facts: HostFacts, host: Host, want: Wanted) -> Iterator[HomelabError]:
    """The verification after the reboot: an error for each difference between the running system and the plan."""
    yield from gates.readable(facts)
    if "boot" in facts.pending:
        yield HomelabError(
            wanted="the confirmed boot as the host's default",
            found="its boot menu could not be made (often: a full /boot or ESP); the log says why",
            why="until it is made, this host starts with an entry that was only for its trial, or with what it had "
            "before",
            next="make room or mend what `homelab doctor log` shows, then run `pulumi up --refresh`",
        )
    if lost := missing_words(want.words, f"{facts.cmdline.running} {remapping.AMD}"):
        yield HomelabError(
            wanted=f"{' '.join(lost)} on the running kernel's command line",
            found=facts.cmdline.running,
            why="the kernel that runs was started from another boot entry, or from a configuration that was not "
            "generated again",
            next="reboot into the first boot entry (a pinned kernel: `proxmox-boot-tool kernel list`), then "
            "`pulumi up --refresh`",
        )
    leaving = {name: gpu["slot"] for name, gpu in want.gpus.items() if gpu["use"] in ("vm", "shared")}
    if leaving:
        yield from without_groups(facts)
    missing = [name for name in VFIO_MODULES if name not in facts.modules]
    if want.functions and missing:
        yield HomelabError(
            wanted="the modules vfio, vfio_iommu_type1 and vfio_pci loaded",
            found=f"missing: {', '.join(missing)}",
            why="without them no device can be given to a guest",
            next="try `modprobe vfio-pci` and read `dmesg | tail`; then `pulumi up --refresh`",
        )
    yield from _verify_drivers(facts, want)
    if facts.iommu.groups:
        for name, slot in leaving.items():
            for gate in gates.VERIFIED:
                yield from gate(facts, name, host.gpus[name], slot)


def without_groups(facts: HostFacts) -> Iterator[HomelabError]:
    """The error for a host whose kernel uses no IOMMU."""
    if facts.iommu.groups == 0:
        yield HomelabError(
            wanted="IOMMU groups in /sys/kernel/iommu_groups",
            found="none; the kernel says: " + (kernel_log.excerpt(facts.iommu.kernel_log) or "nothing about an IOMMU"),
            why="only groups prove that the IOMMU works ('DMAR: IOMMU enabled' is printed without one, too)",
            next="switch on VT-d or AMD-Vi (IOMMU) in the firmware, then `pulumi up --refresh`",
        )


def _verify_drivers(facts: HostFacts, want: Wanted) -> Iterator[HomelabError]:
    wrong = misplaced(facts, want) + [
        f"{device.address} is on {device.driver or 'no driver'}, not on vfio-pci"
        for device in facts.devices
        if device.address in want.functions and device.driver != "vfio-pci"
    ]
    if wrong:
        yield HomelabError(
            wanted=f"every function on vfio-pci: {', '.join(want.functions)}",
            found="; ".join(wrong),
            why="a card with a function on a host driver can't be given to a guest",
            next="read `dmesg | grep homelab-vfio` on the host; then `pulumi up --refresh`",
        )


@dataclass(frozen=True)
class PlannedReboot(Planned):
    """What the layer reboot answers, for people: whether the host must be rebooted."""

    def in_short(self, cards: Mapping[str, CardPlan]) -> str:
        """The reboot and its reasons in few words.

        :param cards: of the plan.
        """
        if self.reboot == "no":
            return "not needed"
        stops = stopping(self, again=self.reboot != "manual")
        by = "by you (reboot: manual)" if self.reboot == "manual" else "one"
        waits = f"; it waits: {self.cluster}" if self.cluster else ""
        starts = f"; it starts kernel {self.kernel}" if self.kernel else ""
        return f"{by}, because {in_short(self.reasons, cards)}; {stops}{starts}{waits}"


@dataclass(frozen=True)
class PlannedFile:
    """A file in the answer of a layer's `plan`. `how`: a key of FILES; `what`: a path, or several in words; `diff`:
    from a file that others have written or edited, as `diff -u` prints it; empty: none."""

    how: str
    what: str
    diff: str = ""

    @property
    def named(self) -> str:
        """The file and its change."""
        return f"{FILES[self.how]} {self.what}"

    def __str__(self) -> str:
        """The same, then the diff without its head, cut to DIFF_LINES."""
        changed = [line for line in self.diff.splitlines() if not line.startswith(("--- ", "+++ "))]
        if len(changed) > DIFF_LINES:
            changed = [*changed[:DIFF_LINES], f"… {len(changed) - DIFF_LINES} more lines"]
        return "\n      ".join([f"  {self.named}", *changed])


# How many lines of a file's diff a plan shows.
DIFF_LINES = 16
# Change of a file -> the verb for the plan. Given back: the original file; made: from other files.
FILES = {
    "new": "writes",
    "changed": "changes",
    "given back": "gives back",
    "removed": "removes",
    "made": "rebuilds",
    "kept": "keeps",
}


def describe(
    name: str,
    facts: HostFacts,
    host: Host,
    want: Wanted,
    reboot: PlannedReboot | None,
    files: Sequence[PlannedFile] = (),
    follows: str = "",
    remarks: Sequence[str] = (),
) -> str:
    """The plan as text: command line before -> after, files, each function with its driver before -> after, the reboot.

    :param remarks: on the host and its cards, a sentence each.
    :param reboot: None: the host wasn't asked.
    :param follows: the node of the cluster that is restarted before this one; empty: none.
    """
    before = facts.cmdline.configured
    after = " ".join([*facts.cmdline.others.split(), *missing_words(want.words, facts.cmdline.others)])
    lines = [
        f"{name}: {facts.kernel}, Proxmox VE {facts.pve or 'not found'}, {facts.cpu_vendor}, "
        f"boot loader {facts.loader}",
        f"  command line: {before.strip()}"
        + ("  (stays)" if set(before.split()) == set(after.split()) else f"\n             -> {after}"),
    ]
    lines += dict.fromkeys(map(str, files))  # of two layers that touch the same file, once
    moved = drivers_after(reboot.reasons) if reboot else {}
    for gpu, card in want.gpus.items():
        lines.append(f"  {gpu}: {facts.card(str(card['slot']))}, for {card['use']}:")
        for device in facts.functions(card["slot"]):
            after = moved.get(device.address) or driver_after(device, facts, want)
            drivers = f"{device.driver or 'no driver'} -> {after or 'no driver'}"
            by_hand = ", bound by hand" if device.address in want.by_hand else ""
            lines.append(f"    {device.address} [{device.id}] {drivers}{by_hand}")
        lines += [f"    {line}" for line in _groups(facts, card["slot"])]
        reset_methods = facts.resets_of(facts.functions(card["slot"]))
        lines += [f"    reset: {reset_methods}"] if reset_methods and card["use"] == "vm" else []
    lines += [f"  note: {remark}" for remark in remarks]
    order = f"; after {follows}, if that one is: one node of the cluster at a time" if follows else ""
    if reboot:
        lines.append(f"  reboot: {reboot.in_short(want.gpus)}{order if reboot.reboot == 'yes' else ''}")
    return "\n".join(lines)


def _groups(facts: HostFacts, slot: str) -> list[str]:
    """A line for each IOMMU group of the card's functions, or for the predicted one."""
    members = facts.others_in_group(slot)
    if not facts.iommu.groups:
        return [f"IOMMU group none yet; predicted with it: {_named(facts, members)}"]
    of_group: dict[int | None, list[str]] = {}
    for device in facts.functions(slot):
        of_group.setdefault(device.group, []).append(device.address)
    return [
        ("" if len(of_group) == 1 else f"{', '.join(addresses)}: ")
        + f"IOMMU group {'none' if group is None else group}, with it: "
        + _named(facts, [device for device in members if len(of_group) == 1 or device.group == group])
        for group, addresses in of_group.items()
    ]


def _named(facts: HostFacts, devices: Sequence[Device]) -> str:
    return "; ".join(map(facts.describe, devices)) or "nothing else"
