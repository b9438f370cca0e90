"""No host restarts while Proxmox VE is at work on it: what is found, of whom, and what is none of it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder

ACTIVE = "var/log/pve/tasks/active"
PID, STARTED = 0x1A2B, 0x0094C3F1
UPID = "UPID:pve1:00001A2B:0094C3F1:6B010CC4:{}:root@pam!nightly:"
BACKUP = UPID.format("vzdump:100")


def process(folder: Folder, pid: int = PID, started: int = STARTED, called: str = "task) S 1 (UPID") -> None:
    """/proc/PID/stat has its start as the 22nd field, after a name that may hold anything."""
    folder.write(f"proc/{pid}/stat", f"{pid} ({called}) S {' '.join(['7'] * 18)} {started} 99 99\n")


def says(folder: Folder) -> str:
    done = folder.bash("WHY_NOT=''\nwork_says\nprintf '%s|%s' \"$AT_WORK\" \"$WHY_NOT\"\n", parts=("work",))
    assert done.returncode == 0, done.stdout + done.stderr
    at_work, _, why = done.stdout.partition("|")
    assert bool(at_work) == bool(why)
    return why


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{BACKUP} 0", "a backup (vzdump) 100 runs here, since 2026-11-21 "),
        (f"{UPID.format('qmigrate:101')} 0", "a migration (qmigrate) 101 runs here"),
        (f"{UPID.format('hamigrate:101')} 0", "a migration (hamigrate) 101 runs here"),
        (f"{UPID.format('imgcopy:')} 0", "the task imgcopy  runs here"),
        (f"{BACKUP} 1 6B010CD0 OK", ""),
        (f"{BACKUP} 1 6B010CD0", ""),
        (f"{UPID.format('vncproxy:100')} 0", ""),
        (f"{UPID.format('vncshell:')} 0", ""),
        ("UPID:pve1:a[$(touch $ROOT/owned)]:0094C3F1:6B010CC4:vzdump:100:root@pam: 0", ""),
        ("garbage", ""),
    ],
    ids=["a backup", "a migration", "one of HA", "another", "ended", "ended, its status unknown", "a VM's console", "a node's", "evil", "garbage"],
)  # fmt: skip
def test_a_task_that_runs_is_named(folder: Folder, line: str, said: str) -> None:
    process(folder)
    folder.write(ACTIVE, f"{UPID.format('qmstart:1')} 1 6B010CC5 OK\n{line}\n")
    found = says(folder)
    assert found.startswith(said) and bool(found) == bool(said)
    assert not said or found.endswith("of root@pam!nightly")
    assert not (folder.root / "owned").exists()


@pytest.mark.parametrize("alive", ["no", "another of the same number"])
def test_a_task_whose_process_has_died_is_over(folder: Folder, alive: str) -> None:
    """A crash, or a restart, leaves it in the list."""
    if alive != "no":
        process(folder, started=STARTED + 1)
    folder.write(ACTIVE, f"{BACKUP} 0\n")
    assert says(folder) == ""


def test_a_backup_is_seen_by_its_lock_too(folder: Folder) -> None:
    lock = folder.write("run/vzdump.lock", "")
    assert says(folder) == ""
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert says(folder) == "a backup (vzdump) runs here: it holds /run/vzdump.lock"


@pytest.mark.parametrize(
    ("command", "state", "busy"),
    [
        ("pvescheduler\0", {"pid": 812, "ptime": "5501", "last_try": 5}, True),
        ("/usr/bin/perl\0/usr/bin/pvesr\0run\0", {"pid": "812"}, True),
        ("pvescheduler\0", {"last_sync": 812, "error": "it was 812"}, False),
        ("/usr/bin/bash\0", {"pid": 812, "ptime": "5501"}, False),
    ],
    ids=["by the scheduler", "by hand", "none now", "its process has died"],
)
def test_a_replication_is_seen_by_its_process(
    folder: Folder, command: str, state: dict[str, object], busy: bool
) -> None:
    folder.write("proc/812/cmdline", command)
    folder.write("var/lib/pve-manager/pve-replication-state.json", json.dumps({"100": {"local/pve2": state}}))
    assert says(folder) == ("a replication of a guest runs here (process 812; pvesr status)" if busy else "")


@pytest.mark.parametrize(
    ("command", "busy"),
    [
        ("/usr/bin/perl\0/usr/sbin/qm\0mtunnel\0", True),
        ("bash\0-c\0/usr/sbin/qm mtunnel\0", True),
        ("/usr/bin/perl\0/sbin/pvesm\0import\0local-zfs:vm-100-disk-0\0zfs\0-\0", True),
        ("/usr/bin/perl\0/usr/sbin/qm\0list\0", False),
        ("vim\0notes about pvesm exports\0", False),
    ],
)
def test_what_comes_in_from_another_node_is_seen_by_its_process(folder: Folder, command: str, busy: bool) -> None:
    folder.write("proc/77/cmdline", command)
    assert bool(says(folder)) == busy
    assert not busy or "of another node comes in here (process 77)" in says(folder)


# -- packages ---------------------------------------------------------------------------------------------------------------
LOCKS = "1: OFDLCK ADVISORY  READ -1 00:2c:{inode} 0 EOF\n2: POSIX  ADVISORY  WRITE {pid} fd:01:{inode} 0 EOF\n"


def hold(folder: Folder, path: str, pid: int = 812, *, by: str = "apt-get", waits: str = "") -> None:
    """A process has a lock of the whole file, as fcntl(2) gives it; it is listed by its inode, and the process has the file open."""
    file = folder.root / path
    folder.write("proc/locks", LOCKS.format(pid=f"{pid}", inode=file.stat().st_ino).replace(" POSIX", f" {waits}POSIX"))
    folder.write(f"proc/{pid}/comm", f"{by}\n")
    (folder.root / f"proc/{pid}/fd").mkdir()
    (folder.root / f"proc/{pid}/fd/4").symlink_to(file)


@pytest.mark.parametrize("path", ["var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "run/unattended-upgrades.lock"])
def test_an_installation_of_packages_is_waited_for_and_its_process_named(folder: Folder, path: str) -> None:
    """A restart would leave packages half configured, of which the kernel's own initramfs may be one. The files stay; a lock is what counts."""
    folder.write(path, "")
    folder.write("proc/locks", "")
    assert says(folder) == ""
    hold(folder, path, by="unattended-upgr")
    assert says(folder) == f"packages are being installed here: process 812 (unattended-upgr) holds /{path}"


