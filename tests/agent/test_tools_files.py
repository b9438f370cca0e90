"""tools/files.py: files that are written whole, kept with all that belongs to them, and given back."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.reading.source import Source
from remote_scripts.tools import disk
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Files
from remote_scripts.tools.system import System
from tests.agent.kit import Host, cuts, failing, follows_no_link, left_by, watched

THEIRS, OURS = "/etc/app/theirs.conf", b"ours\n"


def put(host: Host, path: str = THEIRS, content: bytes = OURS) -> None:
    system = host.system()
    system.changing(lambda: system.files.put("layer", path, 0o640, content))


def drop(host: Host, path: str = THEIRS) -> None:
    system = host.system()
    system.changing(lambda: system.files.drop("layer", path))


def test_a_file_that_was_there_comes_back_with_owner_mode_and_time(host: Host) -> None:
    def about(path: Path) -> tuple[int, int, int, int]:
        found = path.lstat()
        return found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns

    file = host.write(THEIRS, "theirs, no newline", 0o604)
    os.chown(file, 12, 34)
    os.utime(file, ns=(1_000_000_007, 2_000_000_009))
    before = about(file)
    put(host)
    assert file.read_bytes() == OURS and about(file)[0] & 0o7777 == 0o640
    drop(host)
    assert (file.read_text(), about(file)) == ("theirs, no newline", before)


def test_a_link_that_was_there_comes_back_as_a_link(host: Host) -> None:
    link = host.root / THEIRS[1:]
    link.parent.mkdir()
    link.symlink_to("../nowhere")
    put(host)
    assert not link.is_symlink() and link.read_bytes() == OURS
    drop(host)
    assert link.readlink().as_posix() == "../nowhere"


def test_folders_that_were_made_go_and_those_that_somebody_uses_stay(host: Host) -> None:
    before = host.tree()
    put(host, "/etc/a/b/ours")
    put(host, "/etc/c/d/ours")
    host.write("/etc/c/theirs", "")
    drop(host, "/etc/a/b/ours")
    system = host.system()
    system.changing(lambda: system.files.drop("layer", "/etc/c/d/ours"))
    assert system.files.changed
    left = {path: what for path, what in host.tree().items() if path not in before and not path.startswith("var")}
    assert sorted(left) == ["etc/c", "etc/c/theirs"]


@pytest.mark.parametrize("then", [drop, functools.partial(put, content=b"other\n")], ids=["drop", "put"])
@pytest.mark.parametrize("before", ["", "theirs\n"])
def test_an_edit_by_hand_is_kept_where_backups_lie(
    host: Host, capsys: pytest.CaptureFixture[str], before: str, then: Callable[[Host], None]
) -> None:
    if before:
        host.write(THEIRS, before)
    put(host)
    host.write(THEIRS, "edited\n", 0o640)
    then(host)
    (copy,) = (host.root / "var/backups/homelab/etc/app").iterdir()
    assert copy.read_text() == "edited\n" and "note: /etc/app/theirs.conf was edited by hand" in capsys.readouterr().err


def test_a_file_of_ours_that_a_run_was_stopped_before_rewriting_is_no_edit(host: Host, tmp_path: Path) -> None:
    put(host)
    rewrite = functools.partial(put, content=b"ours, of another version\n")
    for number, cut in enumerate(cuts(host, rewrite)):
        left = left_by(cut, host, tmp_path / str(number))
        rewrite(left)
        assert not left.exists("/var/backups"), cut.how


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_kept_copy_that_is_not_what_was_kept_is_never_written_back(host: Host, damage: str) -> None:
    host.write(THEIRS, "theirs\n")
    put(host)
    kept = host.root / f"var/lib/homelab/kept{THEIRS}"
    kept.unlink() if damage == "gone" else kept.write_text("th")
    before = host.tree()
    with pytest.raises(Failure, match="isn't what was kept there"):
        drop(host)
    assert host.read(THEIRS) == "ours\n"
    assert {path for path, what in before.items() if what[1] is not None} <= host.tree().keys()


def test_what_was_kept_of_a_file_that_has_gone_since_is_not_given_back(host: Host, tmp_path: Path) -> None:
    """A run was cut short between the copy and the record, and the file's owner has removed it meanwhile."""
    host.write(THEIRS, "theirs\n")
    kept, record = f"var/lib/homelab/kept{THEIRS}", f"var/lib/homelab/files/layer{THEIRS}"
    cut = next(cut for cut in cuts(host, put) if kept in cut.lasting and record not in cut.lasting)
    left = left_by(cut, host, tmp_path / "left")
    (left.root / THEIRS[1:]).unlink()
    put(left)
    drop(left)
    assert not left.exists(THEIRS)


