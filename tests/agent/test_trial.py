"""A boot on trial: armed by the layer cmdline, judged by boot_verdict, which its timer asks, confirmed by confirm_boot, which an `up` asks."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from inline_snapshot import snapshot

from homelab.remote import scripts
from remote_scripts.boot import esp, trial, trial_entry
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both.cmdline import Wanted as Cmdline
from remote_scripts.both.confirm_boot import Wanted as Confirm
from remote_scripts.both.read_host import Wanted as ReadHost
from remote_scripts.both.reboot import Wanted as Reboot
from remote_scripts.layers import boot_verdict
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure, NotConfirmed
from remote_scripts.tools.files import Files
from tests import sampling
from tests.agent import api_kit, boot_kit, cluster_kit
from tests.agent.boot_kit import CHOICE, EACH_LOADER, HOME, MENU, ONE_SHOT, SYSTEMD_BOOT, TRIAL, lasting, trial_line
from tests.agent.kit import Host, Refused, cuts, failing, held, watched
from tests.bench import job as jobs

JUDGED, ROLLED_BACK = f"{HOME}/judged", f"{HOME}/rolled-back"
WORDS, IOMMU = "homelab.vfio=0000:01:00.0=10de:2882", "amd_iommu=on iommu=pt"
STAYS = "vmbr0 is up with 192.0.2.10, its gateway 192.0.2.1 answers, and sshd listens on port 22"
LINK = "/etc/systemd/system/timers.target.wants/homelab-rollback.timer"
CUSTOM = "/boot/grub/custom.cfg"
REACHABLE = "192.0.2.1 lladdr 00:00:5e:00:53:01 REACHABLE\n"


Name = Literal["iommu", "vfio"]


@pytest.fixture(autouse=True)
def stocked(host: Host, stocked_boot: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_scripts.tools.state._TRY_SECONDS", 0.1)
    for name in ("panic", "softlockup_panic"):
        host.write(f"/proc/sys/kernel/{name}", "0\n")


def arm(host: Host, name: Name = "vfio", words: str = WORDS, verb: str = "apply") -> Any:
    return host.ask(verb, "cmdline", Cmdline(name=name, words=words, rollback_after=90))


def revert(host: Host, name: Name = "vfio") -> Any:
    return arm(host, name, "", "revert")


def verdict(host: Host) -> str:
    return str(host.ask("apply", "boot_verdict", boot_verdict.Wanted(seconds=2, lock_seconds=0)))


def confirm(host: Host, **wanted: Any) -> Any:
    return host.ask("apply", "confirm_boot", Confirm(**{"lock_seconds": 0, **wanted}))


def state(host: Host) -> str:
    return trial.state(host.system())


def on_disk(host: Host) -> dict[str, Any]:
    """What a boot reads, of homelab's or not: without notes."""
    return {key: about for key, about in lasting(host).items() if not key.startswith((HOME[1:], "proc", "sys", "run"))}


@pytest.fixture
def tried(host: Host) -> Host:
    """A host in the boot on trial."""
    boot_kit.configure(host, WORDS)
    assert state(host) == "running"
    return host


# Armed.


@EACH_LOADER
def test_the_default_stays_what_boots_today_and_the_trial_is_chosen_for_one_boot(host: Host, loader: str) -> None:
    before = boot_kit.configured_words(host)
    menu = {key: about for key, about in lasting(host).items() if key == MENU[1:] or "/entries/proxmox-" in key}
    assert arm(host, "iommu", IOMMU) == {"changed": True}
    assert arm(host) == {"changed": True}
    assert trial_line(host).split()[-6:] == [*IOMMU.split(), WORDS, "homelab.trial", "panic=30", "softlockup_panic=1"]
    assert {key: about for key, about in lasting(host).items() if key in menu} == menu
    assert not [key for key in lasting(host) if "zz-homelab" in key or "cmdline/" in key]
    assert boot_kit.starts(host) and state(host) == "running"
    assert not boot_kit.starts(host, "third") and boot_kit.configured_words(host) == before and state(host) == "over"


def test_peers_of_the_benchmark_are_not_asked_for_the_words_of_the_trial(tried: Host) -> None:
    assert confirm(tried)["confirmed"] and "homelab.trial" in tried.read("/proc/cmdline")
    assert jobs.words(tried.root) == [WORDS]


@EACH_LOADER
def test_what_is_armed_is_no_drift_and_armed_once(host: Host) -> None:
    arm(host, "iommu", IOMMU)
    arm(host)
    armed = lasting(host)
    host.programs |= {name: lambda *_: "" for name in ("lspci", "dmesg", "dpkg-query", "pveversion")}
    for words in ("", trial_line(host)):
        if words:
            boot_kit.booted(host, words)
            armed = lasting(host)
        found = host.ask("read", "read_host", ReadHost())["cmdline"]
        assert {*IOMMU.split(), WORDS} < {*found["configured"].split()} and found["generated"] == ""
        assert not {*IOMMU.split(), WORDS} & {*found["others"].split()}
        assert arm(host)["changed"] is False and arm(host, "iommu", IOMMU)["changed"] is False
        assert lasting(host) == armed and arm(host, verb="plan") == {"files": []}


def test_a_layer_without_words_that_is_done_again_leaves_the_boot_on_trial_to_be_confirmed(tried: Host) -> None:
    """As by a version with another agent, which does each layer again."""
    running = lasting(tried)
    assert arm(tried, "iommu", "")["changed"] is False
    assert lasting(tried) == running and state(tried) == "running"
    assert confirm(tried)["confirmed"]


@EACH_LOADER
def test_a_plan_names_what_the_confirmation_writes(host: Host, loader: str) -> None:
    before = host.tree()
    names = {one["what"] for one in arm(host, verb="plan")["files"]}
    assert {"grub": MENU, "systemd-boot": "the boot entries on 2 ESP(s)"}[loader] in names and host.tree() == before


