"""The layer cmdline: words on the kernel command line of the next boot, and the second boot entry without them."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import scripts
from remote_scripts.both.cmdline import Wanted
from remote_scripts.cluster import turn
from remote_scripts.tools.done import Done
from tests.agent import boot_kit, disk_kit
from tests.agent.boot_kit import EACH_LOADER, ESPS, KERNELS, MENU, SYSTEMD_BOOT, configured_words, lasting, trial_line
from tests.agent.kit import Host, Refused, cuts, watched
from tests.agent.reading_kit import read

HOME = "/var/lib/homelab"
LINE = "/etc/kernel/cmdline"
WORDS = {"iommu": "amd_iommu=on iommu=pt", "vfio": "homelab.vfio=0000:01:00.0=10de:2882 modprobe.blacklist=nouveau"}
#: What has become of a run's changes.
OUTCOMES = ("what this run changed is put back", "what this run had done by then stays")
#: Disks alone: an EFI variable is the firmware's.
NO_FIRMWARE = r"/(?!run/|sys/)|/run/.*/esp-[^/]+/"
OTHER = "homelab.vfio=0000:01:00.0=10de:2882"


def ask(host: Host, verb: str, name: str = "iommu", words: str | None = None) -> Any:
    words = WORDS[name] if words is None else words
    return host.ask(verb, "cmdline", Wanted(name=name, words=words, rollback_after=600))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def stocked(host: Host, stocked_boot: None) -> None:
    # What runs already is written at once (tests/agent/test_trial.py has what doesn't).
    host.write("/proc/cmdline", f"quiet {WORDS['iommu']} {WORDS['vfio']} {OTHER}\n")


def second_entry(host: Host) -> str:
    return host.read(f"/esp/{ESPS[0]}/loader/entries/homelab-without-gpu-{KERNELS[0]}.conf")


@EACH_LOADER
def test_words_are_in_the_next_boot_and_given_back(host: Host, loader: str) -> None:
    before = lasting(host)
    assert ask(host, "apply") == {"changed": True}
    assert ask(host, "apply", "vfio")["changed"] is True
    assert {*WORDS["iommu"].split(), *WORDS["vfio"].split()} < set(configured_words(host))
    if loader == "grub":
        assert host.read("/etc/grub.d/12_homelab") == scripts.file("grub_entry.sh") + "\n"
    else:
        assert "without GPU passthrough" in second_entry(host) and "iommu" not in second_entry(host)
    configured = lasting(host)
    assert ask(host, "apply", "vfio") == {"changed": False}
    assert ask(host, "apply")["changed"] is False and lasting(host) == configured
    assert ask(host, "revert") == {"changed": True} and set(WORDS["vfio"].split()) < set(configured_words(host))
    for untold in ("", "", "judged", "rolled-back"):  # of an earlier boot
        if untold:
            host.write(f"{HOME}/{untold}", "it was")
        ask(host, "revert", "vfio")
        assert lasting(host) == before, untold


@EACH_LOADER
def test_words_that_others_have_there_are_left_to_them(host: Host, loader: str) -> None:
    if loader == "grub":
        host.write("/etc/default/grub.d/theirs.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt amd_iommu=on,x"\n')
        host.programs["grub-mkconfig"](("-o", f"{host.root}{MENU}"), b"")
    else:
        host.write(LINE, "iommu=pt amd_iommu=on,x\n")
        host.programs["proxmox-boot-tool"](("refresh",), b"")
    before = lasting(host)
    assert ask(host, "plan") == {"files": []}
    assert ask(host, "apply") == {"changed": False} and lasting(host) == before


def test_a_file_that_is_read_later_and_takes_the_words_away_is_named(host: Host) -> None:
    host.write("/etc/default/grub.d/zzz.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    before = lasting(host)
    with pytest.raises(Refused, match=r"found: +' quiet'\n(?s:.)*sorts after zz-homelab in /etc/default/grub.d"):
        ask(host, "apply")
    assert lasting(host) == before


@EACH_LOADER
def test_a_plan_names_what_is_written_and_made_and_changes_nothing(host: Host, loader: str) -> None:
    names = {
        "grub": ("/etc/default/grub.d/zz-homelab-vfio.cfg", "/etc/grub.d/12_homelab", MENU),
        "systemd-boot": (LINE, *(f"/etc/kernel/{one}.d/zzz-homelab" for one in ("postinst", "postrm")),
                         "the boot entries on 2 ESP(s)"),
    }[loader]  # fmt: skip
    before = host.tree()
    assert [one["what"] for one in ask(host, "plan", "vfio")["files"]] == [*names] and host.tree() == before
    ask(host, "apply", "vfio")
    assert ask(host, "plan", "vfio") == {"files": []}
    found = {one["what"]: one["how"] for one in ask(host, "plan", "vfio", "")["files"]}
    assert found == {name: "made" if name == names[-1] else "changed" if name == LINE else "removed" for name in names}


def test_a_reading_tells_a_menu_that_has_lost_its_words_from_what_is_configured(host: Host) -> None:
    ask(host, "apply", "vfio")
    found = read(host).cmdline
    assert found.generated.split()[1:] == found.configured.split() == ["quiet", *WORDS["vfio"].split()]
    host.write(MENU, host.read(MENU).replace(WORDS["vfio"], ""))
    found = read(host).cmdline
    assert found.generated.split()[1:] == ["quiet"] and found.configured.split() == ["quiet", *WORDS["vfio"].split()]


@pytest.mark.parametrize(
    "content",
    [
        "root=ZFS=rpool/ROOT/pve-1 boot=zfs\n",
        "root=ZFS=rpool/ROOT/pve-1 boot=zfs \n",  # as captured on a real host
        "root=ZFS=rpool/ROOT/pve-1 boot=zfs",
        "  root=x  boot=zfs\n# a second line, which nothing reads\n\n",
    ],
)
@SYSTEMD_BOOT
def test_the_line_comes_back_byte_for_byte(host: Host, content: str) -> None:
    host.write(LINE, content, 0o600)
    before = lasting(host)[LINE[1:]]
    ask(host, "apply")
    ask(host, "apply", "vfio")
    first, _, rest = host.read(LINE).partition("\n")
    assert first.endswith(f" {WORDS['iommu']} {WORDS['vfio']}") and rest == content.partition("\n")[2]
    host.write("/proc/cmdline", f"quiet amd_iommu=on {OTHER}\n")
    ask(host, "apply", words="amd_iommu=on")
    assert "iommu=pt" not in host.read(LINE)
    ask(host, "apply", "vfio", OTHER)  # it begins the text from before
    assert host.read(LINE).partition("\n")[0].endswith(f"amd_iommu=on {OTHER}")
    ask(host, "revert")
    ask(host, "revert", "vfio")
    assert lasting(host)[LINE[1:]] == before


@SYSTEMD_BOOT
@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("mitigations=off amd_iommu=on root=x iommu=pt nosmt", "mitigations=off root=x nosmt"),
        ("iommu=pt root=x amd_iommu=on iommu=pt", "iommu=pt root=x"),  # the same word as one of ours
    ],
)
def test_what_others_add_to_the_line_meanwhile_stays(host: Host, line: str, left: str) -> None:
    host.write(LINE, "root=x\n")
    ask(host, "apply")
    host.write(LINE, f"{line}\n")
    ask(host, "revert")
    assert host.read(LINE) == f"{left}\n"


@SYSTEMD_BOOT
def test_a_line_in_a_file_that_is_linked_to_stays_there(host: Host) -> None:
    (host.root / LINE[1:]).rename(host.root / "etc/kernel/real")
    (host.root / LINE[1:]).symlink_to("real")
    before = lasting(host)
    ask(host, "apply")
    assert (host.root / LINE[1:]).is_symlink() and "iommu=pt" in host.read("/etc/kernel/real")
    ask(host, "revert")
    assert lasting(host) == before


@SYSTEMD_BOOT
def test_a_line_that_cant_be_read_is_not_taken_for_an_empty_one(host: Host) -> None:
    ask(host, "apply")
    (host.root / HOME[1:] / "cmdline/iommu").unlink()
    (host.root / HOME[1:] / "cmdline/iommu").symlink_to("iommu")
    for verb in ("plan", "apply", "revert"):
        with pytest.raises(Refused, match="to read /var/lib/homelab/cmdline/iommu"):
            ask(host, verb)


@SYSTEMD_BOOT
def test_a_host_with_another_loader_by_now_has_nothing_left_of_the_first_one(host: Host) -> None:
    ask(host, "apply", "vfio")
    (host.root / "etc/kernel/proxmox-boot-uuids").unlink()  # without an EFI it is GRUB's
    (host.root / "sys/firmware/efi/efivars").rename(host.root / "sys/efivars")
    (host.root / "sys/firmware/efi").rmdir()
    ask(host, "apply", "vfio")
    assert "homelab" not in host.read(LINE) and not host.exists("/etc/kernel/postinst.d/zzz-homelab")
    assert host.read(f"{HOME}/files/vfio/etc/default/grub.d/zz-homelab-vfio.cfg")
    ask(host, "revert", "vfio")
    assert not host.exists("/etc/default/grub.d/zz-homelab-vfio.cfg")


def test_a_menu_that_lacks_the_words_is_made_anew(host: Host) -> None:
    ask(host, "apply")
    configured = lasting(host)
    host.write(MENU, host.read(MENU).replace("iommu=pt", ""), 0o644)
    assert [one["how"] for one in ask(host, "plan")["files"]] == ["made"]
    assert ask(host, "apply")["changed"] is False and lasting(host) == configured


@SYSTEMD_BOOT
def test_entries_are_made_anew_after_a_boot_without_the_words(host: Host) -> None:
    ask(host, "apply")
    assert ask(host, "plan") == {"files": []}
    boot_kit.booted(host, "quiet")
    assert [one["how"] for one in ask(host, "plan")["files"]] == ["made"]
    boot_kit.booted(host, f"quiet {WORDS['iommu']}")
    assert ask(host, "plan") == {"files": []}


@EACH_LOADER
def test_a_word_that_somebody_else_has_by_now_is_left_to_them_without_a_trial(host: Host, loader: str) -> None:
    ask(host, "apply")
    theirs = {
        "grub": ("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt"\n'),
        "systemd-boot": (LINE, "iommu=pt\n"),
    }
    host.write(*theirs[loader])
    assert ask(host, "apply") == {"changed": True} and not host.exists(boot_kit.TRIAL)
    assert sorted(configured_words(host)) == ["amd_iommu=on", "iommu=pt"]


@EACH_LOADER
def test_a_configuration_that_cant_be_made_changes_nothing(host: Host) -> None:
    whole = lasting(host)
    boot_kit.spoil(host)
    before = lasting(host)
    with pytest.raises(Refused, match="the boot configuration generated again\nfound: +(no room|.*it isn't whole)"):
        ask(host, "apply")
    assert lasting(host) == before
    boot_kit.mend(host)
    assert ask(host, "apply")["changed"] is True
    ask(host, "revert")
    assert lasting(host) == whole


@EACH_LOADER
def test_what_was_made_of_files_that_are_put_back_is_still_to_be_made(host: Host) -> None:
    """The disk fails when the note of that has gone already."""
    before = lasting(host)

    def fails(call: str, path: str) -> None:
        if call == "flush" and path.endswith("/pending") and not host.exists(f"{HOME}/pending/boot"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with watched(fails), pytest.raises(Refused, match="Input/output error"):
        ask(host, "apply")
    ask(host, "revert")
    assert lasting(host) == before


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (0, "grub-mkconfig has made a menu without any kernel; the one from before is there still"),
        (2, "cat: write error: No space left on device"),
    ],
)
def test_a_menu_without_a_kernel_is_no_menu(host: Host, status: int, message: str) -> None:
    """A broken command makes GRUB's scripts find no kernel, and grub-mkconfig end well; or there is no room for all of it."""
    before = lasting(host)

    def makes_none(arguments: Sequence[str], _stdin: bytes) -> Done:
        for path in (arguments[1], f"{arguments[1]}.new"):
            Path(path).write_text("set default=0\n")
        return Done(status, b"cat: write error: No space left on device\n")

    host.programs["grub-mkconfig"] = makes_none
    with pytest.raises(Refused, match=message):
        ask(host, "apply")
    assert lasting(host) == before