@pytest.mark.parametrize(
    ("what", "act"),
    [
        (f"files/layer{THEIRS}", lambda files: files.drop("layer", THEIRS)),
        ("files", lambda files: files.drop("another", THEIRS)),
        ("files/layer/etc", lambda files: files.of_layer("layer")),
        ("dirs", lambda files: files.put("layer", "/etc/new/ours", 0o640, OURS)),
    ],
)
def test_records_of_which_a_disk_tells_nothing_are_not_taken_for_none(
    host: Host, monkeypatch: pytest.MonkeyPatch, what: str, act: Callable[[Files], object]
) -> None:
    host.write(THEIRS, "theirs\n")
    put(host)
    put(host, "/etc/made/ours")
    before, place = files_of(host), f"{host.root}/var/lib/homelab/{what}"

    def failing(call: Callable[..., Any], path: object = ".", *more: object, **named: object) -> Any:
        if str(path) == place:
            raise OSError(errno.EIO, os.strerror(errno.EIO), place)
        return call(path, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *more, opened=Path.open: failing(opened, path, *more))
        for name in ("lstat", "listdir", "scandir"):
            patch.setattr(os, name, functools.partial(failing, getattr(os, name)))
        system = host.system()
        with pytest.raises(OSError, match=r"Input/output error|can't be read"):
            system.changing(lambda: act(system.files))
    assert files_of(host) == before


def files_of(host: Host) -> dict[str, tuple[int, bytes | str | None]]:
    return {path: what for path, what in host.tree().items() if what[1] is not None}


def test_a_folder_that_another_program_makes_meanwhile_is_no_error(host: Host) -> None:
    with watched(lambda call, path: os.makedirs(path, exist_ok=True) if call == "mkdir" else None):  # noqa: PTH103
        put(host, "/etc/new/ours")
    assert host.read("/etc/new/ours") == "ours\n"


def test_what_a_run_that_was_cut_short_left_is_no_trap(host: Host) -> None:
    """A link by the name of the file that will be written, as a copy of a link leaves it; below /boot nobody else looks."""
    target = host.write("/boot/other", "other\n")
    (host.root / "boot/.ours.homelab-tmp").symlink_to(target)
    put(host, "/boot/ours")
    assert host.read("/boot/ours") == "ours\n" and host.read("/boot/other") == "other\n"


def test_a_system_that_says_it_has_no_folder_is_not_asked_without_end(host: Host) -> None:
    """A container may say anything."""
    asked: list[Path] = []

    class Lying(disk.Disk):
        def is_folder(self, where: Path) -> bool:
            asked.append(where)
            assert len(asked) < 100
            return False

    system = host.system()
    Files(host.root, system.log, system.run, Lying()).make_folder("/etc/new")
    assert host.exists("/etc/new")


def test_a_folder_may_be_a_link(host: Host) -> None:
    (host.root / "usr/lib").mkdir()
    (host.root / "lib").symlink_to("usr/lib")
    put(host, "/lib/ours")
    assert host.read("/usr/lib/ours") == "ours\n"
    drop(host, "/lib/ours")
    assert not host.exists("/usr/lib/ours")


