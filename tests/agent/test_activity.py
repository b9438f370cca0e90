"""No host restarts while Proxmox VE is at work on it: what is found, of whom, and what is none of it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Sequence

import pytest

from remote_scripts.cluster import activity, ha
from remote_scripts.pve import guests, pmxcfs
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.tools.done import Done
from tests.agent import api_kit
from tests.agent.kit import Host, hangs

ACTIVE = "/var/log/pve/tasks/active"
PID, STARTED = 0x1A2B, 0x0094C3F1
UPID = "UPID:pve1:00001A2B:0094C3F1:6B010CC4:{}:root@pam!nightly:"
BACKUP = "vzdump:100"


def process(host: Host, started: int = STARTED) -> None:
    """/proc/PID/stat has its start as the 22nd field, after a name that may hold anything."""
    host.write(f"/proc/{PID}/stat", f"{PID} (task) S 1 (UPID) S {' '.join(['7'] * 18)} {started} 99 99\n")


def says(host: Host) -> str:
    system = host.system()
    return activity.at_work(system, pmxcfs.this_node(system))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (BACKUP, "the task vzdump 100 runs here, since 2026-11-21 "),
        ("qmigrate:101", "the task qmigrate 101 runs here"),
        ("imgcopy:", "the task imgcopy  runs here"),
        ("vncproxy:100", ""),
        ("vncshell:", ""),
    ],
    ids=["a backup", "a migration", "another", "a VM's console", "a node's"],
)
def test_a_task_that_runs_is_named(host: Host, task: str, said: str) -> None:
    process(host)
    api_kit.runs(host, {}, {})
    host.write(ACTIVE, f"{UPID.format(task)} 0\n")
    found = says(host)
    assert found.startswith(said) and bool(found) == bool(said)
    assert not said or found.endswith("of root@pam!nightly")


@pytest.mark.parametrize("alive", ["no", "another of the same number"])
def test_a_task_whose_process_has_died_is_over(host: Host, alive: str) -> None:
    """A crash, or a restart, leaves it in the list."""
    if alive != "no":
        process(host, started=STARTED + 1)
    api_kit.runs(host, {}, {})
    host.write(ACTIVE, f"{UPID.format(BACKUP)} 0\n")
    assert says(host) == ""


def test_an_api_that_gives_no_answer_may_hide_a_task(host: Host) -> None:
    api_kit.says_nothing(host)
    assert says(host).startswith("it isn't known what is at work here: no ticket of root@pam is made")


def test_a_backup_is_seen_by_its_lock_too(host: Host) -> None:
    lock = host.write("/run/vzdump.lock", "")
    assert says(host) == ""
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert says(host) == "", "another one asks at the same time"
        fcntl.flock(held, fcntl.LOCK_EX)
        assert says(host) == "a backup (vzdump) runs here: it holds /run/vzdump.lock"


# -- packages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/run/unattended-upgrades.lock"])
def test_an_installation_of_packages_is_waited_for_and_its_process_named(host: Host, path: str) -> None:
    """A restart would leave packages half configured, of which the kernel's own initramfs may be one. The files stay; a lock is what counts."""
    hold = "import fcntl, sys; f = open(sys.argv[1], 'wb'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    lock = host.write(path, "")
    assert says(host) == ""
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as apt:
        assert apt.stdout is not None and apt.stdout.readline()
        host.write(f"/proc/{apt.pid}/comm", "unattended-upgr\n")
        assert says(host) == f"packages are being installed here: process {apt.pid} (unattended-upgr) holds {path}"
        apt.communicate()
    assert says(host) == ""


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
        ("pve1, started", False), ("pve1, stopped", False), ("pve1, error", False), ("pve1, queued", False), ("pve2, freeze", False), ("pve1, freeze", True),
        ("pve1, request_stop", True), ("pve1, starting", True), ("pve1, deleting", True), ("pve2, request_stop", False),
        ("pve2, migrate", True), ("pve3, fence", True), ("pve3, recovery", True),
        ("pve1, clearing error flag", True), ("---, not found", False), ("pve1, ignore", False),
    ],
)  # fmt: skip
def test_an_action_of_ha_is_waited_for(host: Host, service: str, busy: bool) -> None:
    host.write("/etc/pve/ha/resources.cfg", "vm: 200\n\tstate started\n")
    (host.root / "etc/pve/local").symlink_to("nodes/pve1")
    host.programs["ha-manager"] = lambda _arguments, _stdin: HA.format(service)
    node, _, state = service.partition(", ")
    assert says(host) == (f"HA is at work on vm:200 of {node}: {state}" if busy else "")


def test_where_ha_has_no_services_it_isnt_asked_and_where_it_has_its_silence_is_a_no(host: Host) -> None:
    asked: list[Sequence[str]] = []

    def ha_manager(arguments: Sequence[str], _stdin: bytes) -> Done:
        asked.append(arguments)
        return Done(111, b"", b"ipcc_send_rec failed\n")

    host.programs["ha-manager"] = ha_manager
    host.write("/etc/pve/ha/resources.cfg", "\n")
    assert says(host) == "" and not asked
    host.write("/etc/pve/ha/resources.cfg", "ct: 300\n\n")
    assert says(host) == "`ha-manager status` doesn't say what HA is doing: ipcc_send_rec failed"


def test_an_etc_pve_that_hangs_is_no_ha_without_services(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert says(host) == ""

    hangs(monkeypatch, host.root / "etc/pve")
    said = "/etc/pve doesn't answer (pve-cluster.service), so it isn't known whether HA is at work"
    assert says(host).startswith(said)


def test_a_cluster_and_ha_are_seen_where_etc_pve_has_links_to_its_files(host: Host) -> None:
    host.write("/etc/pve/ha/.keep", "")
    (host.root / "etc/pve/local").symlink_to("nodes/pve1")
    node = pmxcfs.this_node(host.system())
    assert node == pmxcfs.Node("pve1", clustered=False) and ha.has_services(host.system(), node) is False
    for name in ("corosync.conf", "ha/resources.cfg"):
        (host.root / "etc/pve" / name).symlink_to(host.root / "shared" / name)
    host.write("/shared/corosync.conf", "totem {}\n")
    host.write("/shared/ha/resources.cfg", "vm: 200\n")
    node = pmxcfs.this_node(host.system())
    assert node == pmxcfs.Node("pve1", clustered=True) and ha.has_services(host.system(), node) is True


def test_a_file_among_the_nodes_is_no_node_of_a_guest(host: Host) -> None:
    host.write("/etc/pve/nodes/a-note", "")
    host.write("/etc/pve/nodes/pve1/lxc/100.conf", "")
    host.write("/etc/pve/nodes/pve2/lxc/101.conf", "")
    (host.root / "etc/pve/local").symlink_to("nodes/pve1")
    places = [guests.place_of(host.system(), CONTAINER, ctid) for ctid in (100, 101, 102)]
    assert places == [("pve1", True), ("pve2", False), ("", False)]


@pytest.mark.parametrize("path", ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"])
def test_what_cant_be_read_may_say_that_something_runs(host: Host, path: str) -> None:
    (host.root / path[1:]).mkdir(parents=True)
    said = says(host)
    assert said.startswith("it isn't known what is at work here: ") and path in said
