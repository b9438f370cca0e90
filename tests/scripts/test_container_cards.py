"""Intel's and AMD's cards in a container: nodes by the card's address, groups as they are inside, and what a boot moves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from homelab.host import facts
from homelab.remote import scripts
from remote_scripts.layers.diagnose import Wanted as Diagnose
from tests.boot_layers import read_host
from tests.lab.host_kit import run_layer
from tests.scripts import cut_kit
from tests.scripts.conftest import Folder, quoted
from tests.scripts.test_container_gpus import BASE
from tests.scripts.test_on_a_host import Host

SHUTDOWN = {"timeout": 5, "otherwise": "fail"}
AMD = "0000:0c:00.0"
BOTH = f"{AMD}=render,kfd"
RENDER = "/dev/dri/renderD128,gid=104,mode=0660"
KFD = "/dev/kfd,gid=104,mode=0660"
# What of pct these scripts call. Proxmox VE sorts a configuration's keys; this one puts new ones last.
PCT = r"""conf=$ROOT/etc/pve/lxc/$2.conf place=$ROOT/var/lib/lxc/$2/rootfs
case $1 in
  status) echo "status: $(<"$ROOT/state")" ;;
  mount) echo "lock: mounted" >>"$conf"; mkdir -p "${place%/*}"; ln -sfn "$ROOT/inside" "$place" ;;
  unmount) sed -i '/^lock: mounted$/d' "$conf"; rm "$place" ;;
  exec) echo "#"; echo "$(<"$ROOT/inside/etc/group")" ;;
  set)
    shift 4
    while (($#)); do
      case $1 in
        --delete) for key in ${2//,/ }; do sed -i "/^$key:/d" "$conf"; done ;;
        *) echo "${1#--}: $2" >>"$conf" ;;
      esac
      shift 2
    done
    ;;
esac"""


class Shared:
    """A folder that is a host with one AMD card, and container 300, which is off."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        folder.command("pct", PCT)
        folder.command("systemctl", "echo inactive")
        folder.command("dpkg-query", "printf 6.0.18")
        folder.command("sleep", "")
        folder.write("/state", "stopped\n")
        folder.write("/dev/kfd", "", 0o660)
        self.number(128)
        self.groups("root:x:0:\nvideo:x:44:\nrender:x:104:\n")
        self.conf = BASE

    def number(self, number: int) -> None:
        """What the kernel calls the card's node since it booted."""
        for path in ("sys/bus/pci/devices", "dev/dri"):
            shutil.rmtree(self.folder.root / path, ignore_errors=True)
        for name in (f"renderD{number}", f"card{number - 128}"):
            self.folder.write(f"/sys/bus/pci/devices/{AMD}/drm/{name}/dev", "")
            self.folder.write(f"/dev/dri/{name}", "", 0o660)

    def groups(self, text: str) -> None:
        self.folder.write("/inside/etc/group", text)

    @property
    def conf(self) -> str:
        return self.folder.read("/etc/pve/lxc/300.conf")

    @conf.setter
    def conf(self, text: str) -> None:
        self.folder.write("/etc/pve/lxc/300.conf", text)

    def script(self, cards: str = BOTH, method: str = "device", minors: str = "") -> str:
        devices = {"METHOD": method, "MINORS": minors, "FUNCTIONS": "", "CARDS": cards}
        return scripts.container_gpus(300, devices, SHUTDOWN, "0")

    def apply(self, cards: str = BOTH, method: str = "device", minors: str = "") -> str:
        done = self.folder.run("apply", self.script(cards, method, minors))
        assert done.returncode == 0, done.stdout + done.stderr
        return self.conf

    def revert(self) -> str:
        done = self.folder.run("revert", self.script())
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (self.folder.root / "var/lib/homelab").exists()
        return self.conf


@pytest.fixture
def shared(folder: Folder) -> Shared:
    return Shared(folder)


@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("before", [BASE, BASE.replace("unprivileged: 1\n", "")], ids=["unprivileged", "privileged"])
def test_a_card_of_another_maker_comes_with_the_groups_inside_and_goes_without_a_trace(
    shared: Shared, before: str, state: str
) -> None:
    shared.folder.write("/state", state)
    shared.conf = before
    after = shared.apply(f"{AMD}=render,card,kfd")
    assert after == f"{before}dev0: {RENDER}\ndev1: /dev/dri/card0,gid=44,mode=0660\ndev2: {KFD}\n"
    assert shared.apply(f"{AMD}=render,card,kfd") == after
    shared.folder.write("/state", "stopped")
    assert shared.revert() == before


def test_a_container_with_ten_devices_of_its_own_keeps_them_all(shared: Shared) -> None:
    own = BASE + "".join(f"dev{number}: /dev/ttyUSB{number},mode=0600\n" for number in range(10))
    shared.conf = own
    assert shared.apply() == f"{own}dev10: {RENDER}\ndev11: {KFD}\n"
    assert shared.revert() == own


@pytest.mark.parametrize(
    "lines",
    [
        "dev0: /dev/dri/renderD128,gid=992\ndev1: /dev/kfd\n",
        "lxc.cgroup2.devices.allow: c *:* rwm\nlxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n"
        "lxc.mount.entry: /dev/kfd dev/kfd none bind,create=file\n",
    ],
)
def test_what_somebody_has_given_it_of_the_card_is_enough(shared: Shared, lines: str) -> None:
    shared.conf = BASE + lines
    assert shared.apply() == BASE + lines
    assert shared.revert() == BASE + lines


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        ("root:x:0:\n", "mode=0666"),
        ("", "mode=0666"),
        ("render:x:992:\nvideo:x:44:\n", "gid=992,mode=0660"),
        ("render:x:0:\n", "mode=0666"),
        ("render:x:99999:\n", "mode=0666"),
        ("render:x:-5:\nrender:x:105:\n", "gid=105,mode=0660"),
        ("render:x:000104:a,b\n", "gid=104,mode=0660"),
        ("render:x:1,mode=0777:\n", "mode=0666"),
        ("renderer:x:7:\n render:x:8:\nrender:x:$(reboot):\n", "mode=0666"),
        ("\0\0render:x:106:\n", "gid=106,mode=0660"),
        ("x" * 100_000 + "\nrender:x:107:\n", "mode=0666"),
    ],
)
def test_a_group_file_may_say_anything(shared: Shared, groups: str, options: str) -> None:
    shared.groups(groups)
    assert f"dev0: /dev/dri/renderD128,{options}\n" in shared.apply(f"{AMD}=render")


