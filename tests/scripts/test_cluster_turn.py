"""A node of a cluster restarts while the others keep their quorum, and while none of them restarts. `pvecm` answers as recorded of a real cluster."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests.agent.cluster_kit import VOTES, status
from tests.scripts.conftest import Folder, quoted

TURN = "etc/pve/priv/homelab-reboot"
LOCK = "etc/pve/priv/lock/homelab-reboot"
FAR, LONG_AGO = 99_999_999_999, 1


#: Before a script that waits for nothing that comes: time goes by with each `sleep` alone.
WAITS = "sleep() { SECONDS=$((SECONDS + $1)); }\n"


@pytest.fixture
def node(folder: Folder) -> Folder:
    return first_of_three(folder)


def first_of_three(folder: Folder) -> Folder:
    """pve1, all of them well; it lacks what is wanted."""
    folder.write("etc/pve/corosync.conf", "totem {}\n")
    (folder.root / "etc/pve/nodes/pve1").mkdir(parents=True)
    (folder.root / "etc/pve/local").symlink_to("nodes/pve1")
    (folder.root / "etc/pve/priv/lock").mkdir(parents=True)
    folder.write("proc/sys/kernel/random/boot_id", "7d4f0d3c-0000-4000-8000-000000000001\n")
    members(folder, status(1, 1, 1, expected=3))
    folder.command("sleep", "exit 0")
    folder.command("systemctl", 'echo "$*" >>"$ROOT/run/systemctl"')
    return folder


def members(folder: Folder, text: str, names: str = "1 1 pve1 (local)\n2 1 pve2\n3 1 pve3") -> None:
    folder.write("said/status", text)
    folder.write(
        "said/nodes", f"\nMembership information\n----------------------\n    Nodeid      Votes Name\n{names}\n"
    )
    said = 'IFS= read -rd "" said <"$ROOT/said/$1"; printf %s "$said"'
    folder.command("pvecm", f'{said}; [[ $said != *"Quorate:          No"* ]] || exit 2')


def says(folder: Folder, quorum: str = "keep") -> str:
    done = folder.bash(f"QUORUM={quorum} HA_MODE=keep\ncluster_says\nprintf '%s' \"$WHY_NOT\"\n", parts=("cluster",))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def take(folder: Folder, seconds: int = 0, quorum: str = "keep") -> subprocess.CompletedProcess[str]:
    return folder.bash(
        f"QUORUM={quorum} HA_MODE=keep AWAY_SECONDS=600 TURN_END={quoted(scripts._turn_end())}\n"
        f'printf %s "$$" >"$ROOT/run/pid"\n'
        f"take_lock\nawait_cluster {seconds} || refuse_turn\ntake_turn {seconds} || refuse_turn\nfinish\n",
        parts=("cluster",),
    )


def end(folder: Folder, seconds: int = 0) -> str:
    script = scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="5", OVER_SECONDS=str(seconds), NODE="")
    done = folder.run("apply", script)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(done.stdout)["over"])


def turn_of(folder: Folder, name: str, until: int = FAR) -> str:
    text = f"node {name}\nsince 2026-11-22 06:00:00 UTC\nuntil {until}\n"
    folder.write(TURN, text)
    return text


@VOTES
def test_a_quorum_stays_without_this_node(node: Folder, text: str, why: str) -> None:
    members(node, text)
    assert says(node) == why


def test_a_quorum_may_be_given_up_but_not_be_missing_before(node: Folder) -> None:
    members(node, status(1, 1, expected=2))
    assert says(node, "lose") == ""
    members(node, status(1, expected=3))
    assert says(node, "lose").startswith("the cluster has no quorum")


def test_a_host_that_is_alone_asks_nobody(node: Folder) -> None:
    (node.root / "etc/pve/corosync.conf").unlink()
    node.command("pvecm", "echo asked >$ROOT/asked; exit 2")
    before = node.tree()
    assert says(node) == "" and take(node).returncode == 0 and end(node) == "yes"
    assert node.tree() == before


def test_a_node_without_its_pve_folder_is_still_one_of_a_cluster(node: Folder) -> None:
    (node.root / "etc/pve/corosync.conf").unlink()
    node.write("etc/corosync/corosync.conf", "totem {}\n")
    members(node, "")
    assert says(node) == ""  # it has left its cluster
    (node.root / "etc/pve/local").unlink()
    assert says(node).startswith("`pvecm status` doesn't say")


def test_a_turn_is_taken_and_ended_without_a_trace(node: Folder) -> None:
    before = node.tree()
    began = int(time.time())
    done = take(node)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(" ", 1) for line in node.read(TURN).splitlines())
    assert said["node"] == "pve1" and began + 600 <= int(said["until"]) <= time.time() + 600
    assert not (node.root / LOCK).exists()
    # Should this run be killed, the node ends it by itself.
    assert (
        "restart homelab-turn.timer" in node.read("run/systemctl") and (node.root / "var/lib/homelab/turn-end").exists()
    )
    assert end(node) == "yes"
    # The folder of everything that this program keeps stays until the last of it goes.
    assert node.files() == {name: about for name, about in before.items() if about[1] != "directory"}


@pytest.mark.parametrize(
    ("until", "nodes", "refused"),
    [
        (FAR, "1 1 pve1 (local)\n2 1 pve2", True),
        (LONG_AGO, "1 1 pve1 (local)\n2 1 pve22", True),
        (LONG_AGO, "1 1 pve1 (local)\n3 1 pve3", True),
        (LONG_AGO, "1 1 pve1 (local)\n2 1 pve2", False),
        (LONG_AGO, "1 1 A,V,NMW pve1 (local)\n2 1 A,V,NMW pve2\n0 1 Qdevice", False),
    ],
    ids=["it is its time", "another of a like name is back", "it isn't back", "its time is over and it is back", "and there is an arbiter"],
)  # fmt: skip
def test_the_turn_of_another_node(node: Folder, until: int, nodes: str, refused: bool) -> None:
    members(node, status(1, 1, 1, expected=3), nodes)
    theirs = turn_of(node, "pve2", until)
    done = take(node)
    assert done.returncode == (1 if refused else 0), done.stdout + done.stderr
    if refused:
        assert "found:  pve2 restarts, since 2026-11-22 06:00:00 UTC (/etc/pve/priv/homelab-reboot)" in done.stdout
        assert node.read(TURN) == theirs and not (node.root / "var/lib/homelab/turn").exists()
        assert end(node) == "yes" and node.read(TURN) == theirs
    else:
        assert node.read(TURN).startswith("node pve1\n")


@pytest.mark.parametrize("text", ["", "node\n", "\0\1garbage\n", "until 5\n"])
def test_what_names_no_node_is_nobodys_turn(node: Folder, text: str) -> None:
    node.write(TURN, text)
    assert take(node).returncode == 0
    assert node.read(TURN).startswith("node pve1\n")


def test_a_turn_whose_end_is_no_number_has_none(node: Folder) -> None:
    node.write(TURN, "node pve2\nsince then\nuntil a[$(touch $ROOT/owned)]\n")
    assert take(node).returncode == 1
    assert not (node.root / "owned").exists()


def test_the_nodes_own_turn_of_a_run_that_was_killed_is_taken_anew(node: Folder) -> None:
    turn_of(node, "pve1", LONG_AGO)
    assert take(node).returncode == 0
    assert f"until {LONG_AGO}\n" not in node.read(TURN)


def test_it_waits_until_the_others_can_do_without_it(node: Folder) -> None:
    """The one that has just come back has its vote some seconds later."""
    members(node, status(1, 1, expected=3))
    node.write("said/then", status(1, 1, 1, expected=3))
    node.command("sleep", 'cp "$ROOT/said/then" "$ROOT/said/status"')
    assert take(node, 60).returncode == 0


def test_a_lock_that_another_node_holds_is_waited_for_and_asked_to_end(node: Folder) -> None:
    (node.root / LOCK).mkdir()
    done = take(node)
    assert done.returncode == 1 and "another node holds /etc/pve/priv/lock/homelab-reboot" in done.stdout
    # The cluster's file system takes that as a request to let go of a lock whose time is over.
    assert (node.root / LOCK).stat().st_mtime == 0
    node.command("sleep", 'rmdir "$ROOT/etc/pve/priv/lock/homelab-reboot" 2>/dev/null; exit 0')
    assert take(node, 60).returncode == 0


def test_two_nodes_that_ask_at_once_take_turns(node: Folder) -> None:
    """Both see that nobody restarts; one is told so under the lock."""
    node.write("theirs", turn_of(node, "pve2"))
    (node.root / TURN).unlink()
    node.command(
        "mkdir",
        f'/bin/mkdir "$@" || exit 1; [[ ${{!#}} != */lock/homelab-reboot ]] || cp "$ROOT/theirs" "$ROOT/{TURN}"',
    )
    done = take(node)
    assert done.returncode == 1 and "pve2 restarts" in done.stdout
    assert not (node.root / LOCK).exists()


@pytest.mark.parametrize("what", ["no /etc/pve yet", "no quorum yet", "another node holds the lock"])
def test_the_end_of_a_turn_waits_for_the_cluster(node: Folder, what: str) -> None:
    assert take(node).returncode == 0
    if what == "no /etc/pve yet":
        (node.root / "etc/pve").rename(node.root / "etc/later")
        later = 'mv "$ROOT/etc/later" "$ROOT/etc/pve"'
    elif what == "no quorum yet":
        node.command("rm", '[[ ${!#} != */priv/homelab-reboot || -e $ROOT/quorate ]] || exit 1; exec /bin/rm "$@"')
        later = 'touch "$ROOT/quorate"'
    else:
        (node.root / LOCK).mkdir()
        later = 'rmdir "$ROOT/etc/pve/priv/lock/homelab-reboot"'
    assert end(node) == "no"
    assert (node.root / "var/lib/homelab/turn").exists()
    node.command("sleep", later)
    assert end(node, 60) == "yes"
    assert not (node.root / TURN).exists() and not (node.root / "var/lib/homelab/turn").exists()


CEPH = """
echo "$*" >>"$ROOT/asked"
[[ "$1" != {refuses} ]] || {{ echo {said} >&2; exit 16; }}
"""


@pytest.mark.parametrize(
    ("refuses", "said", "why"),
    [
        (
            "osd",
            "unsafe to stop",
            "Ceph can't do without this node's disks now (`ceph osd ok-to-stop 0 3`): unsafe to stop",
        ),
        ("mon", "not enough", "Ceph can't do without this node's monitor now (`ceph mon ok-to-stop pve1`): not enough"),
        (
            "mon",
            "",
            "Ceph can't do without this node's monitor now (`ceph mon ok-to-stop pve1`): no answer within 20 s",
        ),
        ("-", "", ""),
    ],
    ids=["its disks", "its monitor", "no answer", "it can"],
)
def test_ceph_is_asked_whether_it_can_do_without_the_nodes_daemons(
    node: Folder, refuses: str, said: str, why: str
) -> None:
    (node.root / "var/lib/ceph/mon/ceph-pve1").mkdir(parents=True)
    for osd in (0, 3):
        node.write(f"var/lib/ceph/osd/ceph-{osd}/whoami", f"{osd}\n")
    node.command("ceph", CEPH.format(refuses=refuses, said=said))
    assert says(node) == why
    assert node.read("asked").startswith("mon ok-to-stop pve1\n")


def test_a_node_of_the_cluster_without_daemons_of_ceph_asks_nothing(node: Folder) -> None:
    """Each node has Ceph's configuration in /etc/pve."""
    node.write("etc/pve/ceph.conf", "[global]\n")
    node.command("ceph", "echo asked >$ROOT/asked; exit 1")
    assert says(node) == "" and not (node.root / "asked").exists()