@EACH_LOADER
def test_a_cut_while_the_configuration_is_made_leaves_a_whole_one(host: Host, loader: str, tmp_path: Path) -> None:
    for number, cut in enumerate(cuts(host, lambda one: ask(one, "apply"), most=40, name=f"menu {loader}")):
        left = boot_kit.after(cut, host, tmp_path / str(number))
        assert configured_words(left)[:1] in (["quiet"], ["root=ZFS=rpool/ROOT/pve-1"]), cut.how


def test_a_revert_finishes_an_initramfs_that_nobody_else_comes_to_make(host: Host) -> None:
    image = f"/boot/initrd.img-{KERNELS[0]}"
    before = host.read(image)
    host.write(image, "homelab-vfio is in it")
    host.write(f"{HOME}/pending/initramfs", "")
    host.write(f"{HOME}/wanted-boot", "")
    ask(host, "revert")
    assert host.read(image) == before and not host.exists(HOME)
    host.write(f"{HOME}/pending/initramfs", "")
    host.programs["update-initramfs"] = lambda _arguments, _stdin: Done(1, b"no room")
    ask(host, "revert")
    assert host.exists(f"{HOME}/pending/initramfs")


def test_a_revert_gives_the_nodes_turn_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(turn, "give_back", lambda _system: given.append(True))
    ask(host, "apply")
    ask(host, "revert")
    assert given == [True]