@EACH_LOADER
def test_it_is_given_back_byte_for_byte_before_it_was_tried_and_after(host: Host) -> None:
    before = lasting(host)
    for boots in (0, 1, 2):
        arm(host, "iommu", IOMMU)
        arm(host)
        for number in range(boots):
            boot_kit.starts(host, f"boot {number}")
        revert(host)
        if boots < 2:
            assert IOMMU in trial_line(host) and WORDS not in trial_line(host)
        revert(host, "iommu")
        assert lasting(host) == before and state(host) == "" and not boot_kit.choice(host)
        boot_kit.booted(host, "quiet", "boot")


def test_the_units_are_there_with_their_seconds(host: Host) -> None:
    arm(host)
    assert host.read(f"{HOME}/rollback") == scripts.file("rollback.sh") + "\n"
    assert (host.root / LINK[1:]).readlink() == Path("/etc/systemd/system/homelab-rollback.timer")
    service, timer = (host.read(f"/etc/systemd/system/homelab-rollback.{kind}") for kind in ("service", "timer"))
    assert "\nExecStart=/bin/sh /var/lib/homelab/rollback 90\n" in service and "\nOnStartupSec=90s\n" in timer
    assert "\nDefaultDependencies=no\nConflicts=shutdown.target\n" in timer, "emergency mode has none of sysinit.target"
    about = {path: (host.root / path[1:]).stat().st_mode & 0o777 for path in (f"{HOME}/rollback", TRIAL)}
    assert about == {f"{HOME}/rollback": 0o700, TRIAL: 0o600}


def test_a_default_that_cant_be_told_is_said_and_the_first_entry_is_tried(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.write(MENU, host.read(MENU).replace('default="0"', 'default="gone"'))
    arm(host)
    assert trial_line(host) and f"vmlinuz-{boot_kit.KERNELS[0]}" in host.read(CUSTOM)
    assert "which entry GRUB starts by default can't be told: the trial is its first one" in capsys.readouterr().err


@SYSTEMD_BOOT
def test_each_esp_has_the_trial(host: Host) -> None:
    """The firmware may start either."""
    arm(host)
    entries = [host.read(f"/esp/{uuid}/loader/entries/homelab-trial.conf") for uuid in boot_kit.ESPS]
    assert len({*entries}) == 1 and WORDS in entries[0]


@pytest.mark.parametrize("theirs", ["menuentry theirs {\n}", ""])
def test_an_owners_custom_cfg_and_menu_keep_their_bytes_and_their_mode(host: Host, theirs: str) -> None:
    host.write(CUSTOM, theirs, 0o600)
    (host.root / MENU[1:]).chmod(0o444)
    before = lasting(host)
    arm(host)
    assert host.read(CUSTOM).startswith(f"{theirs}\n# homelab") and trial_line(host)
    assert (host.root / CUSTOM[1:]).stat().st_mode & 0o777 == 0o600
    boot_kit.starts(host)
    confirm(host)
    assert WORDS in boot_kit.configured_words(host) and (host.root / MENU[1:]).stat().st_mode & 0o777 == 0o444
    revert(host)
    assert lasting(host) == before


@EACH_LOADER
def test_a_confirmed_trial_is_given_back_though_an_esp_is_full(tried: Host, loader: str) -> None:
    """Its menu could not be made: what the host has besides is the choice, and the entry of it."""
    before = boot_kit.configured_words(tried)
    tried.write("/fail", "")
    write = Files.write

    def full(files: Files, path: str, content: bytes, mode: int) -> None:
        if path.startswith("/run/homelab/esp-"):
            raise OSError(28, "No space left on device", path)
        write(files, path, content, mode)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Files, "write", full)
        confirm(tried)
        assert state(tried) == "confirmed" and boot_kit.configured_words(tried) == before
        assert revert(tried)["changed"] is True
    (tried.root / "fail").unlink()
    assert state(tried) == "" and not trial_line(tried) and boot_kit.configured_words(tried) == before
    assert not tried.exists(TRIAL) and boot_kit.choice(tried) in ("", "none")


def test_while_an_esp_cant_be_mounted_nothing_is_given_back_and_it_is_said_what_to_do(host: Host) -> None:
    stock = lasting(host)
    arm(host)
    before, real = on_disk(host), host.programs["mount"]
    host.programs["mount"] = lambda *_: Done(32, b"can't read superblock")
    said = f"mend /dev/disk/by-uuid/{boot_kit.ESP}, or take its disk out; then run the same"
    with pytest.raises(Refused, match=said):
        revert(host)
    assert on_disk(host) == before
    host.programs["mount"] = real
    revert(host)
    assert lasting(host) == stock


def test_neither_version_answers_the_other_ones_roll_back_program(host: Host) -> None:
    """A second stack's agent may be an earlier one, which knows of no trial, and finds every boot in order."""
    with pytest.raises(Refused, match="seconds is missing"):
        host.ask("apply", "boot_verdict", {"after": 2})


def test_a_change_of_words_is_tried_without_those_from_before(tried: Host) -> None:
    confirm(tried)
    boot_kit.starts(tried, "third")
    assert arm(tried, words="homelab.vfio=other")["changed"] is True
    assert WORDS not in trial_line(tried) and "homelab.vfio=other homelab.trial" in trial_line(tried)
    assert WORDS in boot_kit.configured_words(tried)
    boot_kit.starts(tried, "fourth")
    assert confirm(tried)["confirmed"] == "fourth"
    assert "homelab.vfio=other" in boot_kit.configured_words(tried) and WORDS not in boot_kit.configured_words(tried)


@EACH_LOADER
def test_what_only_goes_and_what_runs_already_is_written_at_once(tried: Host) -> None:
    confirm(tried)
    arm(tried, words="")
    assert WORDS not in boot_kit.configured_words(tried) and state(tried) == ""
    arm(tried)
    assert WORDS in boot_kit.configured_words(tried) and state(tried) == ""


def test_without_an_esp_the_choice_is_beside_the_menu_where_grub_can_write(host: Host) -> None:
    host.programs["lsblk"] = lambda *_: ""
    host.programs["grub-probe"] = lambda arguments, _stdin: "" if arguments[0] == "--target=abstraction" else "ext2"
    arm(host, verb="plan")
    arm(host)
    assert host.read("/boot/grub/homelab.env").startswith("# GRUB Environment Block\nhomelab_trial=once\n")
    assert "save_env --file" in host.read(CUSTOM) and trial_entry.RESTARTS in trial_line(host)
    assert not host.exists(CHOICE)
    revert(host)
    assert not host.exists("/boot/grub/homelab.env")