def test_a_cluster_of_one_asks_ceph_nothing(node: Folder) -> None:
    members(node, status(1, expected=1))
    (node.root / "var/lib/ceph/mon/ceph-pve1").mkdir(parents=True)
    node.command("ceph", "exit 16")
    assert says(node) == ""


DUMP = """epoch 118
fsid 7f0c1c5e-0000-4000-8000-000000000007
created 2026-09-01T08:11:02.412921+0000
modified 2026-11-21T03:31:41.500311+0000
flags {flags}sortbitwise,recovery_deletes,purged_snapdirs,pglog_hardlimit
crush_version 9
full_ratio 0.95
require_osd_release squid
pool 1 '.mgr' replicated size 3 min_size 2 crush_rule 0 object_hash rjenkins pg_num 1 pgp_num 1 autoscale_mode on last_change 21 flags hashpspool stripe_width 0 pg_num_max 32 pg_num_min 1 application mgr read_balance_score 4.50
max_osd 4
"""
OSD = "osd.{id} up   in  weight 1 up_from 110 up_thru 115 down_at 107 last_clean_interval [95,106) [v2:10.219.77.2:6800/1183,v1:10.219.77.2:6801/1183] [v2:10.219.77.2:6802/1183,v1:10.219.77.2:6803/1183] {states} 5d0c6a3e-0000-4000-8000-00000000000{id}\n"
# What `ceph` says and does, of a monitor's source: add-noout and rm-noout say nothing where they change something.
OSD_FLAGS = """
echo "$*" >>"$ROOT/run/asked"
case "$1 $2" in
  "osd dump") cat "$ROOT/run/dump" ;;
  "osd add-noout") for id in "${@:3}"; do sed -i "/^osd\\.$id /s/exists,up\\(,noout\\)\\? /exists,up,noout /" "$ROOT/run/dump"; done ;;
  "osd rm-noout") for id in "${@:3}"; do sed -i "/^osd\\.$id /s/,noout//" "$ROOT/run/dump"; done ;;
esac
"""


