"""remote_scripts/tools/words.py and loaders: the words of a kernel command line, and where they are configured."""

from __future__ import annotations

import pytest

from remote_scripts.boot.loaders.found import GRUB, SYSTEMD_BOOT, own
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.words import missing_words, without_words
from tests.agent.kit import Host, of_machine
from tests.rows import rows


@pytest.fixture
def grub(host: Host) -> Host:
    """Only a shell knows what GRUB's settings say."""
    host.programs |= of_machine("bash")
    return host


@rows(
    ("text", "words", "left"),
    [
        ("quiet amd_iommu=on iommu=pt", "amd_iommu=on iommu=pt", "quiet"),
        ("iommu=pt quiet iommu=pt", "iommu=pt", "quiet"),
        ("iommu=pt iommu=pt iommu=pt", "iommu=pt", ""),
        ("iommu=ptx quiet", "iommu=pt", "iommu=ptx quiet"),
        ('dyndbg="file a.c  +p" quiet iommu=pt', "iommu=pt", 'dyndbg="file a.c  +p" quiet'),
        ("  root=x  boot=zfs ", "boot=zfs", "  root=x  "),
        ("", "x", ""),
    ],
)
def test_words_are_taken_out_and_nothing_else(text: str, words: str, left: str) -> None:
    assert without_words(text, words.split()) == left


@rows(
    ("line", "there"),
    [
        ("", ""), ("quiet", "quiet"), ("quiet iommu=pt", "quiet iommu=pt"), ("iommu=ptx", ""), ("xiommu=pt", ""), ("iommu=pt,nobypass", "iommu=pt"),
        ("intel_iommu=on,sm_on", "intel_iommu=on"), ("amd_iommu=on,pgtbl_v2 quiet", "amd_iommu=on quiet"), ("intel_iommu=off", ""), ("quiet,x", ""),
        ("homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8", ""),
        ("homelab.vfio=0000:01:00.0=10de:2b85", "homelab.vfio=0000:01:00.0=10de:2b85"), ("  iommu=pt   quiet ", "iommu=pt quiet"),
        ("dyndbg=\"file x iommu=pt \" amd_iommu=on", "iommu=pt amd_iommu=on"), ("IOMMU=PT", ""),
    ],
)  # fmt: skip
def test_a_word_is_on_a_command_line_as_it_stands(line: str, there: str) -> None:
    words = ["iommu=pt", "amd_iommu=on", "intel_iommu=on", "quiet", "homelab.vfio=0000:01:00.0=10de:2b85"]
    assert {*words} - {*missing_words(" ".join(words), line)} == {*there.split()}


def test_an_iommu_word_may_have_more_options() -> None:
    assert missing_words("intel_iommu=on iommu=pt quiet", "intel_iommu=on,sm_on quiet,x") == ["iommu=pt", "quiet"]


def test_grub_words_are_those_that_grub_mkconfig_would_see(grub: Host) -> None:
    settings = 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="root=ZFS=x"\necho noise\nfalse\n'
    grub.write("/etc/default/grub", settings)
    grub.write("/etc/default/grub.d/local.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT nosmt"\n')
    assert own(grub.system()) == {"iommu": "", "vfio": ""}
    ours = 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT iommu=pt"\n'
    ours += 'export HOMELAB_WORDS="${HOMELAB_WORDS:-} iommu=pt"\n'
    grub.write("/etc/default/grub.d/zz-homelab-iommu.cfg", ours)
    grub.write("/etc/default/grub.d/.zz-homelab-iommu.cfg.homelab-tmp", ours)
    assert own(grub.system()) == {"iommu": "iommu=pt", "vfio": ""}
    assert GRUB.configured(grub.system()) == "root=ZFS=x quiet nosmt iommu=pt"
    assert GRUB.configured(grub.system(), {}) == "root=ZFS=x quiet nosmt"


def test_words_to_come_are_where_their_file_will_be(grub: Host) -> None:
    grub.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    grub.write("/etc/default/grub.d/zz-homelab-iommu.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="old"\n')
    words = {"iommu": "iommu=pt", "vfio": "homelab.vfio=1"}
    assert GRUB.configured(grub.system(), words).split() == ["quiet", "iommu=pt", "homelab.vfio=1"]
    grub.write("/etc/default/grub.d/zzz.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="theirs"\n')
    assert GRUB.configured(grub.system(), words).split() == ["theirs"]


def test_without_any_settings_grub_gives_no_words(grub: Host) -> None:
    assert GRUB.configured(grub.system()).strip() == ""


def test_a_setting_that_ends_the_shell_is_not_taken_for_no_words(grub: Host) -> None:
    grub.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX="iommu=pt"\nexit 0\n')
    with pytest.raises(Failure) as refused:
        GRUB.configured(grub.system())
    assert "/etc/default/grub" in refused.value.wanted


def test_the_first_line_alone_counts_for_systemd_boot(host: Host) -> None:
    host.write("/etc/kernel/cmdline", "root=x iommu=pt quiet homelab.vfio=1\n# a second line, which nothing reads\n")
    host.write("/var/lib/homelab/cmdline/iommu", " iommu=pt\n")
    host.write("/var/lib/homelab/cmdline/vfio", " homelab.vfio=0\n homelab.vfio=1\n")
    host.write("/var/lib/homelab/cmdline/.vfio.homelab-tmp", " quiet\n")
    assert SYSTEMD_BOOT.configured(host.system()) == "root=x iommu=pt quiet homelab.vfio=1"
    assert SYSTEMD_BOOT.configured(host.system(), {}) == "root=x quiet"
    words = {"iommu": "", "vfio": "homelab.vfio=2"}
    assert SYSTEMD_BOOT.configured(host.system(), words) == "root=x quiet homelab.vfio=2"


def test_what_cannot_be_read_is_said(host: Host) -> None:
    host.write("/etc/kernel/x", "").unlink()
    (host.root / "etc/kernel/cmdline").symlink_to("cmdline")  # it leads to itself: nobody can read that
    with pytest.raises(Failure) as refused:
        SYSTEMD_BOOT.configured(host.system())
    assert "/etc/kernel/cmdline" in refused.value.wanted


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "menuentry x {\n\tlinux\t/boot/vmlinuz-1 root=x  quiet \n\tinitrd /x\n}\n\tlinux /boot/b other\n",
            "root=x  quiet ",
        ),
        ("  linuxefi /vmlinuz root=y", "root=y"),
        ("  linux16 /vmlinuz root=y\n", ""),
        ("# linux /x y\n\tlinux \n\tlinux /boot/b other\n", ""),
        ("\tlinux /boot/a\n\tlinux /boot/b other\n", ""),
        ("", ""),
    ],
)
def test_the_first_entry_of_the_menu_was_generated(host: Host, text: str, line: str) -> None:
    host.write("/boot/grub/grub.cfg", text)
    assert GRUB.generated(host.system()) == line


def test_a_menu_that_cannot_be_read_is_not_taken_for_none(host: Host) -> None:
    assert GRUB.generated(host.system()) == ""
    host.write("/boot/grub/x", "").unlink()
    (host.root / "boot/grub/grub.cfg").symlink_to("grub.cfg")
    with pytest.raises(Failure) as refused:
        GRUB.generated(host.system())
    assert "/boot/grub/grub.cfg" in refused.value.wanted
