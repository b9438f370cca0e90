"""HA's maintenance mode for the time of a node's restart. `ha-manager` answers as recorded of a real cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Literal

import pytest

from homelab.remote import scripts
from tests import sampling
from tests.agent.cluster_kit import status
from tests.boot_layers import read_host
from tests.scripts import cut_kit
from tests.scripts.conftest import Folder, library
from tests.scripts.test_cluster_turn import (
    LOCK,
    OSD_FLAGS,
    TURN,
    WAITS,
    first_of_three,
    kept_disks,
    members,
    osd_dump,
)
from tests.waiting import PATIENCE, wait_until

# run/ha has a line for each service: its id, its node, the node it came from (-: none), its state. run/mode is there while the mode is on. Each
# question lets HA do one thing more, as the manager does one round after another.
HA_MANAGER = """
cd "$ROOT/run"
echo "$*" >>asked
case "$*" in
  "crm-command node-maintenance enable pve1") touch mode ;;
  "crm-command node-maintenance disable pve1") rm -f mode ;;
  status)
    echo "quorum OK"
    echo "master pve2 (active, Sat Nov 21 03:29:24 2026)"
    echo "fencing armed (CRM watchdog active)"
    said=active
    [[ ! -e mode ]] || said="maintenance mode"
    echo "lrm pve1 ($said, watchdog standby, Sat Nov 21 03:29:23 2026)"
    echo "lrm pve2 (active, watchdog active, Sat Nov 21 03:29:28 2026)"
    while read -r sid at from state; do
      echo "service $sid ($at, $state)"
      if [[ -e mode && $at == pve1 && $state == started && ! -e stuck ]]; then at=pve2 from=pve1
      elif [[ ! -e mode && $from == pve1 ]]; then at=pve1 from=-; fi
      echo "$sid $at $from $state" >&3
    done <ha 3>ha.new
    mv ha.new ha ;;
esac
"""
Guests = Literal["shutdown", "maintenance"]
HA_STOCK = "vm:200 pve1 - started\nct:901 pve1 - started\nvm:201 pve1 - stopped\nvm:202 pve2 - started\n"
QM_LIST = """echo '\
      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID
       103 Sandbox              running    16384             64.00 1234
       200 db                   running    4096              32.00 1235'
