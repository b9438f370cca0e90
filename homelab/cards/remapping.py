"""The settings about the IOMMU on a host: their words for its next boot, their refusals, and remarks on their risks.

Sources are named where a rule is the kernel's own. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from homelab.errors import HomelabError
from homelab.facts import acs
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts
from homelab.settings import Gpu, Host
from remote_scripts.pve import reservations
from remote_scripts.pve.properties import overlap

# The module's option as a word of the command line: modprobe obeys it in the initramfs and later, and it needs no file
# (ADR 1).
UNSAFE_INTERRUPTS = "vfio_iommu_type1.allow_unsafe_interrupts=1"
# The kernel doesn't know this value (drivers/iommu/amd/init.c, parse_amd_iommu_options): its IOMMU is on without it.
AMD = "amd_iommu=on"
# Each takes the host's interrupts from the IOMMU (drivers/iommu/irq_remapping.c).
_PLAIN_INTERRUPTS = {"intremap=off", "nointremap"}


def words(facts: HostFacts, host: Host) -> str:
    """The words about the IOMMU that a host's command line is to have, separated by spaces."""
    vendor = AMD
    if is_intel(facts):
        vendor = "intel_iommu=on,relax_rmrr" if host.iommu.relax_rmrr else "intel_iommu=on"
    wanted = {vendor: host.wants_iommu, "iommu=pt": host.bypasses_iommu}
    # If no VM gets a card any more and the settings don't say otherwise, homelab's words stay: taking them away would
    # need a reboot.
    if not host.gives_cards and host.iommu.enable is None:
        wanted |= {
            word: word in facts.own_words for word in (vendor, *(["iommu=pt"] * (host.iommu.passthrough is None)))
        }
    if host.iommu.acs_override:
        wanted[f"{acs.WORD}={host.iommu.acs_override}"] = True
    wanted[UNSAFE_INTERRUPTS] = host.iommu.allow_unsafe_interrupts and remaps_interrupts(facts) is False
    return " ".join(word for word, is_wanted in wanted.items() if is_wanted)


def to_be(facts: HostFacts, host: Host) -> HostFacts:
    """The facts with the words about the IOMMU of the next boot's command line."""
    return replace(facts, planned_words=words(facts, host))


def is_intel(facts: HostFacts) -> bool:
    return facts.cpu_vendor == "GenuineIntel"


def _leaving_interrupts_plain(cmdline: str) -> list[str]:
    return [word for word in cmdline.split() if word in _PLAIN_INTERRUPTS]


def remaps_interrupts(facts: HostFacts) -> bool | None:
    """Whether the IOMMU remaps interrupts, now and in the next boot; None: unknown before the IOMMU is on."""
    if _leaving_interrupts_plain(facts.next_cmdline):
        return False
    if _leaving_interrupts_plain(facts.cmdline.running):
        return None
    if facts.iommu.interrupts == "remapped":
        return True
    return False if facts.iommu.groups and facts.iommu.interrupts == "plain" else None


def without_remapping(facts: HostFacts) -> bool:
    """Whether other configuration than this program's lets VFIO give cards away without interrupt remapping: the loaded
    module's option, or a word on the command line."""
    by_homelab = UNSAFE_INTERRUPTS in facts.own_words
    return (facts.unsafe_interrupts and not by_homelab) or UNSAFE_INTERRUPTS in facts.cmdline.others.split()


# -- what stands against the settings
# ------------------------------------------------------------------------------------------
def relaxes_rmrr(facts: HostFacts) -> bool:
    """Whether the kernel knows relax_rmrr: Proxmox VE's do (pve-kernel patch 0009)."""
    return is_intel(facts) and "-pve" in facts.kernel


def refused(facts: HostFacts, host: Host) -> Iterator[HomelabError]:
    """A gate: interrupts are remapped, or may stay plain. VFIO gives no card away without remapping
    (drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group)."""
    is_plain = remaps_interrupts(facts) is False and not without_remapping(facts)
    if host.gives_cards and is_plain and not host.iommu.allow_unsafe_interrupts:
        off = " ".join(_leaving_interrupts_plain(facts.next_cmdline))
        yield HomelabError(
            wanted="interrupt remapping by the IOMMU",
            found=f"{off} on the kernel command line" if off else "none on this host (/proc/interrupts)",
            why="without it a guest with a card could raise any interrupt of the host, and VFIO gives no card away: "
            "the VM wouldn't start",
            next=(f"take {off} out" if off else "update the firmware, and look there for VT-d or AMD-Vi and x2APIC")
            + "; only for guests that you trust as much as the host: iommu.allowUnsafeInterrupts: true",
        )


