"""A card that is the host's screen (homelab/cards/consoles.py): what holds its memory, what lets go of it, what is said first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from homelab.cards import consoles
from homelab.cards import remarks as card_remarks
from homelab.cards.consoles import NO_FRAMEBUFFER
from homelab.facts.host import HostFacts
from homelab.host import gates, plan
from homelab.init import cards
from homelab.settings import Host
from tests.rows import rows
from tests.unit.hosts import cmdline, conf, desktop, device, settings

CARD = "0000:c3:00.0"
BOOTFB: dict[str, Any] = {"framebuffers": {CARD: ["BOOTFB", "simpledrm"]}}


def only_card(code: str = "030000", driver: str = "", configured: str = "quiet", **changes: Any) -> HostFacts:
    """A host whose only card is its screen; of another class than VGA, the firmware doesn't mark it."""
    line = cmdline(configured, others="quiet", generated=configured)
    one = device(CARD, "1002:1586", code, 5, driver=driver, boot_vga=int(code == "030000"))
    values: dict[str, Any] = {"devices": [one], "cmdline": line, "modules": ["vfio", "vfio_iommu_type1", "vfio_pci"]}
    return desktop(**(values | changes))


def host(**changes: Any) -> Host:
    return settings({"card": {"address": "c3:00", "allowConsole": True}}, **changes)


def unfree(facts: HostFacts) -> list[str]:
    return [str(error) for error in consoles.freed(facts, "card", host().gpus["card"], "0000:c3:00")]


def notes(facts: HostFacts, host: Host) -> str:
    return "\n".join(card_remarks.remarks(facts, host, gates.check(facts, host)[0]))


def test_a_card_that_the_kernel_draws_on_is_the_console_though_no_vga() -> None:
    refused = settings({"card": {"address": "c3:00"}})
    assert gates.check(only_card("038000"), refused)[1] == []
    (error,) = gates.check(only_card("038000", **BOOTFB), refused)[1]
    assert "the kernel draws into its memory" in error.found and "allowConsole" in error.next
    assert gates.check(only_card("038000", **BOOTFB), host())[1] == []


def test_a_card_that_the_text_console_is_on_is_the_console_where_the_firmware_marks_none() -> None:
    """Its own driver has taken the firmware's picture away; `boot_vga` is an attribute of VGA controllers alone."""
    refused = settings({"card": {"address": "c3:00"}})
    console: dict[str, Any] = {"holders": [{"pid": 0, "name": "the text console (fb0)", "devices": [CARD]}]}
    facts = only_card("038000", driver="amdgpu", **console)
    (error,) = gates.check(facts, refused)[1]
    assert "the kernel draws into its memory" in error.found
    assert cards.suggested(facts, cards.cards(facts, {})[0]) == "nobody"
    marked = device("0000:01:00.0", "1a03:2000", "030000", 6, driver="ast", boot_vga=1)
    assert gates.check(only_card("038000", devices=[*map(asdict, facts.devices), marked], **console), refused)[1] == []
    process = [{"pid": 812, "name": "Xorg", "devices": [CARD]}]
    assert gates.check(only_card("038000", holders=process), refused)[1] == []


def test_before_the_card_is_bound_a_picture_in_its_memory_is_no_fault() -> None:
    assert unfree(only_card(driver="amdgpu", **BOOTFB)) == unfree(only_card(**BOOTFB)) == []


def test_once_it_is_bound_nothing_of_the_console_holds_its_memory() -> None:
    assert unfree(only_card(driver="vfio-pci")) == []
    (said,) = unfree(only_card("038000", driver="vfio-pci", kernel="6.17.2-1-pve", **BOOTFB))
    assert f"BOOTFB, simpledrm within the memory of {CARD}" in said and "bootFramebuffer: off" in said
    # Where the word runs, it isn't offered again.
    (said,) = unfree(only_card(driver="vfio-pci", configured=f"quiet {NO_FRAMEBUFFER}", **BOOTFB))
    assert "bootFramebuffer" not in said and said.endswith("next:   start another kernel"), "it is the only card"


