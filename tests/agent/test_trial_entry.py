"""remote_scripts/boot/trial_entry.py: what a boot loader reads of a boot on trial."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from remote_scripts.boot import rollback_timer, trial_entry
from remote_scripts.layers import card_nodes, handover, nvidia_nodes, nvidia_packages
from remote_scripts.notes import owed

STOCK = """\
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
menuentry 'Proxmox VE GNU/Linux' --class gnu $menuentry_id_option 'gnulinux-simple-R' {
\tload_video
\tsavedefault
\tlinux\t/boot/vmlinuz-6.14.8-2-pve root=/dev/mapper/pve-root ro quiet
\tinitrd\t/boot/initrd.img-6.14.8-2-pve
}
submenu 'Advanced options for Proxmox VE GNU/Linux' $menuentry_id_option 'gnulinux-advanced-R' {
\tmenuentry 'Proxmox VE GNU/Linux, with Linux 6.14.8-2-pve' --class gnu $menuentry_id_option 'gnulinux-6.14.8-2-pve-advanced-R' {
\t\tlinux\t/boot/vmlinuz-6.14.8-2-pve root=/dev/mapper/pve-root ro quiet
\t}
\tmenuentry 'Proxmox VE GNU/Linux, with Linux 6.8.12-1-pve' --class gnu $menuentry_id_option 'gnulinux-6.8.12-1-pve-advanced-R' {
\t\tlinux\t/boot/vmlinuz-6.8.12-1-pve root=/dev/mapper/pve-root ro quiet
\t}
}
if [ "$grub_platform" = efi ]; then
\tmenuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
\t\tfwsetup
\t}
fi
"""
PINNED = "gnulinux-advanced-R>gnulinux-6.8.12-1-pve-advanced-R"


def kernel(default: str, saved: str = "") -> tuple[str, bool]:
    block = b"# GRUB Environment Block\nsaved_entry=%s\n" % saved.encode()
    text, is_named = trial_entry.default_entry(STOCK.replace("DEFAULT", default), block)
    return text.partition("vmlinuz-")[2].partition(" ")[0], is_named


@pytest.mark.parametrize(
    ("default", "saved", "wanted"),
    [
        ("0", "", "6.14.8-2-pve"),
        ("gnulinux-simple-R", "", "6.14.8-2-pve"),
        ("Proxmox VE GNU/Linux", "", "6.14.8-2-pve"),
        (PINNED, "", "6.8.12-1-pve"),
        ("1>1", "", "6.8.12-1-pve"),
        ("1", "", "6.14.8-2-pve"),  # a submenu's first
        ("${saved_entry}", PINNED, "6.8.12-1-pve"),
        ("${saved_entry}", "", "6.14.8-2-pve"),
    ],
)
def test_the_entry_is_the_one_that_the_menus_default_names(default: str, saved: str, wanted: str) -> None:
    assert kernel(default, saved) == (wanted, True)


@pytest.mark.parametrize("default", ["gone", "2", "gnulinux-advanced-R>gone", "7>1"])
def test_where_that_cant_be_told_it_is_the_first_one_with_a_kernel(default: str) -> None:
    assert kernel(default) == ("6.14.8-2-pve", False)


def test_the_last_default_counts_as_grub_reads_it() -> None:
    menu = STOCK.replace("DEFAULT", "0") + f"set default={PINNED}\n"
    assert "6.8.12" in trial_entry.default_entry(menu, b"")[0]


def test_a_menu_without_a_kernel_has_no_entry() -> None:
    assert trial_entry.default_entry('set default="0"\n', b"") == ("", False)


def test_the_trial_has_the_words_and_neither_the_id_nor_the_old_words_nor_savedefault() -> None:
    entry = trial_entry.default_entry(STOCK.replace("DEFAULT", "0"), b"")[0]
    trial = trial_entry.trial_entry(entry, ["quiet"], "homelab.trial iommu=pt")
    assert trial.startswith("menuentry 'GPU passthrough, on trial' --id homelab-trial --class gnu")
    assert "\tlinux\t/boot/vmlinuz-6.14.8-2-pve root=/dev/mapper/pve-root ro homelab.trial iommu=pt\n" in trial
    assert "savedefault" not in trial and "gnulinux" not in trial and "initrd.img-6.14.8-2-pve" in trial


def test_a_section_leaves_its_owners_custom_cfg_as_it_was_byte_for_byte() -> None:
    section = trial_entry.section("menuentry {\n}\n", ["AAAA-0001"])
    for theirs in (None, "", "menuentry x {\n}\n", "no newline at its end"):
        text = trial_entry.custom_cfg(theirs, section)
        assert text and text.endswith(section) and trial_entry.custom_cfg(text, section) == text
        assert trial_entry.custom_cfg(text, "") == theirs
        assert trial_entry.custom_cfg(f"{text}# more\n", "") == f"{theirs or ''}# more\n"


def test_each_choice_is_taken_back_by_grub() -> None:
    section = trial_entry.section("", [trial_entry.WRITABLE_MENU])
    assert section.count("save_env") == 1 and '"$prefix/homelab.env"' in section
    both = trial_entry.section("", ["AAAA-0001", "BBBB-0002"])
    assert both.count("save_env") == 2 and "homelab_place AAAA-0001\n" in both and "homelab_place BBBB-0002\n" in both


@pytest.mark.parametrize("value", ["once", "taken", "keep", "none"])
def test_a_choice_is_in_the_blocks_first_sector(value: str) -> None:
    block = trial_entry.environment(value)
    assert len(block) == 1024 and trial_entry.value_of(block[:512], "homelab_trial") == value


LVM = """\
KNAME="sda" PKNAME="" UUID="" PARTTYPE="" MOUNTPOINT=""
KNAME="sda1" PKNAME="sda" UUID="" PARTTYPE="21686148-6449-6e6f-744e-656564454649" MOUNTPOINT=""
KNAME="sda2" PKNAME="sda" UUID="AAAA-0001" PARTTYPE="c12a7328-f81f-11d2-ba4b-00a0c93ec93b" MOUNTPOINT="EFI"
KNAME="sda3" PKNAME="sda" UUID="x" PARTTYPE="e6d6d379-f507-44c2-a23c-238f2a3df928" MOUNTPOINT=""
KNAME="dm-1" PKNAME="sda3" UUID="y" PARTTYPE="" MOUNTPOINT="/"
KNAME="sdb" PKNAME="" UUID="" PARTTYPE="" MOUNTPOINT=""
KNAME="sdb1" PKNAME="sdb" UUID="BBBB-0002" PARTTYPE="c12a7328-f81f-11d2-ba4b-00a0c93ec93b" MOUNTPOINT=""
"""


def test_the_esp_is_the_one_at_boot_efi_or_the_only_one_on_the_disk_with_boot() -> None:
    assert trial_entry.esps(LVM.replace("EFI", "/boot/efi")) == ["AAAA-0001"]
    assert trial_entry.esps(LVM.replace("EFI", "")) == ["AAAA-0001"]
    assert trial_entry.esps(LVM.replace('PKNAME="sdb"', 'PKNAME="sda"').replace("EFI", "")) == []
    assert trial_entry.esps(LVM.replace("EFI", "").replace("AAAA-0001", "")) == []
    assert trial_entry.esps("") == []


CONF = "title    Proxmox Virtual Environment\nversion  6.14.8-2-pve\noptions  root=ZFS=rpool/ROOT/pve-1 boot=zfs old\nlinux    /x\n"


def test_systemd_boots_entry_is_a_copy_with_other_words() -> None:
    trial = trial_entry.copied(CONF, "title    GPU passthrough, on trial", ["old"], "homelab.trial iommu=pt")
    assert trial == CONF.replace("Proxmox Virtual Environment", "GPU passthrough, on trial").replace(
        "zfs old", "zfs homelab.trial iommu=pt"
    )
    second = trial_entry.copied(CONF, r"\g<0> again", ["old"], "")
    assert second == CONF.replace("Environment", "Environment again").replace("zfs old", "zfs")
    assert trial_entry.copied("title x\n", "title y", [], "y") == ""


def test_systemd_boots_default_is_the_newest_that_fits_or_the_pinned_one() -> None:
    names = ["proxmox-6.8.12-1-pve.conf", "proxmox-6.14.8-2-pve.conf", "memtest.conf"]
    assert trial_entry.default_conf("timeout 3\ndefault proxmox-*\n", names) == "proxmox-6.14.8-2-pve.conf"
    assert trial_entry.default_conf("default proxmox-6.8.12-1-pve.conf\n", names) == "proxmox-6.8.12-1-pve.conf"
    assert trial_entry.default_conf("default proxmox-6.8.12-1-pve\n", names) == "proxmox-6.8.12-1-pve.conf"
    assert trial_entry.default_conf("default proxmox-*\n", []) == ""


def test_a_variables_text_is_behind_its_attributes() -> None:
    assert trial_entry.efi_text(b"\x07\0\0\0" + "homelab-trial.conf\0".encode("utf-16-le")) == "homelab-trial.conf"


# Held by their readers' own checkers, where this machine has them; real menus of grub-mkconfig: tests/metal/test_trial.py.


def said_by(checker: str, *arguments: str) -> str:
    """What the checker finds."""
    program = shutil.which(checker) or pytest.skip(f"this machine has no {checker}")
    done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout + f"exit status {done.returncode}" * bool(done.returncode)


@pytest.mark.parametrize("places", [["AAAA-0001"], [trial_entry.WRITABLE_MENU], ["AAAA-0001", "BBBB-0002"]])
@pytest.mark.parametrize("default", ["0", "1>1"])
def test_grub_understands_the_menu_with_the_boot_on_trial(tmp_path: Path, default: str, places: list[str]) -> None:
    custom, menu = tmp_path / "custom.cfg", STOCK.replace("DEFAULT", default)
    menu = menu.replace("'Proxmox VE GNU/Linux'", "'It'\\''s \"mine\"; $x {'").replace(
        "quiet", 'dyndbg="file a.c +p; b +p"'
    )
    entry = trial_entry.trial_entry(trial_entry.default_entry(menu, b"")[0], ["ro"], "iommu=pt homelab.trial")
    for theirs in (None, "", "menuentry x {\n  true\n}", "# no newline at its end"):
        custom.write_text(trial_entry.custom_cfg(theirs, trial_entry.section(entry, places)) or "")
        assert said_by("grub-script-check", str(custom)) == "", custom.read_text()
    custom.write_text(custom.read_text().replace("\nfi\n", "\n", 1))
    assert "syntax error" in said_by("grub-script-check", str(custom)), "else it would find nothing"


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    units = {
        "homelab-rollback.service": rollback_timer._SERVICE_TEXT.format(after=600),
        "homelab-rollback.timer": rollback_timer._TIMER_TEXT.format(after=600),
        "homelab-owed.service": owed._SERVICE_TEXT,
        "homelab-owed.timer": owed._TIMER_TEXT,
    }
    for service in (card_nodes.SERVICE, handover.SERVICE, nvidia_nodes.SERVICE, nvidia_packages.PERSISTENCE):
        units |= service.units
    for name, text in units.items():
        (tmp_path / name).write_text(text.replace("/usr/bin/nvidia-smi", "/bin/true"))  # it has to be there
    assert "homelab-" not in said_by("systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir())))
    (tmp_path / "homelab-owed.timer").write_text("[Timer]\nOnBootSeconds=30s\n")
    assert "homelab-owed.timer" in said_by("systemd-analyze", "verify", "--man=no", f"{tmp_path}/homelab-owed.timer")