def test_what_goes_on_inside_holds_nobody(shared: Shared) -> None:
    shared.folder.write("/state", "running")
    shared.folder.command("rest", f"exec {shutil.which('sleep')} 60")
    shared.folder.command("pct", PCT.replace("exec) ", 'exec) rest 2>&1 & echo $! >>"$ROOT/left"; '))
    try:
        started = time.monotonic()
        assert f"dev0: {RENDER}\n" in shared.apply(f"{AMD}=render")
        assert time.monotonic() - started < 30
        left = shared.folder.read("/left").split()
        lock = (shared.folder.root / "run/homelab/lock").stat()
        for pid in left:
            held = [one.stat() for one in Path(f"/proc/{pid}/fd").iterdir()]
            assert lock.st_ino not in [one.st_ino for one in held if one.st_dev == lock.st_dev]
    finally:
        for pid in shared.folder.read("/left").split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "status", "answer"),
    [
        ("printf 'a\\nb\\n\\n'", 0, "a\nb"),
        ("printf 'a\\0b'; exit 3", 3, "ab"),
        ("cat", 0, "what it reads"),
        ("yes", 0, "y\n" * 1000),
        ("sleep 30 & echo soon", 0, "soon"),
        ("echo said; trap '' PIPE TERM; sleep 30", 137, "said"),
        ("true", 0, ""),
    ],
)
def test_the_answer_of_what_runs_in_a_guest_has_an_end(folder: Folder, command: str, status: int, answer: str) -> None:
    text = f"status=0; answer_of 1 2000 sh -c {quoted(command)} <<<'what it reads' 2>/dev/null || status=$?\n"
    folder.as_sent, started = True, time.monotonic()
    done = folder.bash(text + 'printf "%s:%s:" "$status" "$ANSWER"')
    assert done.stdout == f"{status}:{answer.rstrip()}:"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(("group", "options"), [(104, "mode=0666"), (204, "gid=204,mode=0660")])
def test_a_group_that_has_no_number_on_the_host_is_not_used(shared: Shared, group: int, options: str) -> None:
    shared.conf = f"{BASE}lxc.idmap: u 0 100000 65536\nlxc.idmap: g 0 100000 100\nlxc.idmap: g 200 100200 65336\n"
    shared.groups(f"render:x:{group}:\n")
    assert f"dev0: /dev/dri/renderD128,{options}\n" in shared.apply(f"{AMD}=render")