@pytest.mark.parametrize("verb", ["plan", "apply"])
@pytest.mark.parametrize(("abstraction", "kind"), [("lvm", "ext2"), ("", "zfs"), ("diskfilter", "xfs")])
def test_where_grub_can_take_the_choice_back_nowhere_an_esp_is_asked_for_before_anything_is_changed(
    host: Host, abstraction: str, kind: str, verb: str
) -> None:
    host.programs["lsblk"] = lambda *_: ""
    host.programs["grub-probe"] = lambda arguments, _stdin: (
        abstraction if arguments[0] == "--target=abstraction" else kind
    )
    before = lasting(host)
    with pytest.raises(Refused) as refused:
        arm(host, verb=verb)
    said = str(refused.value)
    assert f"GRUB can't write beside its menu, in /boot/grub ({', '.join(filter(None, (abstraction, kind)))})" in said
    assert "make an EFI system partition on that disk" in said and lasting(host) == before


@SYSTEMD_BOOT
def test_without_variables_systemd_boot_counts_an_entry_unless_a_kernel_is_pinned(host: Host) -> None:
    (host.root / ONE_SHOT[1:]).mkdir(parents=True)  # which no write makes a variable of
    before = lasting(host)
    arm(host)
    names = {key.rpartition("/")[2] for key in {*lasting(host)} - {*before} if key.startswith("esp/")}
    assert names == {"proxmox-999-homelab-trial+1.conf"}
    path = host.root / f"esp/{boot_kit.ESPS[0]}/loader/entries/proxmox-999-homelab-trial+1.conf"
    path.rename(path.with_name("proxmox-999-homelab-trial+0-1.conf"))  # as the loader leaves it
    revert(host)
    assert lasting(host) == before
    for uuid in boot_kit.ESPS:
        host.write(f"/esp/{uuid}/loader/loader.conf", f"default proxmox-{boot_kit.KERNELS[0]}.conf\n")
    before = lasting(host)
    with pytest.raises(Refused, match="found: +no EFI variable is kept: Is a directory"):
        arm(host)
    assert lasting(host) == before


@SYSTEMD_BOOT
def test_a_variable_that_firmware_does_not_keep_is_read_back(host: Host) -> None:
    variable = host.root / ONE_SHOT[1:]
    variable.parent.mkdir(parents=True, exist_ok=True)
    variable.symlink_to("/dev/null")
    arm(host)
    assert host.exists(f"/esp/{boot_kit.ESPS[0]}/loader/entries/proxmox-999-homelab-trial+1.conf")
    assert host.read(ONE_SHOT) == ""


@SYSTEMD_BOOT
def test_of_two_esps_one_may_be_unplugged(host: Host) -> None:
    (host.root / f"dev/disk/by-uuid/{boot_kit.ESPS[0]}").unlink()
    arm(host)
    assert trial_line(host) and boot_kit.starts(host) and confirm(host)["confirmed"] == "later"
    entry = f"loader/entries/proxmox-{boot_kit.KERNELS[0]}.conf"
    assert [WORDS in host.read(f"/esp/{uuid}/{entry}") for uuid in boot_kit.ESPS] == [False, True]


@pytest.mark.parametrize("act", [verdict, revert, confirm])
def test_a_loader_that_is_changed_before_the_trial_starts_what_booted_before(
    host: Host, act: Callable[[Host], Any], tmp_path: Path
) -> None:
    """As `proxmox-boot-tool init` leaves a host that GRUB has started."""
    stock = Host(tmp_path / "stock")
    arm(host)
    for loader, one in (("grub", stock), ("systemd-boot", stock), ("systemd-boot", host)):
        boot_kit.stock(one, loader)
    boot_kit.booted(host, " ".join(boot_kit.configured_words(host)))
    assert WORDS not in host.read("/proc/cmdline") and state(host) == "over"
    act(host)
    assert state(host) == "" and on_disk(host) == on_disk(stock)
    assert act is revert or "boot loader" in host.read(ROLLED_BACK)


def test_a_loader_that_is_changed_during_the_trial_starts_what_is_confirmed(host: Host) -> None:
    arm(host)
    boot_kit.starts(host)
    running = host.read("/proc/cmdline").strip()
    boot_kit.stock(host, "systemd-boot")
    boot_kit.booted(host, running)
    assert confirm(host)["confirmed"] == "later" and state(host) == "" and WORDS in boot_kit.configured_words(host)
    assert not host.exists(CUSTOM) and not host.exists(CHOICE)


@pytest.mark.parametrize("what", ["no ESP", "mount", "no custom.cfg", "no kernel"])
def test_what_cant_be_tried_is_refused_and_nothing_is_left(host: Host, what: str) -> None:
    if what == "no ESP":
        (host.root / f"dev/disk/by-uuid/{boot_kit.ESP}").unlink()
    elif what == "mount":
        host.programs["mount"] = lambda *_: Done(32, b"wrong fs type")
    else:
        gone = "custom.cfg" if what == "no custom.cfg" else "\tlinux"
        host.write(MENU, host.read(MENU).replace(gone, "x"))
    before = lasting(host)
    with pytest.raises(Refused, match="tried once, by an entry of its own|to mount the EFI system partition"):
        arm(host)
    assert lasting(host) == before and state(host) == ""


def test_a_second_layer_that_cant_be_tried_leaves_the_first_ones_trial(host: Host) -> None:
    arm(host, "iommu", IOMMU)
    before = lasting(host)
    real, runs = host.programs["mount"], itertools.count()
    host.programs["mount"] = lambda *words: real(*words) if next(runs) else Done(32, b"once")
    with pytest.raises(Refused, match="once"):
        arm(host)
    assert lasting(host) == before and boot_kit.choice(host) == "once"