@pytest.fixture
def with_disks(node: Folder) -> Folder:
    """Disks 0 and 3 are the node's, 1 is another's."""
    for osd in (0, 3):
        node.write(f"var/lib/ceph/osd/ceph-{osd}/whoami", f"{osd}\n")
    osd_dump(node)
    node.command("ceph", OSD_FLAGS)
    return node


def osd_dump(folder: Folder, flags: str = "", kept: tuple[int, ...] = ()) -> str:
    rows = (OSD.format(id=one, states="exists,up,noout" if one in kept else "exists,up") for one in (0, 1, 3))
    text = DUMP.format(flags=flags) + "".join(rows)
    folder.write("run/dump", text)
    return text


def kept_disks(folder: Folder) -> list[str]:
    return [line.split()[0] for line in folder.read("run/dump").splitlines() if ",noout " in line]


@pytest.mark.parametrize(
    ("flags", "kept", "then"),
    [("", (), ["osd.0", "osd.3"]), ("", (3,), ["osd.0", "osd.3"]), ("noout,", (), []), ("nobackfill,noout,", (1,), ["osd.1"])],
    ids=["nobody's", "one of them is somebody's", "the whole cluster's", "the whole cluster's, and another disk's"],
)  # fmt: skip
def test_ceph_replaces_no_disk_of_a_node_that_restarts(
    with_disks: Folder, flags: str, kept: tuple[int, ...], then: list[str]
) -> None:
    """What somebody else has set stays, before and after."""
    before, dump = with_disks.files(), osd_dump(with_disks, flags, kept)
    assert take(with_disks).returncode == 0
    assert kept_disks(with_disks) == then
    assert end(with_disks) == "yes"
    assert with_disks.read("run/dump") == dump and with_disks.files() == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_noout_of_a_run_that_was_killed_is_unset_by_the_node_itself(with_disks: Folder, when: str) -> None:
    before, dump = with_disks.files(), with_disks.read("run/dump")
    kill = 'kill -KILL "$(<"$ROOT/run/pid")"'
    before_it, after_it = (kill + "; exit", ":") if when == "before" else (":", kill)
    asked = '[[ "$1 $2" == "osd add-noout" ]]'
    with_disks.command("ceph", f"! {asked} || {{ {before_it}; }}\n{OSD_FLAGS}\n! {asked} || {after_it}")
    assert take(with_disks).returncode != 0
    with_disks.command("ceph", OSD_FLAGS)
    assert with_disks.read("var/lib/homelab/away") == "noout 0 3\n"
    assert (with_disks.root / "etc/systemd/system/timers.target.wants/homelab-turn.timer").is_symlink()
    assert "restart homelab-turn.timer" in with_disks.read("run/systemctl")
    assert "OnActiveSec=600s" in with_disks.read("etc/systemd/system/homelab-turn.timer")
    assert with_disks.bash(with_disks.read("var/lib/homelab/turn-end"), "apply", parts=()).returncode == 0
    assert with_disks.read("run/dump") == dump and with_disks.files() == before