"""
PCT_LIST = """echo '\
VMID       Status     Lock         Name
901        running                 ai-lab
902        running                 dns'
"""


@pytest.fixture
def under_ha(folder: Folder) -> Folder:
    """pve1 lacks a word on its command line; VM 200 and container 901 are HA's, VM 103 and container 902 aren't."""
    node = first_of_three(folder)
    node.write(
        "etc/pve/ha/resources.cfg", "vm: 200\n\tstate started\n\nct: 901\n\nvm: 201\n\tstate stopped\n\nvm: 202\n"
    )
    node.write("etc/pve/qemu-server/200.conf", "memory: 4096\n\n[before]\nhostpci0: mapping=gpu\n")
    node.write("etc/pve/lxc/901.conf", "arch: amd64\n")
    node.write("run/ha", HA_STOCK)
    node.write("proc/cmdline", "quiet\n")
    node.write("etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    node.write("boot/grub/grub.cfg", "linux /vmlinuz quiet\n")
    node.command("ha-manager", HA_MANAGER)
    node.command("qm", QM_LIST)
    node.command("pct", PCT_LIST)
    for name in ("systemctl", "systemd-run", "update-grub"):
        node.command(name, f"echo {name} $* >>$ROOT/run/called")
    return node


def reboot(folder: Folder, verb: str = "apply", *, guests: Guests = "maintenance") -> subprocess.CompletedProcess[str]:
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, guests=guests)
    for name, seconds in (("TURN", 0), ("MOVE", 1)):
        script = script.replace(
            f"\n{name}_SECONDS={'180' if name == 'TURN' else '1800'}\n", f"\n{name}_SECONDS={seconds}\n"
        )
    return folder.run(verb, script)


def end(folder: Folder) -> subprocess.CompletedProcess[str]:
    """In the next boot."""
    (folder.root / "run/homelab/ordered").unlink(missing_ok=True)
    script = scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="5", OVER_SECONDS="2", RETURN_SECONDS="2", NODE="")
    done = folder.run("apply", WAITS + script)
    assert json.loads(done.stdout) == {"over": "yes", "set": ""}, done.stdout + done.stderr
    return done


def called(folder: Folder) -> str:
    return folder.read("run/called") if (folder.root / "run/called").exists() else ""


def is_as_before(folder: Folder) -> None:
    assert folder.read("run/ha") == HA_STOCK and not (folder.root / "run/mode").exists()
    assert not (folder.root / TURN).exists()
    assert not list((folder.root / "etc/systemd/system").rglob("homelab-turn*"))
    assert {one.name for one in (folder.root / "var/lib/homelab").glob("*")} & {"away", "turn", "turn-end"} == set()


def test_ha_moves_its_guests_before_a_restart_and_back_afterwards(under_ha: Folder) -> None:
    planned = json.loads(reboot(under_ha, "plan").stdout)
    assert planned["moves"] == "VM 200 (db), container 901 (ai-lab)"
    assert planned["guests"] == "VM 103 (Sandbox), container 902 (dns)" and planned["cluster"] == ""
    done = reboot(under_ha)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (said["turn"], said["moves"], said["guests"]) == ("yes", planned["moves"], planned["guests"])
    assert under_ha.read("run/ha").count(" pve2 pve1 started") == 2 and "systemctl reboot" in called(under_ha)
    assert under_ha.read("var/lib/homelab/away") == "services vm:200 ct:901\nmaintenance pve1\n"
    end(under_ha)
    is_as_before(under_ha)


def test_the_default_leaves_ha_alone(under_ha: Folder) -> None:
    assert reboot(under_ha, guests="shutdown").returncode == 0
    assert "crm-command" not in under_ha.read("run/asked") and "systemctl reboot" in called(under_ha)


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("qemu-server/200.conf", "hostpci0: 0000:01:00\n", "HA can't move VM 200, which has a device of this host"),
        ("qemu-server/200.conf", "hostpci0: mapping=gpu,pcie=1\n", "HA can't move VM 200"),
        ("qemu-server/200.conf", "hostpci1: mapping=vf,pcie=1\n", ""),
        ("qemu-server/200.conf", "usb0: host=046d:c52b\n", "HA can't move VM 200"),
        ("qemu-server/200.conf", "usb1: usb3=1,mapping=stick\n", "HA can't move VM 200"),
        ("qemu-server/200.conf", "usb0: spice,usb3=1\nusb1: host=spice\nserial0: socket\nargs: -cpu host\n", ""),
        ("qemu-server/200.conf", "serial0: /dev/ttyUSB0\n", "HA can't move VM 200"),
        ("qemu-server/200.conf", "ivshmem: size=32\n", "HA can't move VM 200"),
        ("qemu-server/200.conf", "virtiofs0: dirid=share\n", "HA can't move VM 200"),
        ("qemu-server/200.conf", "args: -device vfio-pci,host=01:00.0\n", "HA can't move VM 200"),
        ("lxc/901.conf", "mp0: /mnt/tank,mp=/data\n", "HA can't move container 901"),
        ("lxc/901.conf", "mp0: local:901/disk.raw,mp=/data\nmp1: /mnt/tank,mp=/more,shared=1\n", ""),
        ("lxc/901.conf", "dev0: /dev/dri/renderD128\n", "HA can't move container 901"),
        ("lxc/901.conf", "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n", "HA can't move container 901"),
    ],
    ids=[
        "a card", "a mapped card", "one that migrates", "a USB device", "a mapped USB device", "nothing of this host", "a serial port", "shared memory", "a shared folder",
        "a card by hand", "a folder", "a folder of all nodes", "a device", "a raw line",
    ],
)  # fmt: skip
def test_a_guest_that_ha_cant_move_is_said_before_anything_is_changed(
    under_ha: Folder, path: str, text: str, said: str
) -> None:
    under_ha.write(f"etc/pve/{path}", text)
    under_ha.write(
        "etc/pve/mapping/pci.cfg",
        "gpu\n\tmap id=10de:2b85,node=pve1,path=0000:01:00\n\nvf\n\tlive-migration-capable 1\n\tmap id=10de:2b85,node=pve1,path=0000:02:00\n",
    )
    assert json.loads(reboot(under_ha, "plan").stdout)["cluster"].startswith(said)
    if said:
        before = under_ha.files()
        done = reboot(under_ha)
        assert done.returncode == 1 and said in done.stdout and "guestsAtReboot: shutdown" in done.stdout
        assert under_ha.files().keys() - before.keys() <= {"var/lib/homelab/wanted-boot"}
        is_as_before(under_ha)


def test_guests_that_stay_keep_the_node_from_restarting_and_the_mode_goes_off(under_ha: Folder) -> None:
    under_ha.write("run/stuck", "")
    done = reboot(under_ha)
    assert done.returncode == 1 and "HA hasn't moved VM 200, container 901 to another node" in done.stdout
    assert "systemctl reboot" not in called(under_ha)
    is_as_before(under_ha)


@pytest.mark.parametrize("answer", ["exit 1", "echo something else"])
def test_an_ha_manager_that_doesnt_answer_keeps_the_node_from_restarting(under_ha: Folder, answer: str) -> None:
    under_ha.command("ha-manager", answer)
    done = reboot(under_ha)
    assert done.returncode == 1 and "`ha-manager status`" in done.stdout
    is_as_before(under_ha)


def test_a_mode_that_somebody_else_has_switched_on_stays_on(under_ha: Folder) -> None:
    under_ha.write("run/mode", "")
    under_ha.write("run/ha", HA_STOCK.replace("pve1 - started", "pve2 pve1 started"))
    assert reboot(under_ha).returncode == 0
    end(under_ha)
    assert (under_ha.root / "run/mode").exists() and "crm-command" not in under_ha.read("run/asked")


@pytest.mark.parametrize("whose", ["somebody's", "of a run that was killed"])
def test_guests_are_waited_for_also_where_the_mode_is_on_already(under_ha: Folder, whose: str) -> None:
    under_ha.write("run/mode", "")
    under_ha.write("run/stuck", "")
    if whose != "somebody's":
        under_ha.write("var/lib/homelab/away", "services vm:204 vm:200\nmaintenance pve1\n")
    done = reboot(under_ha)
    assert done.returncode == 1 and "HA hasn't moved VM 200, container 901 to another node" in done.stdout
    assert "systemctl reboot" not in called(under_ha)
    assert (under_ha.root / "run/mode").exists() is (whose == "somebody's")
    (under_ha.root / "run/stuck").unlink()
    (under_ha.root / "run/asked").unlink()
    under_ha.write("run/mode", "")
    if whose != "somebody's":
        under_ha.write("var/lib/homelab/away", "services vm:204 vm:200\nmaintenance pve1\n")
    assert reboot(under_ha).returncode == 0 and "systemctl reboot" in called(under_ha)
    assert under_ha.read("run/ha").count(" pve2 pve1 started") == 2
    away = under_ha.root / "var/lib/homelab/away"
    if whose == "somebody's":
        assert not away.exists() and "crm-command" not in under_ha.read("run/asked")
    else:
        assert away.read_text() == "services vm:204 vm:200\nmaintenance pve1\n"


@pytest.mark.parametrize("what", ["its quorum", "Ceph"])
def test_what_the_cluster_loses_while_ha_moves_guests_keeps_the_node_from_restarting(
    under_ha: Folder, what: str
) -> None:
    under_ha.write("said/later", status(1, 1, expected=3))
    said, hit = "without this node the cluster has 1 of 3 votes", 'cp "$ROOT/said/later" "$ROOT/said/status"'
    if what == "Ceph":
        under_ha.write("var/lib/ceph/osd/ceph-0/whoami", "0\n")
        busy = '[[ "$*" != "osd ok-to-stop"* || ! -e $ROOT/run/bad ]] || { echo "EBUSY: 33 PGs would become offline"; exit 16; }'
        under_ha.command("ceph", f'{busy}; [[ "$*" != "osd dump" ]] || echo "flags x"')
        said, hit = "33 PGs would become offline", 'touch "$ROOT/run/bad"'
    enable = '[[ "$1 $2 $3" != "crm-command node-maintenance enable" ]]'
    under_ha.command("ha-manager", f"{enable} || {hit}\n{HA_MANAGER}")
    done = reboot(under_ha)
    assert done.returncode == 1 and said in done.stdout and "systemctl reboot" not in called(under_ha)
    assert not (under_ha.root / "run/mode").exists() and not (under_ha.root / TURN).exists()


@pytest.mark.parametrize("state", ["error", "gone"])
def test_a_guest_that_ha_gives_up_hasnt_moved(under_ha: Folder, state: str) -> None:
    then = "echo >&3; continue" if state == "gone" else "state=error"
    under_ha.command("ha-manager", HA_MANAGER.replace("at=pve2 from=pve1", then))
    done = reboot(under_ha)
    assert done.returncode == 1 and "HA hasn't moved VM 200, container 901 to another node" in done.stdout
    assert "systemctl reboot" not in called(under_ha) and not (under_ha.root / "run/mode").exists()


@pytest.mark.parametrize("quiet", ["no", "guests", "all"])
def test_a_quorum_is_not_given_up_where_ha_would_reset_the_other_node(under_ha: Folder, quiet: str) -> None:
    members(under_ha, status(1, 1, expected=2), "1 1 pve1 (local)\n2 1 pve2")
    served = "VM"
    if quiet != "no":
        under_ha.write("run/ha", HA_STOCK.replace("started", "stopped"))
        served = "an active agent on pve2"
    if quiet == "all":
        under_ha.command("ha-manager", HA_MANAGER.replace("pve2 (active, watchdog active", "pve2 (idle"))
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, keep_quorum=False)
    script = script.replace("\nTURN_SECONDS=180\n", "\nTURN_SECONDS=0\n")
    planned, done = json.loads(under_ha.run("plan", script).stdout), under_ha.run("apply", script)
    assert ("its watchdog resets a node" in planned["cluster"]) is (quiet != "all")
    assert done.returncode == (0 if quiet == "all" else 1), done.stdout
    assert ("systemctl reboot" in called(under_ha)) is (quiet == "all")
    if quiet != "all":
        assert served in done.stdout.replace("vm:", "VM ") and "QDevice" in done.stdout


def test_what_ha_does_elsewhere_is_no_guest_that_stays(under_ha: Folder) -> None:
    under_ha.write("run/ha", "vm:200 pve1 - started\nvm:202 pve2 - migrate\n")
    done = reboot(under_ha, guests="shutdown")
    assert done.returncode == 1 and "HA is at work on vm:202 of pve2: migrate" in done.stdout
    assert "guestsAtReboot" not in done.stdout and "wait until it has ended" in done.stdout


def test_a_mode_that_stays_on_is_said_and_keeps_no_disk_from_being_replaced(under_ha: Folder) -> None:
    under_ha.write("run/stuck", "")
    under_ha.write("var/lib/ceph/osd/ceph-0/whoami", "0\n")
    osd_dump(under_ha)
    under_ha.command("ceph", OSD_FLAGS)
    under_ha.command("ha-manager", '[[ "$3" != disable ]] || exit 1\n' + HA_MANAGER)
    done = reboot(under_ha)
    assert done.returncode == 1 and "HA has its maintenance mode on still" in done.stdout
    assert kept_disks(under_ha) == [] and "noout" not in under_ha.read("var/lib/homelab/away")
    assert "maintenance pve1" in under_ha.read("var/lib/homelab/away")


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_mode_of_a_run_that_was_killed_is_switched_off_by_the_node_itself(under_ha: Folder, when: str) -> None:
    """A run that is killed while HA moves guests; the timer's program is what the node has by then."""
    kill = 'kill -KILL "$(<"$ROOT/run/pid")"; exit'
    enable = '[[ "$1 $2 $3" == "crm-command node-maintenance enable" ]]'
    asked = (
        f"! {enable} || {{ {kill}; }}\n{HA_MANAGER}"
        if when == "before"
        else f"{HA_MANAGER}\n! {enable} || {{ {kill}; }}"
    )
    under_ha.command("ha-manager", asked)
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, guests="maintenance")
    done = under_ha.bash(f'printf %s "$$" >"$ROOT/run/pid"\n{script}', "apply", parts=())
    assert done.returncode != 0 and "systemctl reboot" not in called(under_ha)
    assert "restart homelab-turn.timer" in called(under_ha)
    under_ha.command("ha-manager", HA_MANAGER)
    done = under_ha.bash(under_ha.read("var/lib/homelab/turn-end"), "apply", parts=())
    assert json.loads(done.stdout)["over"] == "yes", done.stderr
    is_as_before(under_ha)