@pytest.mark.parametrize("how", ["waits for it", "another file system's inode", "its process has gone", "no such file"])
def test_a_lock_that_nobody_holds_keeps_no_restart_waiting(folder: Folder, how: str) -> None:
    """A container has a file of the same path, and perhaps of the same number."""
    lock = folder.write("var/lib/dpkg/lock-frontend", "")
    hold(folder, "var/lib/dpkg/lock-frontend", waits="-> " if how == "waits for it" else "")
    opened = folder.root / "proc/812/fd/4"
    if how == "another file system's inode":
        opened.unlink()
        opened.symlink_to(folder.write("containers/var/lib/dpkg/lock-frontend", ""))
    elif how == "its process has gone":
        opened.unlink()
    elif how == "no such file":
        lock.unlink()
    assert says(folder) == ""


# As recorded of a cluster of three (../shared/pve_api, cluster.jsonl).
HA = """quorum OK
master pve2 (active, Sat Nov 21 03:25:13 2026)
lrm pve1 (idle, watchdog standby, Sat Nov 21 03:25:13 2026)
lrm pve3 (maintenance mode, watchdog standby, Sat Nov 21 03:25:17 2026)
service vm:200 ({})
"""


@pytest.mark.parametrize(
    ("service", "busy"),
    [
        ("pve1, started", False), ("pve1, stopped", False), ("pve1, error", False), ("pve1, queued", False), ("pve1, freeze", False),
        ("pve1, request_stop", True), ("pve1, starting", True), ("pve1, deleting", True), ("pve2, request_stop", False),
        ("pve2, migrate", True), ("pve3, fence", True), ("pve3, recovery", True),
        ("pve1, clearing error flag", True), ("---, not found", False), ("pve1, ignore", False),
    ],
)  # fmt: skip
def test_an_action_of_ha_is_waited_for(folder: Folder, service: str, busy: bool) -> None:
    folder.write("etc/pve/ha/resources.cfg", "vm: 200\n\tstate started\n")
    (folder.root / "etc/pve/local").symlink_to("nodes/pve1")
    folder.write("said", HA.format(service))
    folder.command("ha-manager", '[[ $1 == status ]] && cat "$ROOT/said"')
    node, _, state = service.partition(", ")
    assert says(folder) == (f"HA is at work on vm:200 of {node}: {state}" if busy else "")