def one_to_one(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: the firmware wants no memory mapped 1:1 for the card's groups, since the kernel gives no such group to a
    VM (from 6.6 on, whatever the IOMMU; commit a48ce36e2786).

    The kernel sets require_direct for each device with a reserved region of the type `direct`
    (iommu_create_device_direct_mappings), whatever the group's default domain is, and refuses the blocking domain that
    VFIO begins with (__iommu_device_set_domain; drivers/iommu/iommu.c). Hence iommu=pt makes no difference.
    """
    ranges = facts.mapped_one_to_one(slot)
    relaxed = relaxes_rmrr(facts) and any(
        word.startswith("intel_iommu=") and "relax_rmrr" in word.split("=")[1].split(",")
        for word in facts.next_cmdline.split()
    )
    if ranges and not relaxed and not gpu.allow_direct_mapping and not runs_in_vm(facts, slot):
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) as the kernel gives it to a VM",
            found=f"the firmware wants memory mapped 1:1 for its IOMMU group: {'; '.join(ranges)}",
            why="the kernel refuses every VM such a group: QEMU ends with 'Failed to set group container: Invalid "
            "argument'. iommu=pt makes no difference to that",
            next="update the board's firmware (BIOS), and tell its maker if that doesn't help; put the card into "
            "another slot"
            + ("; as the last resort iommu.relaxRmrr: true" if relaxes_rmrr(facts) else "")
            + f"; if your kernel gives it away all the same, gpus.{name}.allowDirectMapping: true",
        )


# Predicted groups may be too large; once the IOMMU is on, the kernel's own are read.
SWITCH_ON = (
    "; or run it with iommu.enable: true and without the card first: once the IOMMU is on, the kernel is asked instead"
)


def runs_in_vm(facts: HostFacts, slot: str) -> bool:
    """Whether a VM runs with the card, which proves that the kernel gives it away. qemu-server's reservation of a
    running VM has its process (`pid`).

    VMs' configurations count only if there is no such reservation: a mapping may stand for several cards, and the VM
    may have another one.
    """
    path = facts.path_of(slot)
    running = [known.address for known in reservations.parse(facts.guests.reservations) if known.runs]
    if running:
        return any(overlap(address, path) for address in running)
    return any(user.running for user in facts.guests.users_of(path, facts.cluster.node))


def taken_apart(facts: HostFacts, slot: str) -> list[Device]:
    """The functions that only the override keeps out of the card's IOMMU groups, without bridges."""
    group_addresses = {device.address for device in facts.group_of(slot)}
    return [
        device
        for device in facts.group_of(slot, acs.Override())
        if device.address not in group_addresses and not device.is_bridge
    ]


def override_hint(facts: HostFacts, slot: str) -> str:
    """The hint to iommu.acsOverride for a card that isn't alone in its group; empty: it is set already, or the kernel
    doesn't know it."""
    needed_addresses = {address for need in facts.vital if need.kind != "keyboard" for address in need.devices}
    others = {device.address for device in facts.others_in_group(slot)}
    if facts.acs_override or not acs.knows_override(facts.kernel):
        return ""
    danger = "a guest with the card can then reach what shares its group past the IOMMU"
    if needed_addresses & others:
        return f"; iommu.acsOverride is no way out, and refused here: {danger}, and so write to the host's own disk"
    return f"; as the last resort iommu.acsOverride: downstream ({danger}; docs/settings-host.md)"


# -- what is to be said before it is done
# ----------------------------------------------------------------------------------------
def remarks(facts: HostFacts, host: Host, slots: dict[str, str]) -> Iterator[str]:
    """Remarks on risks of the words, and on settings without effect: a sentence each."""
    if override := facts.acs_override:
        by = "iommu.acsOverride" if host.iommu.acs_override else "set by hand, and left as it is"
        yield (
            f"{acs.WORD}={override} ({by}): devices that are taken apart by it can reach each other's memory past the "
            "IOMMU (peer-to-peer DMA); a guest that you don't trust could use that"
        )
        for name, slot in slots.items():
            split_off = "; ".join(map(facts.describe, taken_apart(facts, slot)))
            if host.gpus[name].may_leave and split_off:
                yield f"gpus.{name}: without it, its IOMMU group has as well: {split_off}"
    remapped, by_hand = remaps_interrupts(facts), without_remapping(facts)
    if remapped is None and host.iommu.allow_unsafe_interrupts:
        yield (
            "iommu.allowUnsafeInterrupts has no effect yet: whether this host remaps interrupts can't be told before "
            "its IOMMU is on; run `pulumi up --refresh` after the reboot"
        )
    if remapped is False and (host.iommu.allow_unsafe_interrupts or (host.gives_cards and by_hand)):
        yield (
            f"{UNSAFE_INTERRUPTS}{' (set by hand, and left as it is)' if by_hand else ''}: a guest with a card can "
            "raise any interrupt of the host, which can crash it or worse: give cards only to guests that you trust as "
            "much as the host"
        )
    if host.iommu.relax_rmrr and relaxes_rmrr(facts):
        yield (
            "iommu.relaxRmrr: the kernel ignores which memory the firmware uses with devices (RMRR); if the firmware "
            "really uses it, data can be lost"
        )