def test_nobody_waits_for_ever_for_guests_that_ha_brings_back(under_ha: Folder) -> None:
    assert reboot(under_ha).returncode == 0
    under_ha.command("ha-manager", HA_MANAGER.replace("$from == pve1 ]]", "$sid == ct:901 ]]"))
    said = end(under_ha).stderr
    assert "HA hasn't brought VM 200 back yet" in said and "container 901" not in said
    assert not (under_ha.root / "var/lib/homelab/away").exists()


@pytest.mark.parametrize("line", ["", "vm:200 pve2 pve1 stopped\n"], ids=["taken out of HA", "stopped"])
def test_nobody_waits_for_a_guest_that_ha_doesnt_bring_back(under_ha: Folder, line: str) -> None:
    assert reboot(under_ha).returncode == 0
    under_ha.write("run/ha", line + "ct:901 pve1 - started\n")
    (under_ha.root / "run/mode").unlink()
    script = scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="5", OVER_SECONDS="2", RETURN_SECONDS="1000", NODE="")
    (under_ha.root / "run/homelab/ordered").unlink()  # the next boot
    assert json.loads(under_ha.run("apply", script).stdout)["over"] == "yes"


def test_a_restart_that_nobody_waits_for_any_more_doesnt_happen(under_ha: Folder) -> None:
    """Ctrl-C, or a connection that is cut, while HA moves guests."""
    under_ha.write("run/stuck", "")
    under_ha.write("var/lib/homelab/armed", "boot 7d4f0d3c-0000-4000-8000-000000000001\nuntil 5\n")
    under_ha.command("sleep", '/bin/sleep "$@"')
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, guests="maintenance")
    run = subprocess.Popen(
        ["bash", "-s", "--", "apply"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=under_ha.environment,
    )  # fmt: skip
    assert run.stdin and run.stdout and run.stderr
    run.stdin.write(script)
    run.stdin.close()
    wait_until((under_ha.root / "run/mode").exists)
    run.stdout.close()
    run.stderr.close()
    (under_ha.root / "run/stuck").unlink()
    assert run.wait(PATIENCE) == 1 and "systemctl reboot" not in called(under_ha)
    assert not (under_ha.root / "run/mode").exists() and not (under_ha.root / TURN).exists()
    assert "until" not in under_ha.read("var/lib/homelab/armed")


@pytest.mark.parametrize("end", ["its run is cancelled", "its time is up"])
def test_a_restart_that_ends_where_it_waits_leaves_nothing_set_for_it(under_ha: Folder, end: str) -> None:
    under_ha.write("run/stuck", "")
    under_ha.write("var/lib/homelab/armed", "boot 7d4f0d3c-0000-4000-8000-000000000001\nuntil 5\n")
    (under_ha.root / "run/homelab").mkdir(mode=0o700, exist_ok=True)
    under_ha.write("run/homelab/up", "anna\n")
    # While HA moves guests.
    ends = 'echo "anna, and was cancelled" >"$ROOT/run/homelab/up"' if end == "its run is cancelled" else ":"
    under_ha.command("sleep", f'[[ ! -e $ROOT/run/mode ]] || {ends}; exec /bin/sleep "$@"')
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, guests="maintenance")
    done = under_ha.run("apply", f"TIME_LIMIT={3600 if 'cancelled' in end else 12}\n{script}")
    assert done.returncode == 1 and done.stdout.startswith(("wanted: the run at work", "wanted: this step done"))
    assert done.stdout.count("wanted:") == 1 and "systemctl reboot" not in called(under_ha)
    is_as_before(under_ha)
    assert "until" not in under_ha.read("var/lib/homelab/armed")


