"""The layers boot_verdict, which the dead man's switch asks, and confirm_boot, which an `up` asks."""

from __future__ import annotations

import fcntl
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.layers import boot_verdict
from remote_scripts.layers.boot_verdict import Wanted
from remote_scripts.layers.cmdline import Wanted as Cmdline
from remote_scripts.layers.confirm_boot import Wanted as Confirm
from remote_scripts.layers.initramfs import Wanted as Initramfs
from remote_scripts.shared import route, switch
from remote_scripts.tools import disk
from remote_scripts.tools.run import Done
from remote_scripts.tools.system import System
from tests.agent import api_kit, boot_kit
from tests.agent.boot_kit import ARMED, HOME, LOADERS, WAY, lasting, without_words
from tests.agent.cluster_kit import note_ran, who_ran
from tests.agent.kit import Host, Refused, watched

JUDGED = f"{HOME}/judged"
WORDS = "homelab.vfio=0000:01:00.0=10de:2882"
STAYS = "vmbr0 is up with 192.0.2.10, its gateway 192.0.2.1 answers, and sshd listens on port 22"


@pytest.fixture
def loader() -> str:
    return "grub"


@pytest.fixture(autouse=True)
def configured(host: Host, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the boot after it was configured."""
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    for module, name in ((route, "GATEWAY_SECONDS"), (boot_verdict, "_LOOK_SECONDS")):
        monkeypatch.setattr(module, name, 0.1)
    boot_kit.stock(host, loader)
    boot_kit.configure(host, WORDS, loader)


def booted(host: Host, words: str = f"quiet {WORDS}") -> None:
    boot_kit.booted(host, words)


def verdict(host: Host) -> str:
    return str(host.ask("apply", "boot_verdict", Wanted(after=2, lock_seconds=0)))


def confirm(host: Host, **wanted: Any) -> Any:
    return host.ask("apply", "confirm_boot", Confirm(**{"lock_seconds": 0, **wanted}))


def held(host: Host) -> Any:
    (host.root / "run/homelab").mkdir(mode=0o700, exist_ok=True)
    lock = (host.root / "run/homelab/lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


# What the switch asks.


def test_a_boot_that_is_reached_as_before_stays_and_disarms_the_switch(host: Host) -> None:
    assert verdict(host) == "stay"
    said = f"boot later was waited for by no `up`, and judged by this host itself 2 s after its start: {STAYS}"
    assert host.read(JUDGED) == said
    assert not host.exists(ARMED) and not host.exists(f"{HOME}/rollback")


def faults(host: Host) -> dict[str, Callable[[], object]]:
    return {
        "no interface that is up has 192.0.2.10, over which it was configured (vmbr0 had)": lambda: host.write(
            "/sys/class/net/vmbr0/operstate", "down\n"
        ),
        "nothing listens on port 22, on which sshd did": lambda: host.write("/proc/net/tcp", ""),
        "no default gateway answers, and 192.0.2.1 did": lambda: host.programs.update(ping=lambda *_: 1),
        "it is not known over which address this host is reached": lambda: host.write(ARMED, "boot boot\n"),
    }


@pytest.mark.parametrize("number", range(4))
def test_one_that_is_not_is_given_back_and_changes_nothing(host: Host, number: int) -> None:
    said, spoil = list(faults(host).items())[number]
    spoil()
    before = lasting(host)
    assert verdict(host).startswith("give back: was waited for by no `up`") and said in verdict(host)
    assert lasting(host) == before


def test_a_reason_has_nothing_that_ends_a_text_between_quotes(host: Host) -> None:
    """The switch, which is sh, writes it into a file."""
    host.write("/sys/class/net/vmbr0/operstate", "down\n")
    host.write(ARMED, 'boot boot\naddress 192.0.2.10\ninterface v"m\\b\n')
    assert "(vmb had)" in verdict(host)


def test_what_did_not_hold_when_it_was_armed_is_not_asked(host: Host) -> None:
    host.write(ARMED, "boot boot\naddress 192.0.2.10\ninterface vmbr0\nport 22\nlistens no\ngateway \n")
    host.write("/proc/net/tcp", "")
    assert verdict(host) == "stay"
    assert "its gateway was not asked, since none answered when it was configured, whether sshd" in host.read(JUDGED)


def test_an_awaited_boot_is_given_back_until_nobody_waits_any_more(host: Host) -> None:
    host.write(ARMED, f"boot boot\nuntil {int(time.time()) + 60}\n{WAY}")
    assert verdict(host) == "give back: was not confirmed within 2 s of its start"
    host.write(ARMED, f"boot boot\nuntil {10**9}\n{WAY}")
    assert verdict(host) == "stay"


def test_in_the_boot_in_which_it_was_armed_nothing_is_done(host: Host) -> None:
    host.write(ARMED, "boot later\n")
    before = lasting(host)
    assert verdict(host) == "stay" and lasting(host) == before


def test_a_boot_without_what_is_configured_is_passed_over(host: Host) -> None:
    booted(host, "quiet")
    assert verdict(host) == "stay" and host.exists(ARMED)
    assert host.read(JUDGED).endswith("entries are older; the one that is configured was not judged")


def test_where_nothing_is_left_to_give_back_it_stays(host: Host) -> None:
    armed = lasting(host)
    host.ask("revert", "initramfs", Initramfs(needed=True, rollback_after=20))
    host.ask("revert", "cmdline", Cmdline(name="vfio", words="", entry=True, rollback_after=20))
    for name in (ARMED, f"{HOME}/rollback"):
        content = armed[name[1:]][1]
        assert isinstance(content, bytes)
        host.write(name, content)
    assert verdict(host) == "stay" and "there is nothing to give back" in host.read(JUDGED)


def test_what_a_power_cut_left_of_a_switch_goes(host: Host) -> None:
    (host.root / ARMED[1:]).unlink()
    assert verdict(host) == "stay" and not host.exists(f"{HOME}/rollback")
    assert not list((host.root / "etc/systemd/system").rglob("homelab-rollback*"))


def test_neither_who_holds_the_lock_nor_a_full_disk_makes_a_boot_a_bad_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(call: str, path: str) -> None:
        if call == "create":
            raise OSError(28, "No space left on device", path)

    with held(host), watched(full):
        assert verdict(host) == "stay" and host.exists(ARMED)
    (host.root / "run/homelab/lock").unlink()
    (host.root / "run/homelab/lock").mkdir()  # as where /run takes no file any more
    with watched(full):
        assert verdict(host) == "stay" and host.exists(ARMED)
    (host.root / "run/homelab/lock").rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(disk.Disk, "left_below", lambda *_: full("create", "a folder"))
        assert verdict(host) == "stay" and host.exists(ARMED)
    with held(host):
        assert verdict(host) == "stay" and not host.exists(ARMED)


def test_beside_another_run_nothing_of_that_is_taken_away(host: Host) -> None:
    """Neither what it has kept to be undone, nor what it arms for the next boot between the look at it and its end."""
    undo, theirs = host.write(f"{HOME}/.homelab-undo/0", "theirs"), f"boot later\n{WAY}"

    def arm(call: str, path: str) -> None:
        if path.endswith("/judged") and call == "rename":
            host.write(ARMED, theirs)

    with held(host), watched(arm):
        assert verdict(host) == "stay"
    assert undo.exists() and host.read(ARMED) == theirs and host.exists(f"{HOME}/rollback")
    (host.root / ARMED[1:]).unlink()
    with held(host):
        assert verdict(host) == "stay" and host.exists(f"{HOME}/rollback"), "what it may be about to arm"


def test_a_boot_that_is_confirmed_meanwhile_is_told_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any) -> tuple[bool, str]:
        disk.remove(host.root / ARMED[1:])
        return True, STAYS

    monkeypatch.setattr(boot_verdict, "_reached", slow)
    assert verdict(host) == "stay" and not host.exists(JUDGED)


def test_a_note_that_cant_be_read_is_no_verdict(host: Host) -> None:
    (host.root / ARMED[1:]).unlink()
    (host.root / ARMED[1:]).symlink_to("armed")
    with pytest.raises(Refused):
        verdict(host)


# What it has given back once the words are gone.


def finish(host: Host) -> str:
    return str(host.ask("revert", "boot_verdict", Wanted(after=20, lock_seconds=0)))


@pytest.mark.parametrize("loader", LOADERS)
def test_the_rest_is_given_back_and_the_switch_goes(host: Host, loader: str, tmp_path: Path) -> None:
    stock = Host(tmp_path / "stock")
    boot_kit.stock(stock, loader)
    without_words(host, WORDS, loader)
    assert finish(host) == "finished"
    given_back = {
        path: about for path, about in lasting(host).items() if about[1] is not None and not path.startswith("sys/")
    }
    assert given_back == {path: about for path, about in lasting(stock).items() if about[1] is not None}


def test_a_file_of_the_hosts_own_by_a_name_of_ours_is_none_of_ours(host: Host) -> None:
    without_words(host, WORDS, "grub")
    host.write("/etc/default/grub.d/zz-homelab-vfio.cfg", "# theirs\n")
    assert finish(host) == "finished"


@pytest.mark.parametrize("what", ["words", "pending", "initramfs"])
def test_it_is_unfinished_while_a_boot_may_still_read_of_us(host: Host, what: str) -> None:
    if what != "words":
        without_words(host, WORDS, "grub")
    host.write(f"{HOME}/rolling-back", "boot later\nloader grub\n")
    if what == "pending":
        host.write(f"{HOME}/pending/boot", "")
    if what == "initramfs":
        host.programs["update-initramfs"] = lambda *_: Done(1, b"no room")
    assert finish(host) == "unfinished"
    assert host.exists(f"{HOME}/rolling-back") and host.exists(f"{HOME}/rollback")


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("lists", [True, False])
def test_who_runs_before_its_restart_is_started_again_by_the_next_boot(host: Host, restarts: bool, lists: bool) -> None:
    """Also somebody whom a person has started meanwhile. An answer that doesn't come keeps nothing from being given back."""
    without_words(host, WORDS, "grub")
    note_ran(host, ("pct", 901, "boot"))
    host.write(f"{HOME}/ran-program", "", 0o700)
    if lists:
        api_kit.runs(host, {103: "gaming"}, {})
    else:
        api_kit.says_nothing(host)
    assert host.ask("revert", "boot_verdict", Wanted(after=20, restarts=restarts)) == "finished"
    assert who_ran(host) == [("qm", 103, "later")] * (restarts and lists) + [("pct", 901, "boot")]


def test_a_note_of_who_runs_that_cant_be_read_keeps_nothing_from_being_given_back(host: Host) -> None:
    without_words(host, WORDS, "grub")
    host.write(f"{HOME}/ran/x", "")
    host.write(f"{HOME}/ran-program", "", 0o700)
    api_kit.runs(host, {}, {})
    assert host.ask("revert", "boot_verdict", Wanted(after=20, restarts=True)) == "finished"


def test_nobody_is_noted_where_nothing_is_owed_from_before(host: Host) -> None:
    """Such as on a host whose restart homelab hasn't ordered: whoever runs then has started by Proxmox VE itself."""
    without_words(host, WORDS, "grub")
    api_kit.says_nothing(host)
    host.programs["perl"] = lambda *_: pytest.fail("it is asked who runs")
    assert host.ask("revert", "boot_verdict", Wanted(after=20, restarts=True)) == "finished"
    assert not host.exists(f"{HOME}/ran")


# What an `up` asks.


def test_a_confirmed_boot_has_no_switch(host: Host) -> None:
    host.write(JUDGED, "boot later is well")
    assert confirm(host) == {
        "boot": "later", "confirmed": "later", "rolled_back": "", "rolling_back": False, "judged": "boot later is well",
    }  # fmt: skip
    assert not host.exists(ARMED) and not host.exists(f"{HOME}/rollback") and host.exists(JUDGED)
    assert confirm(host, judged_told=True)["confirmed"] == "later" and not host.exists(JUDGED)


def test_a_boot_that_is_about_to_be_left_is_not_confirmed(host: Host) -> None:
    assert confirm(host, unless="later")["confirmed"] == "" and host.exists(ARMED)


@pytest.mark.parametrize(
    ("path", "rolling"),
    [("/run/homelab/restarting", True), (f"{HOME}/rolling-back", True), (f"{HOME}/rolled-back", False)],
)
def test_one_that_is_undone_is_not_confirmed(host: Host, path: str, rolling: bool) -> None:
    host.write(path, "boot later hung")
    answer = confirm(host)
    assert (answer["confirmed"], answer["rolling_back"]) == ("", rolling) and "boot" in answer["rolled_back"]
    assert host.exists(ARMED)


def test_a_boot_that_is_given_back_at_that_moment_is_not_confirmed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch takes the same file, and only one of them has it."""
    real = switch.is_armed_before

    def taken_meanwhile(system: System) -> bool:
        (host.root / ARMED[1:]).unlink(missing_ok=True)
        return real(system)

    monkeypatch.setattr(switch, "is_armed_before", taken_meanwhile)
    assert confirm(host)["confirmed"] == ""


@pytest.mark.parametrize("how", ["another entry", "pending"])
def test_a_boot_that_shows_nothing_is_confirmed_and_leaves_the_switch_to_the_next(host: Host, how: str) -> None:
    host.write(ARMED, f"boot boot\nuntil {int(time.time()) + 60}\n{WAY}")
    if how == "pending":
        host.write(f"{HOME}/pending/boot", "")
    else:
        booted(host, "quiet")
    assert confirm(host)["confirmed"] == "later"
    assert host.read(ARMED) == f"boot boot\n{WAY}" and host.exists(f"{HOME}/rollback")


def test_it_is_confirmed_while_another_run_is_at_work(host: Host) -> None:
    with held(host):
        assert confirm(host)["confirmed"] == "later"
    assert not host.exists(ARMED) and host.exists(f"{HOME}/rollback"), "its own timer takes the rest away"
    assert verdict(host) == "stay" and not host.exists(f"{HOME}/rollback")


@pytest.mark.parametrize("late", [False, True])
def test_what_another_run_arms_for_the_next_boot_is_left_to_it(host: Host, late: bool) -> None:
    """Between the look at it and its end, too."""
    theirs = f"boot later\n{WAY}"

    def arm(call: str, path: str) -> None:
        if call == "rename" and path.endswith("tmp"):
            host.write(ARMED, theirs)

    if not late:
        host.write(ARMED, theirs)
    with held(host), watched(arm), pytest.raises(Refused, match="to be the only one changing this host"):
        confirm(host)
    assert host.read(ARMED) == theirs and not list((host.root / HOME[1:]).glob(".armed*"))
    assert confirm(host)["confirmed"] == "later", "nobody is at work any more"


def test_a_confirmation_that_cant_be_written_says_so(host: Host) -> None:
    """Told nothing, `up` would ask again and again."""
    (host.root / f"{HOME[1:]}/.armed.taken.homelab-tmp").mkdir()
    with pytest.raises(Refused, match="wanted: this boot confirmed.*\nfound: .*Is a directory"):
        confirm(host)


def test_a_note_that_cant_be_rewritten_stays_whole(host: Host) -> None:
    """Without the address over which it was reached, the host would undo the next boot, however good that is."""
    booted(host, "quiet")
    before = host.read(ARMED)

    def full(call: str, path: str) -> None:
        if call == "write" and path.endswith(".armed.homelab-tmp"):
            raise OSError(28, "No space left on device", path)

    with watched(full), pytest.raises(Refused, match="No space left on device"):
        confirm(host)
    assert host.read(ARMED) == before


# A disk that is full, from any moment on.

GROWS = ("create", "write", "mkdir", "symlink", "link", "mknod")


def on_a_full_disk(host: Host, act: Callable[[Host], object], place: Path) -> Iterator[tuple[int, bool, Host]]:
    """The host after each way in which `act` may find the disk full; whether it said so. Last of all it isn't."""
    for number in itertools.count():
        left = Host(place / str(number))
        shutil.rmtree(left.root)
        shutil.copytree(host.root, left.root, symlinks=True)
        boot_kit.run(left)
        if act is not arm:
            booted(left)
        grew: list[str] = []
        with watched(functools.partial(_full, grew, number)):
            try:
                act(left)
                said = False
            except Refused:
                said = True
        yield number, said, left
        if len(grew) <= number:
            return


def _full(grew: list[str], room: int, call: str, path: str) -> None:
    if call in GROWS and "/run/" not in path:
        grew.append(path)
        if len(grew) > room:
            raise OSError(28, "No space left on device", path)


def arm(host: Host) -> None:
    host.ask("apply", "cmdline", Cmdline(name="iommu", words="x=1", entry=False, rollback_after=20))


def test_a_disk_that_is_full_while_it_is_armed_leaves_nothing_for_the_next_boot(host: Host, tmp_path: Path) -> None:
    host.ask("revert", "initramfs", Initramfs(needed=True, rollback_after=20))
    host.ask("revert", "cmdline", Cmdline(name="vfio", words="", entry=True, rollback_after=20))
    assert not host.exists(HOME)
    before, refused = lasting(host), 0
    for number, said, left in on_a_full_disk(host, arm, tmp_path / "full"):
        refused += said
        read = {key for key in {*lasting(left), *before} if lasting(left).get(key) != before.get(key)}
        of_a_boot = {key for key in read if not key.startswith((HOME[1:], "proc", "sys", "run", "dev"))}
        assert of_a_boot if not said else not of_a_boot, number
        arm(left)
        left.ask("revert", "cmdline", Cmdline(name="iommu", words="", entry=False, rollback_after=20))
        assert not left.exists(HOME), number
    assert refused > 10


def test_a_disk_that_is_full_while_a_boot_is_confirmed_keeps_it_from_nothing(host: Host, tmp_path: Path) -> None:
    for number, said, left in on_a_full_disk(host, confirm, tmp_path / "full"):
        assert not said and not left.exists(ARMED), number
        assert confirm(left)["confirmed"] == "later" and not left.exists(f"{HOME}/rollback"), number


def test_a_disk_that_is_full_while_the_rest_is_given_back_leaves_that_to_a_later_boot(
    host: Host, tmp_path: Path
) -> None:
    without_words(host, WORDS, "grub")
    given_back: Any = None
    for number, said, left in on_a_full_disk(host, finish, tmp_path / "full"):
        assert left.exists(f"{HOME}/rollback") or not said, number
        if left.exists(f"{HOME}/rolling-back"):
            assert finish(left) == "finished", number
        now = {key: about for key, about in lasting(left).items() if not key.startswith(("proc", "sys", "run"))}
        given_back = given_back or now
        assert now == given_back, number