def test_without_a_known_loader_nothing_begins(host: Host) -> None:
    (host.root / "sys/firmware/efi").mkdir(parents=True)
    (host.root / MENU[1:]).unlink()
    before = lasting(host)
    for verb in ("plan", "apply", "revert"):
        with pytest.raises(Refused, match="which boot loader"):
            ask(host, verb)
    assert lasting(host) == before


def test_words_in_grubs_menu_are_given_back_whatever_starts_the_host_by_now(host: Host) -> None:
    """Such as rEFInd, by which they have no effect: that they have none is why somebody gives them back."""
    before = lasting(host)
    ask(host, "apply", "vfio")
    (host.root / "sys/firmware/efi").mkdir(parents=True)
    ask(host, "revert", "vfio")
    assert lasting(host) == before


def test_what_an_older_program_has_said_besides_is_passed_over_when_it_is_given_back(host: Host) -> None:
    """`revert` comes in the words that a state keeps."""
    before = lasting(host)
    ask(host, "apply")
    wanted = {"name": "iommu", "words": WORDS["iommu"], "entry": True, "rollback_after": 90}
    host.ask("revert", "cmdline", wanted)
    host.ask("revert", "initramfs", {"needed": True, "rollback_after": 90})
    assert lasting(host) == before


def test_a_former_dead_mans_switch_goes_with_the_words(host: Host) -> None:
    before = lasting(host)
    for name in ("armed", "rollback"):
        host.write(f"/var/lib/homelab/{name}", "former")
    ask(host, "revert")
    assert lasting(host) == before