def test_nobody_waits_for_a_script_whose_connection_is_gone(folder: Folder) -> None:
    """Its standard output goes elsewhere, so that the processes which started it decide: as with sudo."""
    asks = 'is_awaited && printf "yes " || printf "no "\n'
    text = f"{library('restart')}{asks}kill -KILL $PPID\nwhile [[ -d /proc/$PPID ]]; do :; done\n{asks}echo end\n"
    script, answer = folder.write("script", text), folder.root / "answer"
    subprocess.run(["bash", "-c", 'bash "$0" >"$ROOT/answer"; :', str(script)], env=folder.environment)
    wait_until(lambda: answer.read_text().endswith("end\n"))
    assert answer.read_text() == "yes no end\n"


def test_the_switch_counts_from_the_restart_on(under_ha: Folder) -> None:
    enable = '[[ "$1 $2 $3" != "crm-command node-maintenance enable" ]]'
    under_ha.write("var/lib/homelab/armed", "boot 7d4f0d3c-0000-4000-8000-000000000001\nuntil 5\n")
    ago = 'sed -i "s/^until .*/until 5/" "$ROOT/var/lib/homelab/armed"'
    under_ha.command("ha-manager", f"{enable} || {ago}\n{HA_MANAGER}")
    began = int(time.time())
    assert reboot(under_ha).returncode == 0
    (until,) = [int(line.split()[1]) for line in under_ha.read("var/lib/homelab/armed").splitlines() if "until" in line]
    assert began + 3 * scripts.ROLLBACK_SECONDS <= until <= time.time() + 3 * scripts.ROLLBACK_SECONDS