@pytest.mark.parametrize("way", ["the file", "the folder", "a pipe"])
def test_what_lies_outside_of_a_container_that_is_off_is_not_read(shared: Shared, way: str, tmp_path: Path) -> None:
    (tmp_path / "group").write_text("render:x:777:\n")
    group = shared.folder.root / "inside/etc/group"
    shutil.rmtree(group.parent)
    if way == "the folder":
        group.parent.symlink_to(tmp_path)
    else:
        group.parent.mkdir()
        if way == "the file":
            group.symlink_to(tmp_path / "group")
        else:
            os.mkfifo(group)
    assert "dev0: /dev/dri/renderD128,mode=0666\n" in shared.apply()
    assert shared.revert() == BASE


def test_a_look_that_was_cut_short_leaves_no_lock(shared: Shared) -> None:
    shared.folder.bash("pct mount 300", parts=())
    mounted = shared.folder.write("/var/lib/homelab/containers/300/mounted", "")
    assert RENDER in shared.apply()
    assert "lock" not in shared.conf and not mounted.exists()
    assert shared.revert() == BASE


def test_a_mount_of_somebodys_own_is_left_to_them(shared: Shared) -> None:
    shared.folder.bash("pct mount 300", parts=())
    done = shared.folder.run("apply", shared.script())
    assert done.returncode == 1 and "it is locked: mounted" in done.stdout
    assert "lock: mounted\n" in shared.conf


def test_mount_entries_are_for_a_privileged_container(shared: Shared) -> None:
    done = shared.folder.run("apply", shared.script(method="mount-entry"))
    assert done.returncode == 1
    assert "on the host only their group may open them: /dev/dri/renderD128 (mode 660)" in done.stdout
    assert shared.conf == BASE
    shared.conf = privileged = BASE.replace("unprivileged: 1\n", "")
    after = shared.apply(method="mount-entry")
    # An ordinary file has the numbers 0:0.
    assert "lxc.cgroup2.devices.allow: c 0:0 rwm\n" in after
    assert "lxc.mount.entry: /dev/kfd dev/kfd none bind,optional,create=file\n" in after
    assert shared.revert() == privileged


def test_a_card_whose_driver_makes_no_nodes_is_named_and_nothing_is_changed(shared: Shared) -> None:
    done = shared.folder.run("apply", shared.script("0000:06:00.0=render"))
    assert done.returncode == 1 and "the render node of 0000:06:00.0" in done.stdout
    assert shared.conf == BASE


def test_a_reading_says_which_nodes_each_card_has_and_who_has_them(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix")
    devices = {"METHOD": "device", "MINORS": "0", "FUNCTIONS": "", "CARDS": f"{AMD}=render"}
    done = host.run("apply", scripts.container_gpus(901, devices, SHUTDOWN, "0"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = facts.parse(json.loads(host.run("read", read_host()).stdout))
    assert {address: (one.card, one.render, one.kfd) for address, one in found.drm.items()} == {
        "0000:01:00.0": ("card0", "renderD128", False),
        "0000:02:00.0": ("card1", "renderD129", False),
        AMD: ("card2", "renderD130", True),
    }
    (one,) = found.containers
    assert (one.cards, one.drift) == (f"{AMD}=render", ["container 901 still has to be restarted"])
    assert "/dev/kfd " in run_layer(host.machine, "read", "diagnose", Diagnose()).stdout
    text = (host.root / "etc/pve/lxc/901.conf").read_text()
    # NVIDIA's own nodes in /dev/dri come by NVIDIA's functions.
    assert (
        "/dev/nvidia0,mode=0666\n" in text
        and "/dev/dri/renderD130,gid=104,mode=0660\n" in text
        and "renderD128" not in text
    )


# -- the service -----------------------------------------------------------------------------------------------
def test_the_service_that_is_cut_short_is_made_good_by_the_next_and_undone(folder: Folder, tmp_path: Path) -> None:
    cut_kit.stock(folder, "grub")
    wants = '"$ROOT/etc/systemd/system/multi-user.target.wants/$2"'
    (folder.root / "etc/systemd/system/multi-user.target.wants").mkdir(parents=True)
    folder.command("systemctl", f"case $1 in enable) ln -sf ../x {wants} ;; disable) rm -f {wants} ;; esac")
    script = scripts.card_nodes()
    before = cut_kit.tree(folder.root)
    cuts = cut_kit.cuts(folder, "apply", script, tmp_path / "output")
    wanted = cut_kit.tree(folder.root)
    for number, cut in enumerate(random.Random("service").sample(cuts, 4)):
        cut_kit.restore(folder.root, cut.files)
        done = folder.run(*(("apply", script) if number % 2 else ("apply", scripts.card_nodes(False))))
        assert done.returncode == 0, done.stdout
        assert cut_kit.tree(folder.root) == (wanted if number % 2 else before), f"{cut.number}, {cut.how}"