@EACH_LOADER
def test_words_of_a_change_that_failed_are_not_tried_later(host: Host, loader: str) -> None:
    arm(host, "iommu", IOMMU)
    arm(host)
    with failing(errno.ENOSPC, "write", at="/esp-"), pytest.raises(Refused):
        arm(host, words="homelab.vfio=other")
    assert not trial_line(host) and not trial.is_chosen(host.system())
    assert arm(host, "iommu", IOMMU)["changed"] is True and trial_line(host).split()[-6:-3] == [*IOMMU.split(), WORDS]


def test_a_trial_that_can_neither_be_armed_nor_taken_back_keeps_its_note_and_its_timer(host: Host) -> None:
    """As on an ESP that the kernel makes read-only in the moment of the choice."""
    is_read_only: list[str] = []

    def watch(call: str, path: str) -> None:
        if call == "flush" and path.endswith("grubenv") and b"=once" in Path(path).read_bytes():
            is_read_only.append(path)
        if is_read_only and "/esp-" in path:
            raise OSError(30, "Read-only file system", path)

    with watched(watch), pytest.raises(Refused):
        arm(host)
    assert boot_kit.starts(host) and state(host) == "running" and host.exists(LINK)


@EACH_LOADER
def test_a_failed_revert_leaves_the_others_trial_as_it_is_noted(host: Host, loader: str) -> None:
    boot_kit.configure(host, WORDS)
    confirm(host)
    arm(host, "iommu", IOMMU)
    arm(host, words="homelab.vfio=other")
    boot_kit.spoil(host)
    with pytest.raises(Refused):
        revert(host)
    boot_kit.mend(host)
    arm(host, "iommu", IOMMU)
    assert trial.is_chosen(host.system()) and boot_kit.starts(host, "another") and state(host) == "running"


@EACH_LOADER
@pytest.mark.parametrize("fails", ["at once", "at the last write"])
def test_a_failed_second_arming_in_a_running_trial_chooses_nothing(
    tried: Host, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restart leads back, as before."""
    tried.write("/proc/sys/kernel/panic", "30\n")
    assert boot_kit.choice(tried) in ("taken", "")
    if fails == "at once":
        real, runs = tried.programs["mount"], itertools.count()
        tried.programs["mount"] = lambda *words: real(*words) if next(runs) else Done(32, b"once")
    else:
        write = trial._write_note

        def note(system: Any, lines: Any, path: str = TRIAL) -> None:
            if "chosen" in lines:
                raise OSError(28, "No space left on device", path)
            write(system, lines, path)

        monkeypatch.setattr(trial, "_write_note", note)
    with pytest.raises(Refused):
        arm(tried, words="homelab.vfio=other")
    assert boot_kit.choice(tried) in ("taken", "") and state(tried) == "running"
    assert tried.read("/proc/sys/kernel/panic") == "30\n", "it goes on as a trial"
    assert not boot_kit.starts(tried, "third")


@EACH_LOADER
def test_what_its_owner_has_beside_the_choice_stays(host: Host, loader: str) -> None:
    host.write(f"/esp/{boot_kit.ESP if loader == 'grub' else boot_kit.ESPS[0]}/homelab/keys.txt", "theirs")
    before = lasting(host)
    arm(host)
    revert(host)
    assert lasting(host) == before


def test_a_trial_whose_esp_is_gone_is_started_no_more_and_the_others_words_stay_to_be_tried(host: Host) -> None:
    arm(host, "iommu", IOMMU)
    arm(host)
    device = host.root / f"dev/disk/by-uuid/{boot_kit.ESP}"
    place = device.readlink()
    device.unlink()
    revert(host)
    assert not trial_line(host) and not trial.is_chosen(host.system())
    device.symlink_to(place)
    assert arm(host, "iommu", IOMMU)["changed"] is True and trial_line(host).split()[-5:-3] == IOMMU.split()
    device.unlink()
    revert(host, "iommu")
    assert not host.exists(HOME) and not trial_line(host) and not host.exists(LINK)


def test_an_esp_that_is_left_mounted_is_unmounted_first(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith(boot_kit.ESP))
    real = host.programs["umount"]

    def umount(arguments: Sequence[str], stdin: bytes) -> Any:
        ended.append(arguments[0])
        return real(arguments, stdin)

    host.programs["umount"] = umount
    arm(host)
    assert len(ended) == 2


def test_an_esp_is_not_unmounted_under_another_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's hook and a confirmation come without the host's lock."""
    monkeypatch.setattr(esp, "_TURN_SECONDS", 0.1, raising=False)
    arm(host)
    first = host.system()
    with esp.mounted(first, [boot_kit.ESP]) as folders:
        with pytest.raises(Failure, match="another run still holds"), esp.mounted(host.system(), [boot_kit.ESP]):
            pass
        assert first.files.names(folders[boot_kit.ESP]) == ["homelab"]
    with esp.mounted(host.system(), [boot_kit.ESP]) as folders:
        assert folders


def test_how_the_host_is_reached_is_noted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def ip(arguments: Sequence[str], _stdin: bytes) -> str:
        if "route" in arguments:  # one with two ways
            ways = '{"gateway":"192.0.2.254","dev":"eno2","weight":1},{"gateway":"192.0.2.1","dev":"vmbr0","weight":1}'
            return f'[{{"dst":"default","dev":"wg0"}},{{"dst":"default","nexthops":[{ways}]}}]'
        return ""

    host.programs |= {"ip": ip, "ping": lambda arguments, _stdin: int(arguments[-1] != "192.0.2.1")}
    host.programs["ss"] = lambda arguments, _stdin: "LISTEN" if arguments[-1] == "sport = :2222" else ""
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.3 50000 192.0.2.10 2222")
    arm(host)
    lines = host.read(TRIAL).splitlines()
    wanted = ["address 192.0.2.10", "port 2222", "gateway 192.0.2.1"]
    assert [line for line in lines if line in wanted] == wanted


def ip_of_a_gateway_without_pings(arguments: Sequence[str], stdin: bytes) -> str:
    return REACHABLE if "neighbour" in arguments else boot_kit.network(arguments, stdin)


def test_without_ssh_it_is_the_default_route(host: Host) -> None:
    host.programs["ip"] = ip_of_a_gateway_without_pings
    arm(host)
    wanted = ["address 192.0.2.10", "port ", "gateway 192.0.2.1"]
    assert [line for line in host.read(TRIAL).splitlines() if line in wanted] == wanted


@pytest.fixture(params=["/run/homelab/restarting", f"{HOME}/taken-back"])
def ending(tried: Host, request: pytest.FixtureRequest) -> Host:
    if request.param == f"{HOME}/taken-back":
        (tried.root / TRIAL[1:]).rename(tried.root / request.param[1:])
    else:
        tried.write(request.param, "boot x: it hung")
    return tried


def test_nothing_is_written_while_a_trial_is_being_ended(ending: Host) -> None:
    before = lasting(ending)
    for words in (IOMMU, WORDS):  # these run already
        with pytest.raises(Refused, match="it is ending a boot on trial now: boot"):
            arm(ending, "iommu" if words == IOMMU else "vfio", words)
    assert lasting(ending) == before


def test_nothing_is_given_back_while_a_trial_is_being_ended(ending: Host) -> None:
    """The run that destroys takes the agent away, too: nobody comes later."""
    before = lasting(ending)
    with pytest.raises(Refused, match="it is ending a boot on trial now: boot"):
        revert(ending)
    assert lasting(ending) == before


# What its timer asks.


def test_a_boot_that_is_reached_as_before_stays_and_becomes_the_default(tried: Host) -> None:
    assert verdict(tried) == "stay"
    said = f"boot later was waited for by no `up`, and judged by this host itself 2 s after its start: {STAYS}"
    assert tried.read(JUDGED) == said
    assert state(tried) == "" and not tried.exists(f"{HOME}/rollback") and WORDS in boot_kit.configured_words(tried)


def checks(host: Host, status: int) -> None:
    host.write("/etc/homelab/healthy.d/10-pool", "#!/bin/sh\n", 0o755)
    host.write("/etc/homelab/healthy.d/README", "not a program", 0o644)
    host.programs[f"{host.root}/etc/homelab/healthy.d/10-pool"] = lambda *_: status


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (
            "no interface that is up has 192.0.2.10, over which it was configured",
            lambda host: host.programs.update(ip=lambda *_: boot_kit.NETWORK["address"].replace('"UP"', '"DOWN"')),
        ),
        (
            "no interface that is up has 192.0.2.10, over which it was configured",
            lambda host: host.programs.update(ip=lambda w, s: "[{}]" if "to" in w else boot_kit.network(w, s)),
        ),
        ("nothing listens on port 22, on which sshd did", lambda host: host.programs.update(ss=lambda *_: "")),
        ("no default gateway answers, and 192.0.2.1 did", lambda host: host.programs.update(ping=lambda *_: 1)),
        ("it is not known over which address this host is reached", lambda host: boot_kit.note(host, "")),
        ("/etc/homelab/healthy.d/10-pool of its owner's checks did not succeed", lambda host: checks(host, 1)),
    ],
)
def test_one_that_is_not_is_given_back_and_changes_nothing(
    tried: Host, said: str, fault: Callable[[Host], object]
) -> None:
    fault(tried)
    before = lasting(tried)
    assert verdict(tried).startswith("give back: was waited for by no `up`") and said in verdict(tried)
    assert lasting(tried) == before