def test_a_cluster_file_system_that_hangs_is_no_host_without_ha(under_ha: Folder) -> None:
    under_ha.command("grep", '[[ ${!#} != */ha/resources.cfg ]] || exit 124; exec /bin/grep "$@"')
    done = reboot(under_ha)
    assert done.returncode == 1 and "systemctl reboot" not in called(under_ha)
    is_as_before(under_ha)


def test_a_node_that_is_alone_in_its_cluster_moves_nothing(under_ha: Folder) -> None:
    members(under_ha, status(1, expected=1))
    assert reboot(under_ha).returncode == 0
    assert not (under_ha.root / "run/mode").exists() and "systemctl reboot" in called(under_ha)


def ordered_long_ago(folder: Folder) -> None:
    """The restart that was ordered didn't come, within a quarter of an hour."""
    boot, since = folder.read("run/homelab/ordered").split()
    folder.write("run/homelab/ordered", f"{boot} {int(since) - 901}\n")


def test_nobody_ends_a_turn_while_its_restart_is_ordered(under_ha: Folder) -> None:
    """The node's own timer may wait for the lock meanwhile, of an earlier turn; another stack may verify this boot."""
    assert reboot(under_ha).returncode == 0
    asked = called(under_ha)
    assert asked.index("systemctl stop homelab-turn.service") < asked.index("systemctl restart homelab-turn.timer")
    expired = under_ha.bash(under_ha.read("var/lib/homelab/turn-end"), "expire", parts=())
    script = scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="5", OVER_SECONDS="0", RETURN_SECONDS="0", NODE="")
    assert expired.returncode == 1 and json.loads(under_ha.run("apply", script).stdout)["over"] == "no"
    assert under_ha.read("var/lib/homelab/away") == "services vm:200 ct:901\nmaintenance pve1\n"
    assert (under_ha.root / "run/mode").exists() and (under_ha.root / TURN).exists()
    ordered_long_ago(under_ha)
    end(under_ha)
    is_as_before(under_ha)


