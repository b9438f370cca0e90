"""Whether a host must be rebooted: decided by one layer, which says the same before its boot configuration is written and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from inline_snapshot import snapshot

from homelab.host.reboot import answered, in_short, stopped
from remote_scripts.boot.loaders.found import GRUB
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both import cmdline
from remote_scripts.both.reboot import Wanted
from remote_scripts.reading import reboot_required
from tests.agent import api_kit, reading_kit
from tests.agent.cluster_kit import Clock
from tests.agent.kit import Host

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8 modprobe.blacklist=nouveau"
OPTED = "pcie_acs_override=downstream,multifunction vfio_iommu_type1.allow_unsafe_interrupts=1 initcall_blacklist=sysfb_init"
CARD = ("0000:01:00.0", "0000:01:00.1")
BOUND = dict.fromkeys(CARD, "vfio-pci")
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Jan  1 00:00:00 UTC 2026\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"


@dataclass(frozen=True)
class Case:
    """A host as it runs (``running``: words, ``drivers``: PCI address -> driver), who configured what, and what is wanted."""

    running: str
    words: str = f"{IOMMU} {VFIO}"
    functions: tuple[str, ...] = CARD
    drivers: dict[str, str] = field(default_factory=lambda: dict(BOUND))
    others: str = "quiet"
    noted: tuple[str, ...] = ()
    driver: str = ""
    flavour: str = ""
    loaded: str = ""
    reasons: tuple[str, ...] = ()


FREE = dict.fromkeys(CARD, "nouveau")
STAYS: dict[str, Any] = {"words": IOMMU, "functions": (), "running": f"quiet {IOMMU}"}
OWN: dict[str, Any] = {**STAYS, "drivers": {CARD[0]: "nvidia"}}

AS_WANTED = Case(f"quiet {IOMMU} {VFIO}")
STOCK = Case(
    "quiet", drivers=FREE,
    reasons=(f"{IOMMU} {VFIO} is not on the running kernel's command line",
             "0000:01:00.0 is on nouveau, not on vfio-pci", "0000:01:00.1 is on nouveau, not on vfio-pci"),
)  # fmt: skip
UNWANTED = Case(
    f"quiet {IOMMU} {OPTED} {VFIO}", noted=(f"{IOMMU} {OPTED} {VFIO}",),
    reasons=tuple(f"{word} is no longer wanted" for word in OPTED.split())
)  # fmt: skip
ALL_STAY = Case("quiet", words="", functions=(), drivers=FREE)


def make(host: Host, case: Case) -> None:
    host.write("/proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz root=/dev/mapper/pve-root ro {case.running}\n")
    host.write("/proc/sys/kernel/random/boot_id", "1\n")
    host.write("/boot/vmlinuz-6.17.13-2-pve", "")
    if case.noted:
        for words in case.noted:
            reboot_required.note(host.system(), Boot(words=tuple(words.split())))
    for address, driver in case.drivers.items():
        host.write(f"/sys/bus/pci/drivers/{driver}/bind", "")
        host.function(address, "0x030000" if address.endswith(".0") else "0x040300", "10de:2b85", driver=driver)
    if case.loaded:
        host.write("/proc/driver/nvidia/version", case.loaded)
    host.write("/called", "")
    host.programs |= {
        "bash": lambda _arguments, _stdin: f"{case.others} \n",
        "ip": lambda _arguments, _stdin: "",
        "ping": lambda _arguments, _stdin: 1,
        "systemctl": lambda _arguments, _stdin: 0,
        "systemd-run": lambda arguments, _stdin: str(host.write("/called", " ".join(arguments))),
    }
    api_kit.runs(host, {105: "VM 105", 103: "Sandbox"}, {901: "ai-lab"})


def wanted_boot(case: Case) -> Boot:
    return Boot(words=tuple(case.words.split()), functions=case.functions, driver=case.driver, flavour=case.flavour)


def ask(host: Host, case: Case, verb: str, policy: Literal["auto", "manual"] = "auto") -> dict[str, Any]:
    wanted = Wanted(policy=policy, boot=wanted_boot(case), rollback_after=600, awaited=1800)
    return dict(host.ask(verb, "reboot", wanted))


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in {
    "a host that runs as wanted": AS_WANTED,
    "a stock host": STOCK,
    "passthrough mode that is no longer wanted": Case(
        f"quiet {IOMMU} {VFIO}", words=f"amd_iommu=on {VFIO}", reasons=("iommu=pt is no longer wanted",)
    ),
    "a value that the kernel doesn't know, which comes": Case(f"quiet iommu=pt {VFIO}"),
    "the same, that is no longer wanted": Case(f"quiet {IOMMU} {VFIO}", words=f"iommu=pt {VFIO}"),
    "an IOMMU that is no longer wanted": Case(
        f"quiet intel_iommu=on iommu=pt {VFIO}", words=f"iommu=pt {VFIO}", reasons=("intel_iommu=on is no longer wanted",)
    ),
    "words that are no longer ours but somebody else's": Case(
        f"quiet iommu=pt amd_iommu=on {VFIO}", words=f"amd_iommu=on {VFIO}", others="quiet iommu=pt"
    ),
    "an override, interrupts without remapping and a relaxed RMRR that come": Case(
        f"quiet {IOMMU} {VFIO}", words=f"{IOMMU} {OPTED} {VFIO}", reasons=(f"{OPTED} is not on the running kernel's command line",)
    ),
    "the same, that are no longer wanted": UNWANTED,
    "the same, by a run that ended before the reboot": Case(
        f"quiet {IOMMU} {OPTED} {VFIO}", noted=(f"{IOMMU} {OPTED} {VFIO}", f"{IOMMU} {VFIO}"),
        reasons=tuple(f"{word} is no longer wanted" for word in OPTED.split())
    ),
    "the same, which somebody typed at the boot menu, or has in quotes": Case(
        f'quiet {IOMMU} {OPTED} {VFIO}', others='quiet pcie_acs_override=\\"downstream,multifunction\\"', noted=(f"{IOMMU} {VFIO}",)
    ),
    "an override of somebody else's": Case(f"quiet pcie_acs_override=multifunction {IOMMU} {VFIO}", others="quiet pcie_acs_override=multifunction"),
    "a relaxed RMRR that is no longer wanted": Case(
        f"quiet intel_iommu=on,relax_rmrr {VFIO}", words=f"intel_iommu=on {VFIO}",
        reasons=("intel_iommu=on,relax_rmrr is no longer wanted",)
    ),
    "a card that was taken out of the settings": Case(
        f"quiet {IOMMU} {VFIO}", words=IOMMU, functions=(),
        reasons=(f"{VFIO.split()[0]} is no longer wanted", f"{VFIO.split()[1]} is no longer wanted"),
    ),
    "another card in its place": Case(
        f"quiet {IOMMU} {VFIO}", words=f"{IOMMU} homelab.vfio=0000:41:00.0=10de:2684", functions=("0000:41:00.0",),
        drivers={**BOUND, "0000:41:00.0": "nouveau"},
        reasons=("homelab.vfio=0000:41:00.0=10de:2684 is not on the running kernel's command line",
                 f"{VFIO.split()[0]} is no longer wanted", f"{VFIO.split()[1]} is no longer wanted",
                 "0000:41:00.0 is on nouveau, not on vfio-pci"),
    ),
    "a card that stays with the host after all": Case(
        f"quiet {IOMMU} {VFIO}", words=f"{IOMMU} {VFIO.split()[0]}", reasons=(f"{VFIO.split()[1]} is no longer wanted",)
    ),
    "a function on another driver": Case(
        f"quiet {IOMMU} {VFIO}", drivers={**BOUND, CARD[1]: "snd_hda_intel"},
        reasons=("0000:01:00.1 is on snd_hda_intel, not on vfio-pci",),
    ),
    "a function without a driver": Case(
        f"quiet {IOMMU} {VFIO}", drivers={**BOUND, CARD[1]: ""}, reasons=("0000:01:00.1 is on no driver, not on vfio-pci",)
    ),
    "a function that isn't there, which no boot brings": Case(f"quiet {IOMMU} {VFIO}", drivers={CARD[0]: "vfio-pci"}),
    "a binding by somebody else, who may keep it": Case(
        f"quiet {IOMMU} vfio-pci.ids=10de:2b85", words=IOMMU, others="quiet vfio-pci.ids=10de:2b85"
    ),
    "an IOMMU word with more options": Case(
        f"quiet intel_iommu=on,sm_on iommu=pt {VFIO}", words=f"intel_iommu=on iommu=pt {VFIO}",
        others="quiet intel_iommu=on,sm_on iommu=pt",
    ),
    "a word that somebody else has taken back": Case(
        f"quiet iommu=off {IOMMU} {VFIO}", reasons=("iommu=off is no longer wanted",)
    ),
    "a host whose cards all stay": ALL_STAY,
    "nouveau has the host's own card": Case(
        **{**STAYS, "drivers": {CARD[0]: "nouveau"}}, driver="580", reasons=("0000:01:00.0 is on nouveau, not on NVIDIA's driver",)
    ),
    "nouveau's successor has it": Case(
        **{**STAYS, "drivers": {CARD[0]: "NovaCore"}}, driver="580.95.05",
        reasons=("0000:01:00.0 is on NovaCore, not on NVIDIA's driver",),
    ),
    "nouveau has a card, and nobody wants NVIDIA's driver": Case(**{**STAYS, "drivers": {CARD[0]: "nouveau"}}),
    "no driver has it, so that NVIDIA's takes it at once": Case(**{**STAYS, "drivers": {CARD[0]: ""}}, driver="580"),
    "the wanted version is loaded": Case(**OWN, driver="580.95.05", loaded=OPEN.format("580.95.05")),
    "another version is loaded": Case(
        **OWN, driver="580.95.05", loaded=OPEN.format("580.82.07"),
        reasons=("NVIDIA's driver 580.82.07 is loaded, not 580.95.05",),
    ),
    "the other modules are loaded": Case(
        **OWN, driver="580.95.05", flavour="open", loaded=PROPRIETARY.format("580.95.05"),
        reasons=("NVIDIA's proprietary modules are loaded, not the open ones",),
    ),
}.items()])  # fmt: skip
def test_what_only_a_reboot_brings_is_planned_and_done(host: Host, clock: Clock, case: Case) -> None:
    make(host, case)
    host.write("/var/lib/homelab/files/iommu/etc/default/grub.d/zz-homelab-iommu.cfg", "0644 0\n")  # of cmdline
    before = host.tree()
    found = reboot_required.check(host.system(), wanted_boot(case), GRUB)
    assert tuple(one.said for one in found) == case.reasons
    short = in_short(found, {})
    assert bool(short) is bool(case.reasons) and "homelab.vfio" not in short and "command line;" not in short
    said = ask(host, case, "plan")
    assert tuple(one["said"] for one in said["reasons"]) == case.reasons
    assert said["reboot"] == ("yes" if case.reasons else "no")
    assert host.tree() == before
    did = ask(host, case, "apply")
    assert did.pop("armed") == "", "what is to be tried, the layer cmdline has armed"
    assert did.pop("turn") is False  # it is in no cluster
    assert did == said
    assert ("systemctl reboot" in host.read("/called")) is bool(case.reasons)


def test_a_manual_reboot_is_planned_as_one(host: Host) -> None:
    make(host, STOCK)
    for verb in ("plan", "apply"):
        said = answered({"turn": False, "armed": ""} | ask(host, STOCK, verb, "manual"))
        assert (said.reboot, tuple(one.said for one in said.reasons)) == ("manual", STOCK.reasons)
        gets = f"the kernel command line gets {IOMMU}, and {' and '.join(CARD)} go to vfio-pci"
        assert in_short(said.reasons, {}) == gets
        assert stopped(said) == "VM 103 (Sandbox), VM 105 (VM 105), container 901 (ai-lab)"
    assert not host.read("/called")


def test_a_list_of_guests_that_doesnt_come_is_no_empty_one(host: Host) -> None:
    make(host, STOCK)
    api_kit.says_nothing(host)
    said = ask(host, STOCK, "plan")
    assert "whatever guests run (Proxmox VE's API gives no answer: no ticket" in said["unlisted"] and not said["guests"]


def test_what_a_boot_is_to_have_is_noted_with_the_overrides_that_still_run(host: Host) -> None:
    make(host, UNWANTED)
    ask(host, UNWANTED, "apply", "manual")
    found = reboot_required.noted(host.system())
    assert found == Boot(words=tuple(UNWANTED.words.split()), functions=CARD)
    assert reboot_required.noted_words(host.system()) == [*UNWANTED.words.split(), *OPTED.split()]
    reasons = [reboot_required.check(host.system(), boot, GRUB) for boot in (found, wanted_boot(UNWANTED))]
    assert reasons[0] == reasons[1]


def test_what_was_noted_is_read_back(host: Host) -> None:
    assert reboot_required.noted(host.system()) is None
    noted = Boot(words=("iommu=pt", "a=b"), functions=("0000:01:00.0",), driver="580.95.05", flavour="open")
    reboot_required.note(host.system(), noted)
    assert reboot_required.noted(host.system()) == noted


def test_a_reading_says_of_what_was_booted_for_what_the_running_kernel_lacks(tmp_path: Path, clock: Clock) -> None:
    host = reading_kit.least(tmp_path)
    make(host, AS_WANTED)
    assert reading_kit.read(host).boot_lacks is None  # nobody has decided anything yet
    ask(host, AS_WANTED, "apply")
    assert reading_kit.read(host).boot_lacks == []
    # Somebody starts it by the other entry, and another time a driver takes a function.
    host.write("/proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz ro quiet\n")
    assert reading_kit.read(host).boot_lacks == snapshot(
        [
            "amd_iommu=on iommu=pt homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8 modprobe.blacklist=nouveau is not on the running kernel's command line"
        ]
    )
    host.write("/proc/cmdline", f"ro quiet {AS_WANTED.words}\n")
    link = host.root / "sys/bus/pci/devices" / CARD[1] / "driver"
    link.unlink()
    link.symlink_to("../../../drivers/snd_hda_intel")
    assert reading_kit.read(host).boot_lacks == ["0000:01:00.1 is on snd_hda_intel, not on vfio-pci"]


def test_what_was_booted_for_is_forgotten_when_everything_is_given_back(host: Host) -> None:
    make(host, ALL_STAY)
    host.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    before = host.lasting()
    ask(host, ALL_STAY, "apply")
    assert host.lasting() != before
    host.ask("revert", "cmdline", cmdline.Wanted(name="iommu", words="", rollback_after=600))
    assert host.lasting() == before


def test_a_note_or_a_card_that_cant_be_read_is_no_reason_to_stay_silent(host: Host) -> None:
    make(host, AS_WANTED)
    (host.root / "var/lib/homelab/wanted-boot").mkdir(parents=True)
    with pytest.raises(Exception, match="to read /var/lib/homelab/wanted-boot"):
        ask(host, AS_WANTED, "plan")