@pytest.mark.parametrize("where", ["/(?!run/)", "/var/"])
def test_on_a_full_disk_the_message_comes_first_and_nothing_of_ours_is_left(
    host: Host, where: str, tmp_path: Path
) -> None:
    """What could not be made of the old files either is still to be done. Words that are tried first: test_trial.py."""
    before, failed = lasting(host), 0
    found = [*boot_kit.on_a_full_disk(host, lambda one: ask(one, "apply", "vfio"), tmp_path / "full", where)]
    configured = lasting(found[-1][2])
    for number, said, left in found:
        ours = {key for key in {*lasting(left), *before} if lasting(left).get(key) != before.get(key)}
        if said:
            failed += 1
            notes = {HOME[1:], *(f"{HOME[1:]}/{one}" for one in ("pending", "pending/boot", "pending/initramfs"))}
            assert said.startswith("wanted: ") and ours <= notes, number
        ask(left, "apply", "vfio")
        assert lasting(left) == configured, number
    assert failed


@EACH_LOADER
def test_on_a_full_disk_the_message_says_what_is_put_back_and_the_next_run_goes_on(host: Host, tmp_path: Path) -> None:
    """A word goes at once while another layer's are on trial, whose entry is made anew: without that word, too."""
    before, said_of = lasting(host), set[str]()
    ask(host, "apply", "vfio")
    host.write("/proc/cmdline", f"quiet {OTHER}\n")
    ask(host, "apply")
    start, words = lasting(host), {" ".join(configured_words(host))}
    full = boot_kit.on_a_full_disk(host, lambda one: ask(one, "apply", "vfio", OTHER), tmp_path / "full", NO_FIRMWARE)
    found = [*full]
    configured, words = lasting(found[-1][2]), {*words, " ".join(configured_words(found[-1][2]))}
    assert OTHER in trial_line(found[-1][2]) and "nouveau" not in trial_line(found[-1][2])
    for number, said, left in found:
        now, twin = lasting(left), Host(tmp_path / f"twin {number}")
        differs = [key for key in {*now, *start} if now.get(key) != start.get(key) and not key.startswith(HOME[1:])]
        said_of |= {outcome for outcome in OUTCOMES if outcome in said}
        assert not (differs and OUTCOMES[0] in said), number
        assert differs or OUTCOMES[1] not in said, number
        assert {" ".join(configured_words(left))} < words, number
        disk_kit.write(twin.root, {**now, **left.tree("proc", "sys")})
        boot_kit.run(twin)
        for name in ("vfio", "iommu"):
            ask(twin, "revert", name)
        assert lasting(twin) == before, number
        ask(left, "apply", "vfio", OTHER)
        assert lasting(left) == configured, number
    assert said_of == {*OUTCOMES}