def test_noout_of_a_run_that_was_killed_stays_noted_by_the_next_one(with_disks: Folder) -> None:
    before, dump = with_disks.files(), with_disks.read("run/dump")
    assert take(with_disks).returncode == 0 and take(with_disks).returncode == 0
    assert with_disks.read("var/lib/homelab/away") == "noout 0 3\n"
    assert end(with_disks) == "yes"
    assert with_disks.read("run/dump") == dump and with_disks.files() == before


@pytest.mark.parametrize("what", ["osd dump", "osd add-noout", "systemctl"])
def test_a_node_whose_disks_ceph_would_replace_isnt_restarted(with_disks: Folder, what: str) -> None:
    before, dump = with_disks.files(), with_disks.read("run/dump")
    if what == "systemctl":
        with_disks.command("systemctl", "exit 1")
    else:
        with_disks.command("ceph", f'[[ "$1 $2" != "{what}" ]] || {{ echo no >&2; exit 22; }}\n{OSD_FLAGS}')
    done = take(with_disks)
    said = {
        "osd dump": "Ceph doesn't say which disks it would replace",
        "osd add-noout": "Ceph would replace this node's disks (`ceph osd add-noout 0 3`): no",
        "systemctl": "the end of this node's turn can't be arranged on this host",
    }
    assert done.returncode == 1 and said[what] in done.stdout
    assert with_disks.read("run/dump") == dump and with_disks.files() == before