def test_a_gateway_that_answers_no_ping_is_known_by_its_hardware_address(tried: Host) -> None:
    tried.programs |= {"ip": ip_of_a_gateway_without_pings, "ping": lambda *_: 1}
    assert verdict(tried) == "stay" and tried.read(JUDGED).endswith(STAYS)


def test_a_run_that_holds_the_lock_does_not_keep_a_boot_from_being_given_back(tried: Host) -> None:
    tried.programs["ping"] = lambda *_: 1
    with held(tried):
        assert verdict(tried).startswith("give back")


def test_an_owners_checks_that_succeed_keep_the_boot(tried: Host) -> None:
    checks(tried, 0)
    assert verdict(tried) == "stay" and tried.exists(JUDGED)


def test_one_of_an_owners_checks_that_fails_is_enough_and_is_named(tried: Host) -> None:
    checks(tried, 0)
    tried.write("/etc/homelab/healthy.d/20-net", "#!/bin/sh\n", 0o755)
    tried.programs[f"{tried.root}/etc/homelab/healthy.d/20-net"] = lambda *_: 1
    assert "answers, " not in verdict(tried) and ": /etc/homelab/healthy.d/20-net of its owner" in verdict(tried)


def test_a_reason_has_nothing_that_ends_a_text_between_quotes(tried: Host) -> None:
    """The program that asks, which is sh, writes it into a file."""
    tried.programs["ping"] = lambda *_: 1
    boot_kit.note(tried, 'address 192.0.2.10\ngateway v"m\\b\n')
    assert "and vmb did" in verdict(tried)


def test_what_did_not_hold_when_it_was_armed_is_not_asked(tried: Host) -> None:
    boot_kit.note(tried, "address 192.0.2.10\nport \ngateway \n")
    tried.programs["ss"] = lambda *_: ""
    assert verdict(tried) == "stay"
    assert tried.read(JUDGED).endswith("vmbr0 is up with 192.0.2.10, its gateway did not answer when it was configured")


def test_the_gateway_that_answers_is_the_one_that_is_named(tried: Host) -> None:
    boot_kit.note(tried, "address 192.0.2.10\nport 22\ngateway 192.0.2.9\n")
    assert verdict(tried) == "stay" and tried.read(JUDGED).endswith(STAYS)


def test_an_awaited_boot_is_given_back_until_nobody_waits_any_more(tried: Host) -> None:
    boot_kit.note(tried, f"until {int(time.time()) + 60}\n{boot_kit.WAY}")
    assert verdict(tried) == "give back: was not confirmed within 2 s of its start"
    boot_kit.note(tried, f"until {10**9}\n{boot_kit.WAY}")
    assert verdict(tried) == "stay"