def test_a_restart_that_cant_be_ordered_ends_the_turn_at_once(under_ha: Folder) -> None:
    under_ha.command("systemd-run", "exit 1")
    assert reboot(under_ha).returncode == 1
    is_as_before(under_ha)


def test_a_reading_has_what_is_still_to_be_put_back(under_ha: Folder) -> None:
    assert reboot(under_ha).returncode == 0
    done = under_ha.run("read", read_host())
    assert json.loads(done.stdout)["set_aside"] == "services vm:200 ct:901\nmaintenance pve1"


# -- cut short ---------------------------------------------------------------------------------------------------------
STATE = "etc/pve/ha/state"


@pytest.fixture
def lasting(under_ha: Folder) -> Folder:
    """HA and Ceph have what they are told on every node at once; disk 0 is this node's."""
    for name in (*cut_kit.LASTING, STATE):
        (under_ha.root / name).mkdir(parents=True, exist_ok=True)
    cut_kit.flushing(under_ha)
    under_ha.write("var/lib/ceph/osd/ceph-0/whoami", "0\n")
    osd_dump(under_ha)
    for file in ("ha", "dump"):
        (under_ha.root / "run" / file).rename(under_ha.root / STATE / file)
    under_ha.command("ha-manager", HA_MANAGER.replace('"$ROOT/run"', f'"$ROOT/{STATE}"'))
    under_ha.command("ceph", OSD_FLAGS.replace("$ROOT/run/", f"$ROOT/{STATE}/"))
    return under_ha


