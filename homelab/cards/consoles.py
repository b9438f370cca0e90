"""A card that is the host's screen: the kernel's framebuffer in its memory, the word that keeps it out, and the ways to
log in without the screen.

The kernel draws into the firmware's framebuffer (BOOTFB in /proc/iomem) before a card has a driver. If that still has
the card's memory after vfio-pci has bound the card, no guest can use the card. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from homelab.cards import remapping
from homelab.errors import HomelabError
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts
from homelab.settings import Gpu, Host

# Without this step of its start the kernel makes no device of the firmware's picture (drivers/firmware/sysfb.c).
NO_FRAMEBUFFER = "initcall_blacklist=sysfb_init"
_SET_OFF = "set bootFramebuffer: off for this host, after you have made sure of another way in than its screen"
_WAYS_IN = (
    "log in over the network or by the board's remote console, or by its serial port, which takes a login where "
    "console=tty0 console=ttyS0,115200 is on the kernel command line"
)


def _frees(device: Device) -> bool:
    """Whether the kernel takes its picture away by itself from a card that vfio-pci binds: from VGA controllers alone
    (drivers/vfio/pci/vfio_pci_core.c, vfio_pci_vga_init, from 6.0 on).

    With others the word NO_FRAMEBUFFER helps (Proxmox VE's wiki on PCI passthrough); but from 6.18 on simpledrm was
    reported to come back in spite of it (siderolabs/talos issue 14356, class 0380).
    """
    return device.class_code.startswith("0300")


def screens(facts: HostFacts, devices: Sequence[Device]) -> list[Device]:
    """Those of `devices` that the firmware or the kernel uses as a screen. The firmware marks VGA controllers alone
    (boot_vga); where it marks none, the text console shows which one it is."""
    marks_one = any(device.boot_vga for device in facts.devices)
    consoles = [] if marks_one else [holder.devices for holder in facts.holders if not holder.pid]

    def is_drawn_on(device: Device) -> bool:
        has_console = device.driver != "vfio-pci" and any(device.address in addresses for addresses in consoles)
        return device.is_display and (device.address in facts.framebuffers or has_console)

    return [device for device in devices if device.boot_vga or is_drawn_on(device)]


def instead(facts: HostFacts, leaving: Collection[str]) -> str:
    """The cards that could be the host's screen, for messages: those that no VM has or gets, and that aren't made for
    computing alone (3D controllers). Empty: there is none.

    :param leaving: slots of cards that VMs get.
    """
    slots = dict.fromkeys(device.slot for device in facts.display_devices if not device.class_code.startswith("0302"))
    staying = [slot for slot in slots if slot not in leaving and not facts.users_of(slot)]
    return " or ".join(map(facts.card, staying))


def screen(facts: HostFacts, slot: str) -> str:
    """What a card is to the host, for messages: `the host's only screen`; empty: no screen of it."""
    only = "" if instead(facts, [slot]) else "only "
    return f"the host's {only}screen" if screens(facts, facts.functions(slot)) else ""


def words(facts: HostFacts, host: Host, bound: Sequence[str]) -> list[str]:
    """The words of the kernel command line for `bootFramebuffer: off`, where it has an effect: one or none.

    :param bound: addresses of the functions that this program gives to vfio-pci.
    """
    if host.boot_framebuffer == "keep" or not bound:
        return []
    bound_screens = screens(facts, [facts.by_address[address] for address in bound])
    # Once the word has an effect there is no framebuffer that could be seen: it stays.
    return [NO_FRAMEBUFFER] if bound_screens or NO_FRAMEBUFFER in facts.own_words else []


def freed(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> Iterator[HomelabError]:
    """A gate: no framebuffer of the host has memory of a card that is on vfio-pci. A VM that runs with the card proves
    that."""
    framebuffers = {
        device.address: facts.framebuffers[device.address]
        for device in facts.functions(slot)
        if device.driver == "vfio-pci" and device.address in facts.framebuffers
    }
    if framebuffers and not remapping.runs_in_vm(facts, slot):
        has_word = NO_FRAMEBUFFER in facts.cmdline.running.split()
        others = instead(facts, [slot])
        steps = [
            *([] if has_word else [_SET_OFF]),
            *([f'let {others} be the screen (the firmware\'s setup, "primary display")'] if others else []),
            "start another kernel",
        ]
        yield HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}) with its memory free for vfio-pci",
            found="; ".join(
                f"{', '.join(names)} within the memory of {address} (/proc/iomem)"
                for address, names in framebuffers.items()
            )
            + (f", in spite of {NO_FRAMEBUFFER}" if has_word else ""),
            why="the kernel's own picture uses the card's memory: vfio-pci can't reserve it (BAR …: can't reserve), "
            "and the guest's driver fails",
            next="; or ".join(steps),
        )


def remarks(facts: HostFacts, host: Host, name: str, slot: str) -> Iterator[str]:
    """Remarks on a card that is the host's screen, a sentence each.

    :param name: of the card, for messages.
    """
    card_screens = screens(facts, facts.functions(slot))
    if not card_screens:
        return
    since = "this" if card_screens[0].driver == "vfio-pci" else "the host's next"
    yield f"{name} is {screen(facts, slot)}, which stays dark from {since} start on: {_WAYS_IN}"
    if host.boot_framebuffer == "off":
        yield (
            f"bootFramebuffer: off: {NO_FRAMEBUFFER} keeps the kernel's picture off every screen of this host; the "
            "boot entry 'without GPU passthrough' is without it"
        )
    elif not all(map(_frees, card_screens)):
        yield (
            f"{name}: this kernel ({facts.kernel}) may keep the card's memory for its picture; that is checked after "
            "the reboot, and bootFramebuffer: off may help then"
        )