@pytest.mark.parametrize(
    ("noted", "behind", "is_awaited"),
    [("awaited 1800\n", 0, True), ("awaited 1800\n", 7200, False), ("", 7200, True)],
    ids=["it may be waited for", "the clock is behind", "armed by an earlier version"],
)
def test_by_a_clock_that_is_behind_no_boot_is_waited_for(
    tried: Host, monkeypatch: pytest.MonkeyPatch, noted: str, behind: int, is_awaited: bool
) -> None:
    """As with a clock in local time, before the network has set it: the host judges that boot itself."""
    boot_kit.note(tried, f"until {int(time.time()) + 600}\n{noted}{boot_kit.WAY}")
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() - behind)
    assert verdict(tried) == ("give back: was not confirmed within 2 s of its start" if is_awaited else "stay")


def test_in_the_boot_in_which_it_was_armed_nothing_is_done(host: Host) -> None:
    arm(host)
    before = lasting(host)
    assert verdict(host) == "stay" and lasting(host) == before
    assert confirm(host)["confirmed"] == "boot" and lasting(host) == before and state(host) == "armed"


@EACH_LOADER
def test_a_boot_after_one_that_ended_takes_the_trial_away_and_says_so(tried: Host, tmp_path: Path, loader: str) -> None:
    stock = Host(tmp_path / "stock")
    boot_kit.stock(stock, loader)
    assert not boot_kit.starts(tried, "third")
    assert verdict(tried) == "stay" and state(tried) == ""
    assert tried.read(ROLLED_BACK) == snapshot(
        "boot third is not the one on trial: that has ended before it was confirmed (its kernel stopped, or the host was switched off or restarted), or the boot loader never started it"
    )
    tried.ask("revert", "initramfs", {"needed": False})
    assert on_disk(tried) == on_disk(stock)


@EACH_LOADER
def test_while_an_esp_cant_be_mounted_a_trial_that_has_ended_is_told_and_left_to_the_next_run(tried: Host) -> None:
    boot_kit.starts(tried, "third")
    real = tried.programs["mount"]
    tried.programs["mount"] = lambda *_: Done(32, b"can't read superblock")
    assert verdict(tried) == "stay" and state(tried) == "over"
    assert confirm(tried)["rolled_back"].startswith("boot third ")
    tried.programs["mount"] = real
    assert verdict(tried) == "stay" and state(tried) == "" and not tried.exists(f"{HOME}/rollback")


def test_what_a_power_cut_left_of_it_goes(host: Host) -> None:
    arm(host)
    note = host.root / TRIAL[1:]
    text = note.read_text()
    revert(host)
    for left in ("rollback", ".rolled-back.homelab-tmp"):
        host.write(f"{HOME}/{left}", "")
    assert verdict(host) == "stay" and not host.exists(HOME)
    assert text.startswith("boot boot\nloader grub\n")


@pytest.mark.parametrize("act", [verdict, lambda host: confirm(host)["confirmed"]], ids=["verdict", "confirm"])
def test_it_is_confirmed_while_another_run_is_at_work_and_finished_after(
    tried: Host, act: Callable[[Host], str]
) -> None:
    place = (tried.root / CHOICE[1:]).stat().st_ino
    with held(tried):
        assert act(tried) in ("stay", "later")
        assert state(tried) == "confirmed" and boot_kit.choice(tried) == "keep", "a cut ends in this boot"
        assert (tried.root / CHOICE[1:]).stat().st_ino == place, "one sector, in place"
        assert WORDS not in boot_kit.configured_words(tried)
    assert act(tried) in ("stay", "later") and state(tried) == "" and WORDS in boot_kit.configured_words(tried)


def test_a_boot_that_is_confirmed_meanwhile_is_told_nothing(tried: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any) -> tuple[bool, str]:
        assert trial.confirm(tried.system())
        return True, STAYS

    monkeypatch.setattr(boot_verdict, "_reached", slow)
    assert verdict(tried) == "stay" and not tried.exists(JUDGED) and WORDS in boot_kit.configured_words(tried)


def test_a_note_that_cant_be_read_is_no_verdict(tried: Host) -> None:
    (tried.root / TRIAL[1:]).unlink()
    (tried.root / TRIAL[1:]).symlink_to("trial")
    with pytest.raises(Refused):
        verdict(tried)


@pytest.mark.parametrize("lists", [True, False])
def test_who_runs_before_its_restart_is_started_again_by_the_next_boot(tried: Host, lists: bool) -> None:
    """Also somebody whom a person has started meanwhile. An answer that doesn't come keeps nothing from being given back."""
    tried.programs["ping"] = lambda *_: 1
    cluster_kit.note_ran(tried, ("pct", 901, "boot"))
    tried.write(f"{HOME}/owed-program", "", 0o700)
    if lists:
        api_kit.runs(tried, {103: "gaming"}, {})
    else:
        api_kit.says_nothing(tried)
    assert verdict(tried).startswith("give back")
    assert cluster_kit.who_ran(tried) == [("pct", 901, "boot")] + [("qm", 103, "later")] * lists


def test_a_note_of_who_runs_that_cant_be_read_keeps_nothing_from_being_given_back(tried: Host) -> None:
    tried.programs["ping"] = lambda *_: 1
    tried.write(f"{HOME}/owed/x", "")
    tried.write(f"{HOME}/owed-program", "", 0o700)
    api_kit.runs(tried, {}, {})
    assert verdict(tried).startswith("give back")


def test_nobody_is_noted_where_nothing_is_owed_from_before(tried: Host) -> None:
    """Such as on a host whose restart homelab hasn't ordered: whoever runs then has started by Proxmox VE itself."""
    tried.programs |= {"ping": lambda *_: 1, "perl": lambda *_: pytest.fail("it is asked who runs")}
    assert verdict(tried).startswith("give back") and not tried.exists(f"{HOME}/owed")


# What an `up` asks.


@EACH_LOADER
def test_a_confirmed_boot_is_the_default_and_goes_on_as_an_ordinary_one(tried: Host, loader: str) -> None:
    tried.write(JUDGED, "boot later is well")
    for name in ("panic", "softlockup_panic"):
        tried.write(f"/proc/sys/kernel/{name}", "30\n")
    assert confirm(tried) == {
        "boot": "later", "confirmed": "later", "rolled_back": "", "rolling_back": False, "judged": "boot later is well",
    }  # fmt: skip
    assert state(tried) == "" and tried.exists(JUDGED) and not tried.exists(f"{HOME}/rollback")
    assert not boot_kit.starts(tried, "third") and WORDS in tried.read("/proc/cmdline")
    assert not trial_line(tried) and not boot_kit.choice(tried)
    assert tried.read("/proc/sys/kernel/panic") == tried.read("/proc/sys/kernel/softlockup_panic") == "0"
    second = f"/esp/{boot_kit.ESPS[0]}/loader/entries/homelab-without-gpu-{boot_kit.KERNELS[0]}.conf"
    assert tried.exists("/etc/grub.d/12_homelab" if loader == "grub" else second)
    assert confirm(tried, told="boot later is well")["confirmed"] == "third" and not tried.exists(JUDGED)


