"""A card that is the host's screen: who else holds its memory, what lets go of it, and where the host is to be reached
then.

The kernel draws into the firmware's picture (BOOTFB in /proc/iomem) before a card has a driver. Where that holds on to
the card's memory after vfio-pci has bound it, no guest can use the card. What is known of kernels is in consoles.yaml.
Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from homelab import tables
from homelab.errors import HomelabError
from homelab.host import remapping
from homelab.host.devices import Device
from homelab.host.facts import HostFacts
from homelab.settings import Gpu, Host

# Without this step of its start the kernel makes no device of the firmware's picture (drivers/firmware/sysfb.c).
NO_FRAMEBUFFER = "initcall_blacklist=sysfb_init"


class KernelRange(BaseModel):
    """Releases, `6.18`; a missing end is open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: str = Field(alias="from", default="0.0")
    before: str = "9999.0"

    def has(self, kernel: str) -> bool:
        """Is `6.17.2-1-pve` one of them?"""
        return remapping.release(self.first) <= remapping.release(kernel) < remapping.release(self.before)


class ConsoleRow(BaseModel):
    """A row of the data; see there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: KernelRange
    code: str = Field(alias="class")
    verdict: Literal["frees", "word", "nothing"]
    source: Annotated[str, Field(min_length=3)]
    evidence: Literal["primary", "report"]


@functools.cache
def rows() -> tuple[ConsoleRow, ...]:
    """All rows, in the order in which they count."""
    return tuple(ConsoleRow.model_validate(row) for row in tables.read(Path(__file__).with_suffix(".yaml"))["rows"])


def verdict(facts: HostFacts, device: Device) -> Literal["frees", "word", "nothing"]:
    """What is known of the host's kernel and such a card; the last row has every one."""
    fits = (row for row in rows() if row.kernel.has(facts.kernel) and device.class_code.startswith(row.code))
    return next(fits).verdict


def screens(facts: HostFacts, devices: Sequence[Device]) -> list[Device]:
    """Of these, what the firmware or the kernel shows its picture on. Only VGA controllers are marked by the firmware
    (boot_vga)."""
    return [one for one in devices if one.boot_vga or (one.is_display and one.address in facts.framebuffers)]


def words(facts: HostFacts, host: Host, bound: Sequence[str]) -> list[str]:
    """The word that the settings ask for, where it has an effect.

    :param bound: addresses that this program gives to vfio-pci.
    """
    if host.boot_framebuffer == "keep" or not bound:
        return []
    shown = screens(facts, [facts.by_address[one] for one in bound])
    return [NO_FRAMEBUFFER] if shown or _is_ours(facts) else []


def _is_ours(facts: HostFacts) -> bool:
    """Is the word configured by this program? Once it is in effect there is no picture any more, and it stays."""
    return NO_FRAMEBUFFER in facts.cmdline.configured.split() and NO_FRAMEBUFFER not in facts.cmdline.others.split()


def freed(facts: HostFacts, name: str, _gpu: Gpu, slot: str) -> list[HomelabError]:
    """Once vfio-pci has the card, nothing of the host's console holds its memory. A VM that runs with it shows that it
    can be used."""
    held = {
        one.address: facts.framebuffers[one.address]
        for one in facts.functions(slot)
        if one.driver == "vfio-pci" and one.address in facts.framebuffers
    }
    if not held or remapping.has_it_now(facts, slot):
        return []
    has_word = NO_FRAMEBUFFER in facts.cmdline.running.split()
    hopeless = has_word or any(verdict(facts, facts.by_address[one]) == "nothing" for one in held)
    other = 'let another card be the screen (the firmware\'s setup, "primary display"), or another kernel start'
    return [
        HomelabError(
            wanted=f"gpus.{name} ({facts.card(slot)}), whose memory nobody else holds",
            found="; ".join(
                f"{', '.join(what)} within the memory of {address} (/proc/iomem)" for address, what in held.items()
            )
            + (f", in spite of {NO_FRAMEBUFFER}" if has_word else ""),
            why="the kernel's own picture has the card's memory: vfio-pci can't reserve it (BAR …: can't reserve), "
            "and the guest's driver fails",
            next=other
            if hopeless
            else "set bootFramebuffer: off for this host, after you have made sure of another way in than its "
            f"screen; or {other}",
        )
    ]


def remarks(facts: HostFacts, host: Host, name: str, slot: str) -> list[str]:
    """What it means that a card is the host's screen: a sentence each.

    :param name: as messages call it.
    """
    shown = screens(facts, facts.functions(slot))
    if not shown:
        return []
    said = [f"{name} is the host's screen, which stays dark from the host's next start on: {_ways_in(facts)}"]
    ways = {one.address: verdict(facts, one) for one in shown}
    if host.boot_framebuffer == "off":
        said.append(
            f"bootFramebuffer: off: {NO_FRAMEBUFFER} keeps the kernel's picture off every screen of this host; the "
            "boot entry 'without GPU passthrough' "
            "is without it"
            + ("; this kernel would let go of the card by itself" if set(ways.values()) == {"frees"} else "")
        )
    elif set(ways.values()) != {"frees"}:
        said.append(
            f"{name}: this kernel ({facts.kernel}) may keep the card's memory for its picture; that is checked "
            "after the reboot, and "
            "bootFramebuffer: off may help then"
        )
    return said


def _ways_in(facts: HostFacts) -> str:
    serial = [
        word for word in facts.next_cmdline.split() if word.startswith("console=tty") and word[11:12] in ("S", "A", "U")
    ]
    return "log in over the network or by the board's remote console" + (
        f", or by its serial port ({', '.join(serial)})"
        if serial
        else "; its serial port takes no login yet (console=tty0 console=ttyS0,115200 on the kernel command line "
        "starts one)"
    )


def without_effect(facts: HostFacts, host: Host, given: Mapping[str, str]) -> list[str]:
    """The setting where no card that goes to a VM is the host's screen.

    :param given: these cards, name -> slot.
    """
    every = [one for slot in given.values() for one in facts.functions(slot)]
    if host.boot_framebuffer == "keep" or screens(facts, every) or _is_ours(facts):
        return []
    return ["bootFramebuffer: off has no effect: no card that goes to a VM is the host's screen"]