@pytest.mark.parametrize("call", ["create", "write", "flush", "rename", "mkdir", "copystat", "chown"])
def test_a_disk_that_fails_at_any_call_leaves_what_was_there(host: Host, call: str) -> None:
    host.write(THEIRS, "theirs\n", 0o600)
    put(host, "/etc/other/ours")
    before = host.lasting()
    system = host.system()

    def change(files: Files) -> None:
        files.put("layer", THEIRS, 0o640, OURS)
        files.drop("layer", "/etc/other/ours")
        with failing(errno.ENOSPC, call, at=""):
            files.put("layer", "/etc/new/folder/ours", 0o644, OURS)
            host.write("/etc/other/x", "x")
            files.put("layer", "/etc/other/x", 0o644, OURS)

    with pytest.raises(OSError, match="No space left"):
        system.changing(lambda: change(system.files))
    left = {path: what for path, what in host.lasting().items() if path != "etc/other/x"}
    assert left == before and not system.files.not_put_back


def test_an_undo_that_is_cut_short_anywhere_is_finished_by_the_next_run(host: Host, tmp_path: Path) -> None:
    host.write(THEIRS, "theirs\n", 0o600)
    before = host.lasting()

    def fails(one: Host) -> None:
        system = one.system()

        def change() -> None:
            system.files.put("layer", THEIRS, 0o640, OURS)
            system.files.put("layer", "/etc/new/ours", 0o640, OURS)
            raise Failure("", "", "", "")

        with pytest.raises(Failure):
            system.changing(change)

    for number, cut in enumerate(cuts(host, fails)):
        one = left_by(cut, host, tmp_path / str(number))
        drop(one)
        drop(one, "/etc/new/ours")
        assert one.lasting() == before, cut.how


@pytest.mark.parametrize("act", [put, drop])
def test_a_file_that_nobody_may_change_leaves_nothing_to_put_back(host: Host, act: Callable[[Host], None]) -> None:
    """As by `chattr +i`. What was armed or noted before it for the next boot must not stay."""
    file = host.write(THEIRS, "theirs\n", 0o604)
    if act is drop:
        put(host)

    before = host.tree()
    with pytest.raises(PermissionError), failing(errno.EPERM, "rename", "remove", at=str(file)):
        act(host)
    assert host.tree() == before


def test_a_file_whose_folder_is_a_file_system_of_its_own_is_put_back(host: Host) -> None:
    path, renames = "/usr/local/sbin/ours", list[str]()
    put(host, path)

    def change() -> None:
        system.files.put("layer", path, 0o755, b"changed\n")
        raise Failure("", "", "", "")

    def of_two_file_systems(call: str, name: str) -> None:
        renames.extend([name] if call == "rename" and name.endswith(path) else [])
        if renames.count(name) == 2 and call == "rename":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)

    before, system = host.tree(), host.system()
    with pytest.raises(Failure), watched(of_two_file_systems):
        system.changing(change)
    assert host.tree() == before and not system.files.not_put_back


def test_nothing_is_written_but_by_the_calls_that_tests_can_stop(host: Host) -> None:
    def stop(call: str, path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    host.write(THEIRS, "theirs\n")
    before = host.tree()
    with watched(stop), pytest.raises(OSError, match="Read-only"):
        put(host)
    assert host.tree() == before and len(disk.WATCH) == 1


def test_what_is_rewritten_keeps_owner_and_mode_and_a_link_stays_one(host: Host) -> None:
    real = host.write("/etc/kernel/real", "root=x\n", 0o640)
    (host.root / "etc/kernel/cmdline").symlink_to("real")
    files = host.system().files
    files.rewrite("/etc/kernel/cmdline", b"root=x iommu=pt\n")
    assert (host.root / "etc/kernel/cmdline").is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o7777) == ("root=x iommu=pt\n", 0o640)
    assert host.tree("etc").keys() == {"etc", "etc/kernel", "etc/kernel/real", "etc/kernel/cmdline"}


def test_of_a_log_that_is_longer_than_it_may_the_second_half_is_left(host: Host) -> None:
    for number in range(9):  # of eight bytes each
        host.system().files.append("/var/log/app", b"line %02d" % number, 64)
    assert host.read("/var/log/app") == "line 06\nline 07\nline 08\n"