def wrong_after(folder: Folder, cut: cut_kit.Cut) -> str:
    """From this moment the node's own timer, or the next run, puts everything back; what isn't, in words."""
    cut_kit.restore(folder.root, cut.files)
    # As the cluster does it, two minutes after its maker's death.
    shutil.rmtree(folder.root / LOCK, ignore_errors=True)
    (folder.root / "run/homelab/ordered").unlink(missing_ok=True)
    script = scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="5", OVER_SECONDS="0", RETURN_SECONDS="1", NODE="")
    said = [json.loads(folder.run("apply", WAITS + script).stdout) for _ in range(2)][-1]
    left = [name for name in ("away", "turn", "turn-end") if (folder.root / "var/lib/homelab" / name).exists()]
    state = {path.name for path in (folder.root / STATE).iterdir()} & {"mode"}
    at_home = folder.read(f"{STATE}/ha").count(" pve1 - started") == 2
    kept = ",noout " in folder.read(f"{STATE}/dump")
    if said["over"] == "yes" and at_home and not (left or state or kept or (folder.root / TURN).exists()):
        return ""
    return f"{cut.number}, {cut.how}: {left} {state} {kept} {said}"


@pytest.mark.parametrize("which", ["away", "back"])
def test_a_turn_that_is_cut_short_at_any_moment_ends_with_everything_put_back(
    lasting: Folder, tmp_path: Path, which: str
) -> None:
    script = scripts.reboot_host("auto", "amd_iommu=on", [], 600, guests="maintenance")
    if which == "back":
        assert lasting.run("apply", WAITS + script).returncode == 0
        (lasting.root / "run/homelab/ordered").unlink()
        script = scripts.compose("cluster_turn.sh", LOCK_TIMEOUT="5", OVER_SECONDS="0", RETURN_SECONDS="100", NODE="")
    cuts = cut_kit.cuts(lasting, "apply", script, tmp_path / "output")
    assert len(cuts) > 10
    wrong = [text for cut in sampling.sample(cuts, 3, which) if (text := wrong_after(lasting, cut))]
    assert not wrong, "\n".join([f"HOMELAB_SEED={sampling.SEED}", *wrong])