def test_where_ha_has_no_services_it_isnt_asked_and_where_it_has_its_silence_is_a_no(folder: Folder) -> None:
    folder.command("ha-manager", "touch $ROOT/asked; echo 'ipcc_send_rec failed' >&2; exit 111")
    folder.write("etc/pve/ha/resources.cfg", "\n")
    assert says(folder) == "" and not (folder.root / "asked").exists()
    folder.write("etc/pve/ha/resources.cfg", "ct: 300\n\n")
    assert says(folder) == "`ha-manager status` doesn't say what HA is doing: ipcc_send_rec failed"


@pytest.mark.parametrize("program", ["find", "grep"])
def test_an_etc_pve_that_hangs_is_no_ha_without_services(folder: Folder, program: str) -> None:
    assert says(folder) == ""
    if program == "grep":
        folder.write("etc/pve/ha/resources.cfg", "\n")
        assert says(folder) == ""
    folder.command(program, f'[[ "$*" != */etc/pve/* ]] || exit 124; exec /bin/{program} "$@"')
    assert says(folder).startswith("/etc/pve doesn't answer, so nobody knows whether HA is at work")


def test_a_cluster_and_ha_are_seen_where_etc_pve_has_links_to_its_files(folder: Folder) -> None:
    asked = "is_clustered && printf 'a cluster, '; status=0; has_services || status=$?; find_node_name; printf '%s, %s' \"$status\" \"$NODE_NAME\"\n"
    folder.write("etc/pve/ha/.keep", "")
    (folder.root / "etc/pve/local").symlink_to("nodes/pve1")
    for name in ("corosync.conf", "ha/resources.cfg"):
        (folder.root / "etc/pve" / name).symlink_to(folder.root / "shared" / name)
    assert folder.bash(asked, parts=("ha",)).stdout == "1, pve1"
    folder.write("shared/corosync.conf", "totem {}\n")
    folder.write("shared/ha/resources.cfg", "vm: 200\n")
    assert folder.bash(asked, parts=("ha",)).stdout == "a cluster, 0, pve1"


def test_a_host_that_is_alone_waits_for_its_backup_and_is_then_refused(folder: Folder) -> None:
    """The whole script: planned, refused with nothing armed, and done once the backup has ended."""
    folder.write("proc/sys/kernel/random/boot_id", "7d4f0d3c-0000-4000-8000-000000000001\n")
    folder.write("proc/cmdline", "quiet\n")
    folder.write("etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    folder.write("boot/grub/grub.cfg", "linux /vmlinuz quiet\n")
    for name in ("systemctl", "systemd-run", "update-grub", "qm", "pct"):
        folder.command(name, f"echo {name} $* >>$ROOT/run/called")
    folder.command("sleep", "exit 0")
    process(folder)
    folder.write(ACTIVE, f"{BACKUP} 0\n")
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600)
    at_once = script.replace("TURN_SECONDS=180", "TURN_SECONDS=0")
    before = folder.tree()
    assert json.loads(folder.run("plan", script).stdout)["cluster"].startswith("a backup (vzdump) 100 runs here, since")
    assert folder.tree() == before
    refused = folder.run("apply", at_once)
    assert refused.returncode == 1 and "found:  a backup (vzdump) 100 runs here" in refused.stdout
    assert "a restart would cut it off" in refused.stdout and "allowQuorumLoss" not in refused.stdout
    # One that never ends by itself has a way out, too.
    for way in ("pvenode task list --source active", "ha-manager status", "Or reboot this host by hand"):
        assert way in refused.stdout
    assert not (folder.root / "var/lib/homelab/armed").exists()
    assert "systemctl reboot" not in Path(folder.root, "run/called").read_text()
    folder.command("sleep", f'rm -r "$ROOT/proc/{PID}" 2>/dev/null; exit 0')
    done = folder.run("apply", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting to restart" not in done.stdout and "systemctl reboot" in Path(folder.root, "run/called").read_text()
    assert json.loads(done.stdout)["turn"] == "no"


@pytest.mark.parametrize("path", [ACTIVE, "var/lib/pve-manager/pve-replication-state.json", "proc/locks"])
def test_what_cant_be_read_may_say_that_something_runs(folder: Folder, path: str) -> None:
    (folder.root / path).mkdir(parents=True)
    assert says(folder) == f"what is at work here can't be told: /{path} can't be read"
