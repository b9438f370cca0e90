"""Whether a host must be rebooted: decided by one script, which says the same before its boot configuration is written and after."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from homelab.host.reboot import in_short
from homelab.remote import scripts
from tests.boot_layers import iommu, read_host
from tests.scripts.conftest import Folder

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
    ours: str = f"{IOMMU} {VFIO}"
    noted: str = ""
    driver: str = ""
    flavour: str = ""
    loaded: str = ""
    installed: str = ""
    modules: str = ""
    reasons: tuple[str, ...] = ()
    perhaps: tuple[str, ...] = ()


FREE = dict.fromkeys(CARD, "nouveau")
STAYS: dict[str, Any] = {"words": IOMMU, "ours": IOMMU, "functions": (), "running": f"quiet {IOMMU}"}
OWN: dict[str, Any] = {**STAYS, "drivers": {CARD[0]: "nvidia"}}

CASES = {
    "a host that runs as wanted": Case(f"quiet {IOMMU} {VFIO}"),
    "a stock host": Case(
        "quiet", ours="", drivers=FREE,
        reasons=(f"{IOMMU} {VFIO} is not on the running kernel's command line",
                 "0000:01:00.0 is on nouveau, not on vfio-pci", "0000:01:00.1 is on nouveau, not on vfio-pci"),
    ),
    "passthrough mode that is no longer wanted": Case(
        f"quiet {IOMMU} {VFIO}", words=f"amd_iommu=on {VFIO}", reasons=("iommu=pt is no longer wanted",)
    ),
    "an IOMMU that is no longer wanted": Case(
        f"quiet {IOMMU} {VFIO}", words=f"iommu=pt {VFIO}", reasons=("amd_iommu=on is no longer wanted",)
    ),
    "words that are no longer ours but somebody else's": Case(
        f"quiet iommu=pt amd_iommu=on {VFIO}", words=f"amd_iommu=on {VFIO}", others="quiet iommu=pt", ours=f"amd_iommu=on {VFIO}"
    ),
    "an override, interrupts without remapping and a relaxed RMRR that come": Case(
        f"quiet {IOMMU} {VFIO}", words=f"{IOMMU} {OPTED} {VFIO}", reasons=(f"{OPTED} is not on the running kernel's command line",)
    ),
    "the same, that are no longer wanted": Case(
        f"quiet {IOMMU} {OPTED} {VFIO}", ours=f"{IOMMU} {OPTED} {VFIO}", noted=f"{IOMMU} {OPTED} {VFIO}\n\n\n\n",
        reasons=tuple(f"{word} is no longer wanted" for word in OPTED.split())
    ),
    "the same, by a run that ended before the reboot": Case(
        f"quiet {IOMMU} {OPTED} {VFIO}", noted=f"{IOMMU} {VFIO}\n\n\n\n{OPTED}\n",
        reasons=tuple(f"{word} is no longer wanted" for word in OPTED.split())
    ),
    "the same, which somebody typed at the boot menu, or has in quotes": Case(
        f'quiet {IOMMU} {OPTED} {VFIO}', others='quiet pcie_acs_override=\\"downstream,multifunction\\"', noted=f"{IOMMU} {VFIO}\n\n\n\n"
    ),
    "an override of somebody else's": Case(f"quiet pcie_acs_override=multifunction {IOMMU} {VFIO}", others="quiet pcie_acs_override=multifunction"),
    "a relaxed RMRR that is no longer wanted": Case(
        f"quiet intel_iommu=on,relax_rmrr {VFIO}", words=f"intel_iommu=on {VFIO}", ours=f"intel_iommu=on {VFIO}",
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
        f"quiet {IOMMU} vfio-pci.ids=10de:2b85", words=IOMMU, ours=IOMMU, others="quiet vfio-pci.ids=10de:2b85"
    ),
    "an IOMMU word with more options": Case(
        f"quiet intel_iommu=on,sm_on iommu=pt {VFIO}", words=f"intel_iommu=on iommu=pt {VFIO}", ours=VFIO,
        others="quiet intel_iommu=on,sm_on iommu=pt",
    ),
    "a word that somebody else has taken back": Case(
        f"quiet iommu=off {IOMMU} {VFIO}", reasons=("iommu=off is no longer wanted",)
    ),
    "a host whose cards all stay": Case("quiet", words="", ours="", functions=(), drivers=FREE),
    "a boot without passthrough": Case(
        "quiet", drivers=FREE,
        reasons=(f"{IOMMU} {VFIO} is not on the running kernel's command line",
                 "0000:01:00.0 is on nouveau, not on vfio-pci", "0000:01:00.1 is on nouveau, not on vfio-pci"),
    ),
    "nouveau has the host's own card": Case(
        **{**STAYS, "drivers": {CARD[0]: "nouveau"}}, driver="580", reasons=("0000:01:00.0 is on nouveau, not on NVIDIA's driver",)
    ),
    "nouveau's successor has it": Case(
        **{**STAYS, "drivers": {CARD[0]: "nova_core"}}, driver="580.95.05",
        reasons=("0000:01:00.0 is on nova_core, not on NVIDIA's driver",),
    ),
    "nouveau has a card, and nobody wants NVIDIA's driver": Case(**{**STAYS, "drivers": {CARD[0]: "nouveau"}}),
    "no driver has it, so that NVIDIA's takes it at once": Case(**{**STAYS, "drivers": {CARD[0]: ""}}, driver="580"),
    "the wanted version is loaded": Case(**OWN, driver="580.95.05", loaded=OPEN.format("580.95.05")),
    "another version is loaded": Case(
        **OWN, driver="580.95.05", loaded=OPEN.format("580.82.07"),
        reasons=("NVIDIA's driver 580.82.07 is loaded, not 580.95.05",),
    ),
    "another branch is loaded": Case(
        **OWN, driver="580", loaded=OPEN.format("570.195.03"), reasons=("NVIDIA's driver 570.195.03 is loaded, not 580",)
    ),
    "the other modules are loaded": Case(
        **OWN, driver="580.95.05", flavour="open", loaded=PROPRIETARY.format("580.95.05"),
        reasons=("NVIDIA's proprietary modules are loaded, not the open ones",),
    ),
    "the branch is loaded, and installed whole": Case(
        **OWN, driver="580", flavour="open", loaded=OPEN.format("580.95.05"), installed="580.95.05", modules="580.95.05",
    ),
    "the branch is loaded, and another version of it installed whole": Case(
        **OWN, driver="580", flavour="open", loaded=OPEN.format("580.82.07"), installed="580.95.05", modules="580.95.05",
        reasons=("NVIDIA's driver 580.82.07 is loaded, and 580.95.05 is installed",),
    ),
    "the branch is loaded, and what packages bring isn't known": Case(
        **OWN, driver="580", flavour="open", loaded=OPEN.format("580.95.05"),
        perhaps=("what is installed is another version of branch 580 than 580.95.05, which is loaded",),
    ),
}  # fmt: skip


def make(folder: Folder, case: Case) -> None:
    folder.write("proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz root=/dev/mapper/pve-root ro {case.running}\n")
    folder.write("proc/sys/kernel/random/boot_id", "1\n")
    folder.write("etc/default/grub", f'GRUB_CMDLINE_LINUX_DEFAULT="{case.others}"\nGRUB_CMDLINE_LINUX=""\n')
    (folder.root / "etc/systemd/system").mkdir(parents=True)
    folder.write("boot/vmlinuz-6.17.13-2-pve", "")
    if case.noted:
        folder.write("var/lib/homelab/wanted-boot", case.noted)
    for address, driver in case.drivers.items():
        device = folder.root / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "class").write_text("0x030000\n" if address.endswith(".0") else "0x040300\n")
        (device / "vendor").write_text("0x10de\n")
        if driver:
            (folder.root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(f"../../drivers/{driver}")
    if case.loaded:
        folder.write("proc/driver/nvidia/version", case.loaded)
    if case.installed:
        library = folder.write(f"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{case.installed}", "")
        (library.parent / "libnvidia-ml.so.1").symlink_to(library.name)
        folder.write("usr/bin/nvidia-smi", "", 0o755)
    folder.command(
        "modinfo",
        f'printf "version:        %s\\nlicense:        Dual MIT/GPL\\n" {case.modules}' if case.modules else "exit 1",
    )
    folder.command("dpkg", "exit 0")
    # One without a name, and one that is paused.
    folder.command(
        "qm",
        "printf 'VMID NAME STATUS\\n103 Sandbox running 1 2 3\\n104 Other stopped 1 2 0\\n105 VM 105 running 1 2 4\\n106 VM 106 stopped 1 2 0\\n"
        "107 Idle paused 1 2 5\\n'",
    )
    folder.command("pct", "printf 'VMID Status Lock Name\\n901 running ai-lab\\n'")
    # Otherwise the gateway of the machine that runs the tests would be asked, for ten seconds.
    folder.command("ip", "")
    for name in ("systemctl", "systemd-run", "update-grub"):
        folder.command(name, f"echo {name} $* >>$ROOT/run/called")


def configure(folder: Folder, words: str) -> None:
    """What the layer cmdline writes."""
    folder.write("var/lib/homelab/files/iommu/etc/default/grub.d/zz-homelab-iommu.cfg", "0644 0\n")
    folder.write(
        "etc/default/grub.d/zz-homelab-iommu.cfg", f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {words}"\n'
    )


def script(case: Case, policy: str = "auto") -> str:
    return scripts.reboot_host(policy, case.words, case.functions, 600, case.driver, case.flavour)


@pytest.mark.parametrize("name", CASES)
def test_what_only_a_reboot_brings_is_said_before_the_layers_are_written_and_after(folder: Folder, name: str) -> None:
    case = CASES[name]
    make(folder, case)
    configure(folder, case.ours)
    before = folder.tree()
    done = folder.run("plan", script(case))
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (tuple(said["reasons"]), tuple(said["perhaps"])) == (case.reasons, case.perhaps)
    assert said["reboot"] == ("yes" if case.reasons else "no")
    assert said["guests"] == "VM 103 (Sandbox), VM 105 (VM 105), VM 107 (Idle), container 901 (ai-lab)"
    assert folder.tree() == before and not (folder.root / "run/called").exists()

    configure(folder, " ".join(word for word in case.words.split() if word not in case.others.split()))
    if not case.perhaps:
        done = folder.run("apply", script(case))
        did = json.loads(done.stdout)
        # Of what the driver lacks alone, nothing is in the boot configuration: there is nothing that a roll-back would give back.
        assert bool(did.pop("armed")) is any("NVIDIA's" not in reason for reason in case.reasons)
        assert did.pop("turn") == "no"  # it is in no cluster
        assert did == said, done.stderr
        called = (folder.root / "run/called").read_text() if (folder.root / "run/called").exists() else ""
        assert ("systemctl reboot" in called) is bool(case.reasons)


def test_a_manual_reboot_is_planned_as_one(folder: Folder) -> None:
    case = CASES["a stock host"]
    make(folder, case)
    said = json.loads(folder.run("plan", script(case, "manual")).stdout)
    assert (said["reboot"], tuple(said["reasons"])) == ("manual", case.reasons)


def test_a_list_of_guests_that_doesnt_come_is_no_empty_one(folder: Folder) -> None:
    case = CASES["a stock host"]
    make(folder, case)
    folder.command("qm", "echo 'ipcc_send_rec[1] failed: Connection refused'; exit 255")
    said = json.loads(folder.run("plan", script(case)).stdout)
    assert said["guests"] == "whatever VMs are running (`qm list` gave no answer), container 901 (ai-lab)"


def read(folder: Folder) -> Any:
    for name in ("lspci", "lsblk", "dmesg", "df", "uname", "dpkg-query"):
        folder.command(name, "exit 0")
    folder.write("proc/modules", "")
    folder.write("proc/cpuinfo", "vendor_id\t: AuthenticAMD\n")
    done = folder.run("read", read_host())
    return json.loads(done.stdout)["boot_lacks"]


def test_a_reading_says_of_what_was_booted_for_what_the_running_kernel_lacks(folder: Folder) -> None:
    case = CASES["a host that runs as wanted"]
    make(folder, case)
    configure(folder, case.words)
    assert read(folder) is None  # nobody has decided anything yet
    folder.run("apply", script(case))
    assert read(folder) == []
    # Somebody starts it by the other entry, and another time a driver takes a function.
    folder.write("proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz ro quiet\n")
    assert read(folder) == [f"{case.words} is not on the running kernel's command line"]
    folder.write("proc/cmdline", f"ro quiet {case.words}\n")
    link = folder.root / "sys/bus/pci/devices" / CARD[1] / "driver"
    link.unlink()
    link.symlink_to("../../../drivers/snd_hda_intel")
    assert read(folder) == ["0000:01:00.1 is on snd_hda_intel, not on vfio-pci"]


def test_what_was_booted_for_is_forgotten_when_everything_is_given_back(folder: Folder) -> None:
    case = CASES["a host whose cards all stay"]
    make(folder, case)
    before = folder.tree()
    assert folder.run("apply", script(case)).returncode == 0
    assert folder.tree() != before
    assert folder.run("revert", iommu("")).returncode == 0
    assert folder.tree() == before


def test_each_reason_is_said_in_short_too() -> None:
    for case in CASES.values():
        short = in_short(case.reasons, {})
        assert bool(short) is bool(case.reasons), case
        assert "homelab.vfio" not in short and "command line;" not in short