@SYSTEMD_BOOT
def test_entries_are_made_without_a_refresh_which_copies_kernels_over_those_that_boot(tried: Host) -> None:
    real = tried.programs["proxmox-boot-tool"]

    def only_status(arguments: Sequence[str], stdin: bytes) -> Any:
        return real(arguments, stdin) if arguments[0] == "status" else pytest.fail(" ".join(arguments))

    tried.programs["proxmox-boot-tool"] = only_status
    assert confirm(tried)["confirmed"] and WORDS in boot_kit.configured_words(tried) and state(tried) == ""


@pytest.mark.parametrize("act", [verdict, confirm])
def test_what_another_run_arms_between_the_look_at_a_boot_and_its_confirmation_is_left_to_the_next(
    tried: Host, act: Callable[[Host], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host looks for a minute, and longer by its owner's checks. Words that no boot has tried would be the default."""
    real = trial.confirm

    def armed_meanwhile(system: Any) -> bool:
        arm(tried, words="homelab.vfio=other")
        return real(system)

    monkeypatch.setattr(trial, "confirm", armed_meanwhile)
    act(tried)
    assert state(tried) == "armed" and boot_kit.choice(tried) == "once" and not tried.exists(JUDGED)
    assert WORDS not in boot_kit.configured_words(tried) and "homelab.vfio=other homelab.trial" in trial_line(tried)


def test_a_boot_without_a_trial_is_confirmed_and_nothing_is_changed(host: Host) -> None:
    before = lasting(host)
    assert confirm(host)["confirmed"] == "boot" and lasting(host) == before


def test_a_boot_that_is_about_to_be_left_is_not_confirmed(tried: Host) -> None:
    assert confirm(tried, unless="later")["confirmed"] == "" and state(tried) == "running"


@pytest.mark.parametrize("told", ["boot later was not confirmed within 2 s of its start", ""])
def test_one_that_is_being_ended_is_not_confirmed(tried: Host, told: str) -> None:
    """Also where the disk took no note of why."""
    (tried.root / TRIAL[1:]).rename(tried.root / f"{HOME[1:]}/taken-back")
    restarting = tried.write("/run/homelab/restarting", told) if told else None
    answer = confirm(tried)
    assert (answer["confirmed"], answer["rolling_back"]) == ("", True) and "boot" in answer["rolled_back"]
    if restarting:
        assert answer["rolled_back"] == told
        restarting.unlink()
    boot_kit.starts(tried, "third")
    answer = confirm(tried)
    assert (answer["confirmed"], answer["rolling_back"]) == ("", False) and state(tried) == ""
    assert answer["rolled_back"].startswith("boot third ") and not trial_line(tried)
    arm(tried)
    assert not tried.exists(ROLLED_BACK), "it is no news any more"


def test_a_trial_that_the_loader_never_started_is_said_and_goes(host: Host) -> None:
    arm(host)
    boot_kit.booted(host, "quiet")
    assert "boot loader" in confirm(host)["rolled_back"]
    assert state(host) == "" and not boot_kit.choice(host) and not trial_line(host)


def test_a_boot_that_is_given_back_at_that_moment_is_not_confirmed(
    tried: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timer's program renames the same file, and only one of them has it."""
    real = trial.confirm

    def taken_meanwhile(system: Any) -> bool:
        (tried.root / TRIAL[1:]).rename(tried.root / f"{HOME[1:]}/taken-back")
        return real(system)

    monkeypatch.setattr(trial, "confirm", taken_meanwhile)
    assert confirm(tried)["confirmed"] == "" and boot_kit.choice(tried) == "taken"


def test_a_confirmation_that_cant_be_written_says_so(tried: Host) -> None:
    """Told nothing, `up` would ask again and again."""
    refuses = pytest.raises(Refused, match="found: .*Read-only file system")
    with failing(errno.EROFS, "rename", at=f"{HOME}/confirmed"), refuses as refused:
        confirm(tried)
    assert refused.value.status == NotConfirmed.status, "which up knows it by"


@EACH_LOADER
def test_a_generator_that_fails_leaves_the_host_on_keep_and_is_drift(tried: Host, loader: str) -> None:
    boot_kit.spoil(tried)
    assert confirm(tried)["confirmed"] == "later" and state(tried) == "confirmed"
    if loader == "grub":
        assert boot_kit.starts(tried, "third") and state(tried) == "confirmed", "it boots with what was confirmed"
    tried.programs |= {name: lambda *_: "" for name in ("lspci", "dmesg", "dpkg-query", "pveversion")}
    assert tried.ask("read", "read_host", ReadHost())["pending"] == ["boot"]
    with pytest.raises(Refused, match="no room|it isn't whole"):
        arm(tried)
    boot_kit.mend(tried)
    assert arm(tried)["changed"] is True and state(tried) == "" and WORDS in boot_kit.configured_words(tried)


# Another restart.


@pytest.fixture
def on_nouveau(host: Host, tried: Host) -> Host:
    """The same host, on which NVIDIA's driver is installed while nouveau has the card."""
    host.write("/sys/bus/pci/drivers/nouveau/bind", "")
    host.function("0000:02:00.0", "0x030000", "10de:2684", driver="nouveau")
    host.programs["systemd-run"] = lambda *_: ""
    api_kit.runs(host, {}, {})
    return host


def restart_for_the_driver(host: Host) -> None:
    boot = Boot(words=(WORDS,), driver="580.95.05")
    did = host.ask("apply", "reboot", Reboot(policy="auto", boot=boot, rollback_after=2, awaited=60))
    assert did["reboot"] == "yes" and did["reasons"][0]["said"] == "0000:02:00.0 is on nouveau, not on NVIDIA's driver"


def test_a_reboot_during_a_trial_starts_it_once_more(on_nouveau: Host) -> None:
    """Such as for the host's driver, before anybody has confirmed the boot: its configuration would be lost."""
    restart_for_the_driver(on_nouveau)
    assert boot_kit.choice(on_nouveau) == "once" and boot_kit.starts(on_nouveau, "third")
    assert state(on_nouveau) == "running" and confirm(on_nouveau)["confirmed"] == "third"


def test_a_reboot_for_the_hosts_driver_leaves_a_confirmed_configuration_alone(on_nouveau: Host) -> None:
    """It boots what runs already. Nobody may confirm it in time (a laptop sleeps), and the VM's card would be gone."""
    confirm(on_nouveau)
    boot_kit.starts(on_nouveau, "third")
    restart_for_the_driver(on_nouveau)
    assert state(on_nouveau) == "" and not on_nouveau.exists(LINK) and WORDS in boot_kit.configured_words(on_nouveau)


# Cut short anywhere.


@EACH_LOADER
@pytest.mark.parametrize("act", ["arm", "confirm", "end"])
def test_a_cut_anywhere_ends_in_the_old_boot_or_the_new_one(host: Host, loader: str, act: str, tmp_path: Path) -> None:
    """And what is left is finished by the host itself, or by the next run; then every byte is given back."""
    before = on_disk(host)
    acts: dict[str, Callable[[Host], object]] = {"arm": arm, "confirm": confirm, "end": verdict}
    if act != "arm":
        boot_kit.configure(host, WORDS)
        host.ask("revert", "initramfs", {"needed": False})
    if act == "end":
        boot_kit.starts(host, "third")
    old_and_new = [boot_kit.configured_words(host), trial_line(host).split()]
    found = cuts(host, acts[act], most=12, name=f"{act} {loader}")
    old_and_new += [boot_kit.configured_words(host), trial_line(host).split()]
    for number, cut in enumerate(found):
        left = boot_kit.after(cut, host, tmp_path / str(number))
        if act == "arm":
            boot_kit.booted(left, "quiet", "boot")
        if cut.how.startswith("power") or act != "arm":
            boot_kit.starts(left, "fourth")
            words = left.read("/proc/cmdline").split()
            assert words and words in old_and_new, cut.how
        if state(left) in ("confirmed", "over", "running"):
            verdict(left)
        if act == "confirm" and left.read("/proc/cmdline").split().count(WORDS):
            boot_kit.starts(left, "fifth")
            assert WORDS in left.read("/proc/cmdline"), f"{cut.how}: it was confirmed"
        revert(left)
        left.ask("revert", "initramfs", {"needed": False})
        assert on_disk(left) == before, cut.how
        assert not left.exists(HOME) or not [*(left.root / HOME[1:]).iterdir()], cut.how


@EACH_LOADER
@pytest.mark.parametrize("runs", [False, True])
def test_however_a_change_of_a_trial_ends_none_is_started_with_other_words_than_are_noted(
    host: Host, loader: str, runs: bool, tmp_path: Path
) -> None:
    """A boot whose words its note lacks would be taken for an ordinary one, which nothing ends."""

    def change(host: Host) -> None:
        revert(host, "iommu")
        arm(host, words="homelab.vfio=other")

    arm(host, "iommu", IOMMU)
    arm(host)
    assert not runs or boot_kit.starts(host)
    full = boot_kit.on_a_full_disk(host, change, tmp_path / "full", step=7)
    lefts = [(f"full at {number}: {said}", left) for number, said, left in full]
    running = host.read("/proc/cmdline").strip()
    for number, cut in enumerate(cuts(host, change, most=12, name=f"change {loader} {runs}")):
        lefts.append((cut.how, boot_kit.after(cut, host, tmp_path / str(number))))
        boot_kit.booted(lefts[-1][1], running, "later" if runs else "boot")
    for how, left in lefts:
        if boot_kit.starts(left, "another"):
            boot_kit.note(left, "")
            assert verdict(left).startswith("give back: "), how
        else:
            assert arm(left)["changed"] is True and trial_line(left).split()[-4] == WORDS, how


@EACH_LOADER
def test_a_disk_that_is_full_while_it_is_armed_starts_no_trial(host: Host, tmp_path: Path) -> None:
    before, refused = on_disk(host), 0
    for number, said, left in boot_kit.on_a_full_disk(host, arm, tmp_path / "full"):
        refused += bool(said)
        assert bool(boot_kit.choice(left) == "once" and trial_line(left)) is not bool(said), number
        arm(left)
        revert(left)
        assert on_disk(left) == before and not left.exists(HOME), number
    assert refused > (10 if sampling.EVERY else 3)


def test_a_disk_that_is_full_while_a_boot_is_confirmed_keeps_it_from_nothing(tried: Host, tmp_path: Path) -> None:
    states = set()
    for number, said, left in boot_kit.on_a_full_disk(tried, confirm, tmp_path / "full"):
        assert not said, number
        states.add(state(left))
        assert confirm(left)["confirmed"] == "later" and state(left) == "" and WORDS in boot_kit.configured_words(left)
    assert states == {"confirmed", ""}, "it was full at one moment at least, and confirmed all the same"


@pytest.mark.parametrize("boot", ["later", "third"])
def test_a_disk_that_is_full_makes_no_boot_a_bad_one(tried: Host, boot: str, tmp_path: Path) -> None:
    """Neither the trial, when the host judges it, nor the boot after one that has ended."""

    def judged(left: Host) -> None:
        boot_kit.booted(left, left.read("/proc/cmdline").strip(), boot)
        assert verdict(left) == "stay"

    assert boot == "later" or not boot_kit.starts(tried, boot)
    for number, said, left in boot_kit.on_a_full_disk(tried, judged, tmp_path / "full"):
        assert not said and state(left) in ("confirmed" if boot == "later" else "over", ""), number
        judged(left)
        assert state(left) == "" and (WORDS in boot_kit.configured_words(left)) is (boot == "later"), number