def test_a_link_takes_the_place_of_whatever_has_its_name(host: Host) -> None:
    host.write("/etc/one", "theirs")
    host.write("/etc/.one.homelab-tmp", "left")
    host.system().files.write_link("/etc/two", "/etc/one")
    assert host.tree("etc") == {"etc": host.tree("etc")["etc"], "etc/one": (0, "/etc/two")}


def test_a_folder_that_cant_be_tidied_away_waits_for_the_next_run(host: Host) -> None:
    """By then the change is on the disk, and nothing of it is put back any more."""
    before = host.tree()
    put(host, "/etc/a/ours")
    put(host, "/etc/b/ours")

    with failing(errno.ENOSPC, "create", at="/.dirs.homelab-tmp"):
        drop(host, "/etc/a/ours")
    drop(host, "/etc/b/ours")
    assert host.tree() == before


def test_what_is_left_as_it_is_takes_no_other_file_with_it(host: Host) -> None:
    files = host.system().files
    for name in "abc":
        host.write(f"/etc/{name}", name)
    files.remember("/etc/a", "/etc/b")
    files.leave("/etc/a")
    files.remember("/etc/c")
    for name in "abc":
        files.write(f"/etc/{name}", b"new", 0o644)
    files.undo()
    assert [host.read(f"/etc/{name}") for name in "abc"] == ["new", "b", "c"]


def test_what_waits_for_a_success_is_done_by_finish_and_forgotten_by_undo(host: Host) -> None:
    done: list[str] = []
    files = host.system().files
    files.at_finish.append(lambda: done.append("one"))
    files.undo()
    files.finish()
    assert done == []
    files.at_finish.append(lambda: done.append("two"))
    files.finish()
    files.finish()
    assert done == ["two"]


def test_what_is_on_the_disk_stays_though_what_follows_fails(host: Host) -> None:
    system = host.system()

    def change() -> None:
        system.files.put("layer", "/etc/ours", 0o640, OURS)
        system.files.at_finish.append(lambda: system.files.set_attribute("/proc/none", "1"))

    with pytest.raises(FileNotFoundError):
        system.changing(change)
    assert host.read("/etc/ours") == "ours\n"


def test_a_run_whose_time_is_up_has_time_to_put_back(host: Host) -> None:
    left: list[float] = []

    def sync(_arguments: object, _stdin: bytes) -> int:
        left.append(system.work.time_for(600))
        return 0

    def change() -> None:
        system.work.ends = time.monotonic()
        system.work.go_on()

    system = System(host.root, limit=100, programs={"sync": sync})
    with pytest.raises(Failure, match="done within 100 s"):
        system.changing(change)
    assert 50 < left[-1] < 100


def test_what_a_cut_leaves_beside_a_file_goes_wherever_that_is(host: Host) -> None:
    files = ["/boot/grub/.grub.cfg.homelab-tmp", "/var/backups/homelab/etc/.conf.0123abcd.homelab-tmp"]
    left = [host.write(path, "") for path in files]
    snippets = "/srv/vz/snippets/hook.sh"
    host.system().files.put("it", snippets, 0o755, b"")
    left.append(host.write("/srv/vz/snippets/.hook.sh.homelab-tmp", ""))
    system = host.system()
    system.changing(lambda: system.files.drop("it", snippets))
    assert not [path for path in left if path.exists()] and not host.exists("/var/lib/homelab")