def test_a_turn_goes_on_until_noout_is_unset(with_disks: Folder) -> None:
    """Monitors have a quorum some time after a boot."""
    assert take(with_disks).returncode == 0
    with_disks.command("ceph", "exit 1")
    assert end(with_disks) == "no"
    assert with_disks.read("var/lib/homelab/away") == "noout 0 3\n" and with_disks.read(TURN)
    # The node's own timer fails, so that systemd starts it again.
    expired = with_disks.bash(turn_end_at_once(with_disks), "expire", parts=())
    assert expired.returncode == 1 and "ceph osd rm-noout 0 3" in expired.stdout
    assert with_disks.read("var/lib/homelab/away") == "noout 0 3\n"
    assert "turn-end expire" in with_disks.read("etc/systemd/system/homelab-turn.service")
    with_disks.command("ceph", OSD_FLAGS)
    assert with_disks.bash(turn_end_at_once(with_disks), "expire", parts=()).returncode == 0
    # It doesn't stop itself; an `up` stops its next try.
    assert "stop --no-block homelab-turn.service" not in with_disks.read("run/systemctl")
    assert take(with_disks).returncode == 0 and end(with_disks) == "yes"
    assert "stop --no-block homelab-turn.service" in with_disks.read("run/systemctl")
    assert kept_disks(with_disks) == [] and not list((with_disks.root / "var/lib/homelab").glob("turn*"))


def turn_end_at_once(folder: Folder) -> str:
    return folder.read("var/lib/homelab/turn-end").replace(f"OVER_SECONDS={scripts.CLUSTER_SECONDS}", "OVER_SECONDS=0")


def destroyed(folder: Folder) -> subprocess.CompletedProcess[str]:
    """What the end of cmdline's `revert` does, by a clock of its own."""
    return folder.bash(f"{WAITS}GIVE_BACK_SECONDS=0\ntake_lock\ngive_turn_back\nfinish\n", parts=("cluster",))


@pytest.mark.parametrize("armed", [True, False])
def test_destroy_forgets_no_noout(with_disks: Folder, armed: bool) -> None:
    """The node's own timer goes on with it; where there is none, `destroy` fails."""
    assert take(with_disks).returncode == 0
    with_disks.command("ceph", "exit 1")
    if not armed:
        (with_disks.root / "etc/systemd/system/homelab-turn.timer").unlink()
    done = destroyed(with_disks)
    assert done.returncode == (0 if armed else 1)
    assert "ceph osd rm-noout 0 3" in (done.stderr if armed else done.stdout)
    assert ("start --no-block homelab-turn.service" in with_disks.read("run/systemctl")) is armed
    assert with_disks.read("var/lib/homelab/away") == "noout 0 3\n"
    assert (with_disks.root / "var/lib/homelab/turn").exists()
    with_disks.command("ceph", OSD_FLAGS)
    assert destroyed(with_disks).returncode == 0 and kept_disks(with_disks) == []
    assert not list((with_disks.root / "var/lib/homelab").glob("[at]*"))