@rows(
    ("second", "lines", "gpus", "named"),
    [
        (None, "", {"aa": "c3:00"}, False),
        ("030000", "", {"aa": "c3:00"}, True),
        ("038000", "", {"aa": "c3:00"}, True),
        ("030200", "", {"aa": "c3:00"}, False),  # for computing alone
        ("030000", "", {"aa": "c3:00", "bb": "01:00"}, False),
        ("030000", "hostpci0: 0000:01:00,pcie=1\n", {"aa": "c3:00"}, False),
    ],
)
def test_a_card_that_stays_with_the_host_is_named_as_its_screen(
    second: str | None, lines: str, gpus: dict[str, str], named: bool
) -> None:
    more = [device("0000:01:00.0", "10de:2b85", second, 6)] if second else []
    guests = {"running": [], "configs": [conf("vm", 103, lines)]}
    facts, bound = (
        only_card(devices=[*map(asdict, only_card(driver=driver).devices), *more], guests=guests, **BOOTFB)
        for driver in ("amdgpu", "vfio-pci")
    )
    (error,) = gates.check(facts, settings({name: {"address": place} for name, place in gpus.items()}))[1]
    assert error.next.startswith("make RTX 5090 [10de:2b85] at 0000:01:00 the primary one" if named else "accept it")
    if len(gpus) == 1:
        (said,) = unfree(bound)
        assert ("let RTX 5090 [10de:2b85] at 0000:01:00 be the screen" in said) is named


def test_the_verification_after_a_reboot_looks_for_it() -> None:
    facts = only_card("038000", driver="vfio-pci", **BOOTFB)
    want = plan.wanted(facts, host())
    assert any("within the memory of" in error.found for error in plan.verify(facts, host(), want))


def test_a_vm_that_runs_with_the_card_shows_that_it_can_be_used() -> None:
    guests = {"reservations": f"{CARD} 103 pid:1234\n"}
    assert unfree(only_card(driver="vfio-pci", guests=guests, **BOOTFB)) == []


def test_the_word_is_written_for_an_effect_and_stays_once_configured() -> None:
    off = host(bootFramebuffer="off")
    assert plan.wanted(only_card(), host()).vfio_words.split()[1:] == []
    assert plan.wanted(only_card(), off).vfio_words.split()[1:] == [NO_FRAMEBUFFER]
    # With the word there is no picture any more, by which a card that is no VGA could be told.
    again = only_card("038000", driver="vfio-pci", configured=f"quiet homelab.vfio={CARD}=1002:1586 {NO_FRAMEBUFFER}")
    assert plan.wanted(again, off).vfio_words.split()[1:] == [NO_FRAMEBUFFER]
    assert plan.wanted(again, host()).vfio_words.split()[1:] == []


def test_where_no_given_card_is_the_screen_nothing_is_written() -> None:
    off = settings(bootFramebuffer="off")
    assert NO_FRAMEBUFFER not in plan.wanted(desktop(), off).vfio_words
    stays = settings({"card": {"address": "c3:00", "use": "host"}}, bootFramebuffer="off")
    assert plan.wanted(only_card(), stays).vfio_words == ""


def test_another_way_in_is_said_first() -> None:
    text = notes(only_card(), host(bootFramebuffer="off"))
    assert "log in over the network" in text and "console=tty0 console=ttyS0,115200" in text
    assert text.index("log in over the network") < text.index(NO_FRAMEBUFFER)
    assert "the boot entry 'without GPU passthrough' is without it" in text


@rows(
    ("driver", "configured", "since"),
    [
        ("amdgpu", "quiet", "the host's next"),
        ("amdgpu", f"quiet homelab.vfio={CARD}=1002:1586", "the host's next"),
        ("vfio-pci", f"quiet homelab.vfio={CARD}=1002:1586", "this"),
        ("vfio-pci", "quiet vfio-pci.ids=1002:1586", "this"),
    ],
)
def test_the_screen_is_dark_since_the_start_at_which_the_card_was_bound(
    driver: str, configured: str, since: str
) -> None:
    facts = only_card(driver=driver, cmdline=cmdline("quiet", configured, generated=configured))
    assert f"stays dark from {since} start on" in notes(facts, host(takeOver=True))


def test_a_kernel_that_may_not_let_go_is_said_before_the_reboot() -> None:
    assert "may keep the card's memory" in notes(only_card("038000", **BOOTFB), host())
    assert "may keep the card's memory" not in notes(only_card(**BOOTFB), host())
    assert notes(desktop(), settings()) == ""