def test_where_a_link_leads_isnt_looked_at_for_leftovers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in /etc may be one to a share that is gone: each change would wait for it, under the lock."""
    (host.root / "mnt").mkdir()
    host.write("mnt/.x.homelab-tmp", "theirs")
    (host.root / "etc/share").symlink_to("../mnt")
    (host.root / "etc/.y.homelab-tmp").symlink_to("../mnt")
    looks = os.stat

    def looked(path: object, *arguments: object, **named: object) -> os.stat_result:
        assert not str(path).startswith(f"{host.root}/etc/share") or named.get("follow_symlinks") is False
        return looks(path, *arguments, **named)  # type: ignore[arg-type]

    follows_no_link(monkeypatch)
    monkeypatch.setattr(os, "stat", looked)
    put(host)
    assert host.read("mnt/.x.homelab-tmp") == "theirs" and not host.exists("etc/.y.homelab-tmp")


def test_leftovers_are_looked_for_on_our_own_file_systems_alone_and_one_that_stays_is_said(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = host.write("/etc/pve/nodes/.someone.homelab-tmp", "the cluster's")
    ours = host.write("/etc/app/.ours.homelab-tmp", "")
    link = ours.with_name(".link.homelab-tmp")
    link.symlink_to(host.root / "etc/pve")
    others = [host.write(path, "") for path in ("/etc/.pwd.lock", "/etc/app/some.homelab-tmp")]
    put(host)
    assert theirs.exists() and not ours.exists() and not link.is_symlink() and all(map(Path.exists, others))
    stays = host.write("/etc/app/.ours.homelab-tmp", "")
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == stays:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        put(host, content=b"another\n")
    assert host.read(THEIRS) == "another\n" and "could not be removed" in capsys.readouterr().err


def test_a_folder_that_a_run_has_made_and_removed_leaves_nothing_to_tell_of(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    system = host.system()

    def work() -> None:
        system.files.need_folder("/var/lib/app")
        system.files.write("/var/lib/app/program", b"for a while", 0o600)
        system.files.remove_tree("/var/lib/app")

    system.changing(work)
    assert not host.exists("/var/lib/app") and "could not be removed" not in capsys.readouterr().err


def test_the_folder_of_locks_and_logs_is_roots_alone_whoever_has_made_it(host: Host) -> None:
    folder = host.root / "run/homelab"
    host.system().files.need_folder("/run/homelab/esp/below")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)  # as an earlier version has left it
    host.system().changing(lambda: None)
    assert folder.stat().st_mode & 0o777 == 0o700


# -- files that the kernel makes -------------------------------------------------------------------------------------
def test_the_kernels_own_files_are_read_whatever_the_limit() -> None:
    """Asked for 4 MiB at once, /proc/sys says ENOMEM (fs/proc/proc_sysctl.c, KMALLOC_MAX_SIZE); a folder of a test has no such files."""
    system = System(Path("/"))
    release = os.uname().release
    path = "/proc/sys/kernel/osrelease"
    assert system.files.read(path, 1 << 26) == f"{release}\n".encode()
    assert Source(system).lines(path) == [release] and Source(system).passed_on(path) == release
    assert system.files.need_text(path) == f"{release}\n"


def test_a_disk_that_doesnt_take_what_was_made_ends_the_run_and_the_step_is_done_again(host: Host) -> None:
    failed = Done(1, b"", b"sync: error syncing '/boot': Input/output error\n")
    host.programs["sync"] = lambda _arguments, _stdin: failed
    system = host.system()

    def make() -> None:
        system.files.begin_step("boot")
        system.files.done_with("boot")

    with pytest.raises(OSError, match="error syncing '/boot'"):
        system.changing(make)
    assert system.files.is_pending("boot")
    with pytest.raises(OSError, match="error syncing"):
        system.changing(lambda: system.files.put("it", "/etc/it", 0o644, b"it\n"))
    assert not host.exists("/etc/it")


def test_who_changes_the_host_takes_nothing_of_a_list_that_is_being_written(host: Host) -> None:
    """A VM's change doesn't hold the host."""
    half = "/var/lib/homelab/.owed.homelab-tmp"
    with ThreadPoolExecutor(1) as other:
        with host.system().work.holding("owed", 0):
            host.write(half, "")
            changes = other.submit(lambda: host.working_system().changing(lambda: None))
            assert wait([changes], 0.5).not_done and host.exists(half)
        changes.result()
    assert not host.exists(half)