@pytest.mark.parametrize(
    ("back", "until", "lifted"), [(False, LONG_AGO, True), (False, FAR, False), (True, LONG_AGO, False)]
)
def test_ceph_replaces_the_disks_of_a_node_that_hasnt_come_back(
    with_disks: Folder, back: bool, until: int, lifted: bool
) -> None:
    """Its turn stays: somebody has to look at it."""
    members(with_disks, status(1, 1, 1, expected=3), "1 1 pve1 (local)\n3 1 pve3" + "\n2 1 pve2" * back)
    osd_dump(with_disks, kept=(0, 1))
    with_disks.write(TURN, turn_of(with_disks, "pve2", until) + "noout 1\n")
    done = with_disks.bash("lift_noout_of_absent\n", parts=("absent",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert kept_disks(with_disks) == (["osd.0"] if lifted else ["osd.0", "osd.1"])
    assert with_disks.read(TURN).endswith("noout 1\n")
    if not back:  # an `up` that has waited for it in vain
        script = scripts.cluster_turn("pve2")
        assert with_disks.run("lift", script).returncode == 0 and kept_disks(with_disks) == ["osd.0"]
        osd_dump(with_disks, kept=(1,))
        assert lifted_of(with_disks, "pve9") == "none" and kept_disks(with_disks)
        with_disks.command("ceph", "exit 1")
        assert lifted_of(with_disks, "pve2") == "no"
        (with_disks.root / "etc/pve").rename(with_disks.root / "etc/hangs")
        assert lifted_of(with_disks, "pve2") == "no"


def lifted_of(folder: Folder, name: str) -> str:
    return str(json.loads(folder.run("lift", scripts.cluster_turn(name)).stdout)["lifted"])


@pytest.mark.parametrize("what", ["tee", "mv"])
def test_a_turn_that_cant_be_written_is_none_and_leaves_nothing(node: Folder, what: str) -> None:
    before = node.files()
    node.command(what, f'[[ ${{!#}} != */priv/* ]] || exit 1; exec /usr/bin/{what} "$@"')
    done = take(node)
    assert done.returncode == 1 and "can't be written" in done.stdout
    assert node.files() == before


def test_a_turn_that_cant_be_noted_on_the_host_isnt_taken(node: Folder) -> None:
    before = node.files()
    (node.root / "var/lib/homelab/turn").mkdir(parents=True)
    assert take(node).returncode == 1
    assert not (node.root / TURN).exists() and node.files() == before


def test_a_run_that_was_killed_before_it_had_its_turn_leaves_nothing(node: Folder) -> None:
    assert take(node).returncode == 0
    (node.root / TURN).rename(node.root / f"{TURN}.new")
    assert end(node) == "yes"
    assert not list((node.root / "etc/pve/priv").glob("homelab*"))


def test_destroy_without_a_quorum_says_what_stays(node: Folder) -> None:
    assert take(node).returncode == 0
    node.command("rm", '[[ ${!#} != */priv/homelab-reboot ]] || exit 1; exec /bin/rm "$@"')
    done = destroyed(node)
    assert "rm /etc/pve/priv/homelab-reboot" in done.stderr
    assert not (node.root / "var/lib/homelab/turn").exists()


def test_nothing_is_armed_or_restarted_while_the_cluster_cant_do_without_the_node(node: Folder) -> None:
    """The whole script: planned, refused, and then done."""
    node.write("proc/cmdline", "quiet\n")
    node.write("etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    node.write("boot/grub/grub.cfg", "linux /vmlinuz quiet\n")
    for name in ("systemctl", "systemd-run", "update-grub", "qm", "pct"):
        node.command(name, f"echo {name} $* >>$ROOT/run/called")
    turn_of(node, "pve2")
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600).replace("TURN_SECONDS=180", "TURN_SECONDS=0")
    before = node.tree()
    planned = json.loads(node.run("plan", script).stdout)
    assert planned["reboot"] == "yes" and planned["cluster"].startswith("pve2 restarts, since")
    assert node.tree() == before
    refused = node.run("apply", script)
    assert refused.returncode == 1 and "pve2 restarts" in refused.stdout
    assert (
        not (node.root / "var/lib/homelab/armed").exists()
        and "systemd-run" not in Path(node.root, "run/called").read_text()
    )
    (node.root / TURN).unlink()
    done = node.run("apply", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["turn"] == "yes" and node.read(TURN).startswith("node pve1\n")
    assert "systemctl reboot" in Path(node.root, "run/called").read_text()
    # Back, with what is wanted: whoever finds no reason for another restart ends the turn.
    node.write("proc/sys/kernel/random/boot_id", "7d4f0d3c-0000-4000-8000-000000000002\n")
    node.write("proc/cmdline", "quiet amd_iommu=on\n")
    assert json.loads(node.run("apply", script).stdout)["turn"] == "no"
    assert not (node.root / TURN).exists()
