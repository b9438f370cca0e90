"""What a boot does to the lines of containers with cards: they follow the nodes' names and numbers, and nothing else is changed."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.scripts import cut_kit
from tests.scripts.conftest import Folder, empty_folder, quoted
from tests.scripts.test_container_cards import AMD, RENDER, SHUTDOWN, Shared
from tests.scripts.test_container_gpus import BASE

NVIDIA = "0000:01:00.0"
SECOND = "0000:02:00.0"
RECORD = "/var/lib/homelab/containers/300"
LATE = ["nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps/nvidia-cap1", "dri/renderD140"]
NODES = ["nvidia0", "nvidiactl", "nvidia-uvm", *LATE]


class Boot(Shared):
    """The same, the container with the card and another device, and the service's program."""

    def __init__(self, folder: Folder, method: str = "device") -> None:
        super().__init__(folder)
        base = BASE.replace("unprivileged: 1\n", "") if method == "mount-entry" else BASE
        self.stock = f"{base}dev0: /dev/ttyUSB0\nlxc.mount.entry: /tank tank none bind\n"
        self.conf = self.stock
        self.apply(f"{AMD}=render", method)
        self.program = scripts.compose("card_nodes_boot.sh", WAIT="1", QUORUM="0")
        folder.write("/usr/local/sbin/homelab-card-nodes", f"#!/bin/bash\n{self.program}", 0o755)

    def drm(self, address: str, number: int | None, *, made: bool = True) -> None:
        """The number of another card's node for computing since this boot; None: its driver hasn't come."""
        folder = self.folder.root / f"sys/bus/pci/devices/{address}/drm"
        for one in folder.iterdir() if folder.exists() else ():
            (self.folder.root / "dev/dri" / one.name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if number is not None:
            self.folder.write(f"/sys/bus/pci/devices/{address}/drm/renderD{number}/dev", "")
            if made:
                self.folder.write(f"/dev/dri/renderD{number}", "", 0o666)

    def late(self, *names: str) -> None:
        for name in names:
            (self.folder.root / "dev" / name).unlink()

    def come(self, *names: str) -> None:
        for name in names:
            self.folder.write(f"/dev/{name}", "", 0o666)

    def no_quorum(self) -> None:
        """pct can't write from here on; `quorum` ends that."""
        real = self.folder.commands / "pct"
        real.rename(real.with_name("pct.real"))
        self.folder.command(
            "pct",
            f'[[ $1 != set ]] || {{ echo "cluster not ready - no quorum?" >&2; exit 5; }}\nexec "{real}.real" "$@"',
        )

    def quorum(self) -> None:
        real = self.folder.commands / "pct"
        real.with_name("pct.real").rename(real)

    def followed(self) -> bool:
        """Has a boot changed the configuration, and said so?"""
        before, done = self.conf, self.boot()
        assert done.returncode == 0, done.stdout
        assert (before != self.conf) == ("have other names or numbers since this boot" in done.stdout), done.stdout
        return before != self.conf

    def drift(self) -> str:
        text = 'CTID=300; read_wanted "$STATE/containers/300"; container_drift'
        return self.folder.bash(text, parts=("container/drift", "container/record")).stdout

    def follow(self) -> None:
        """What a handover does, which has the host's lock: only containers that are off are changed."""
        folder, program = self.folder, quoted(str(self.folder.root / "usr/local/sbin/homelab-card-nodes"))
        pct, before = (folder.commands / "pct").read_text(), self.conf
        held = (
            f'mkdir -p "$ROOT/run/homelab"; exec 7>"$ROOT/run/homelab/lock"; flock 7; {program} follow_containers 7>&-'
        )
        for status in ("running", "stopped"):
            folder.command("pct", f"[[ $1 != status ]] || {{ echo 'status: {status}'; exit; }}\n{pct}")
            assert self.conf == before
            done = folder.bash(held, parts=())
            assert done.returncode == 0, done.stdout
        folder.command("pct", pct)

    def boot(self) -> subprocess.CompletedProcess[str]:
        return self.folder.bash(quoted(str(self.folder.root / "usr/local/sbin/homelab-card-nodes")), parts=())


@pytest.fixture
def boot(kept_systems: KeptSystems) -> Boot:
    return kept_systems.take("boot", lambda place: Boot(empty_folder(place)))


def test_a_boot_that_moved_a_node_is_followed_and_told_and_undone_with_the_rest(boot: Boot) -> None:
    assert f"dev1: {RENDER}\n" in boot.conf
    boot.number(129)
    done = boot.boot()
    assert done.returncode == 0
    assert "container 300: its cards' nodes have other names or numbers since this boot" in done.stdout
    assert f": {RENDER.replace('128', '129')}\n" in boot.conf and "renderD128" not in boot.conf
    again = boot.boot()
    assert (again.returncode, again.stdout) == (0, "")
    assert boot.drift() == ""
    assert boot.revert() == boot.stock


def test_a_boot_that_moved_nothing_changes_nothing_even_where_somebody_has(boot: Boot) -> None:
    boot.conf = by_hand = boot.conf.replace(f"dev1: {RENDER}\n", "")
    assert boot.boot().returncode == 0
    assert boot.conf == by_hand


def with_nvidia(boot: Boot, cards: str, method: str = "device") -> str:
    """The container gets NVIDIA's card, too, whose nodes are there; its configuration."""
    folder = boot.folder
    for name in NODES:
        folder.write(f"/dev/{name}", "", 0o666)
    boot.drm(NVIDIA, 140)
    devices = {"METHOD": method, "MINORS": "0", "FUNCTIONS": NVIDIA, "CARDS": cards}
    assert folder.run("apply", scripts.container_gpus(300, devices, SHUTDOWN, "0")).returncode == 0
    return boot.conf


def lines(conf: str) -> set[str]:
    return {re.sub(r"^dev\d+: ", "", line) for line in conf.splitlines()}


@pytest.mark.parametrize("number", [128, 129, 140])
def test_a_boot_leaves_the_lines_of_nvidias_nodes_that_are_not_there_yet(boot: Boot, number: int) -> None:
    nodes = NODES
    before = with_nvidia(boot, f"{AMD}=render")
    assert all(f"/dev/{name},mode=" in before for name in nodes)
    boot.late(*nodes)
    boot.number(number)
    done = boot.boot()
    assert done.returncode == 0, done.stdout
    changed = lines(before) ^ lines(boot.conf)
    moved = {RENDER, RENDER.replace("128", str(number))} if number != 128 else set()
    # A number that the other card has now isn't NVIDIA's any more.
    assert changed == moved | ({"/dev/dri/renderD140,mode=0666"} if number == 140 else set())
    assert "renderD of 0000:01:00.0" in done.stdout
    assert not boot.followed()
    boot.come(*nodes)
    boot.drm(NVIDIA, 150 if number == 140 else 140)
    boot.followed()
    assert {line for line in lines(boot.conf) if "mode=0666" in line} == {
        line.replace("140", "150") if number == 140 else line for line in lines(before) if "mode=0666" in line
    }
    assert boot.revert() == boot.stock


@pytest.mark.parametrize("method", ["device", "mount-entry"])
def test_a_boot_that_moved_nvidias_node_is_followed_also_where_no_other_maker_has_a_card(
    folder: Folder, method: str
) -> None:
    boot = Boot(folder, method)
    stock = boot.stock
    before = with_nvidia(boot, "", method)
    # Somebody else's card has the number, and NVIDIA's driver the next one.
    boot.drm(NVIDIA, 141)
    boot.drm("0000:07:00.0", 140)
    assert boot.followed()
    assert lines(boot.conf) == {line.replace("renderD140", "renderD141") for line in lines(before)} != lines(before)
    assert boot.boot().stdout == ""
    assert boot.revert() == stock


def test_a_boot_waits_for_nvidias_node_only_where_there_was_one(boot: Boot) -> None:
    with_nvidia(boot, "")
    boot.folder.command("sleep", 'echo >>"$ROOT/slept"')
    slept = boot.folder.root / "slept"
    assert boot.boot().stdout == "" and not slept.exists()
    shutil.rmtree(boot.folder.root / f"sys/bus/pci/devices/{NVIDIA}")
    (boot.folder.root / "dev/dri/renderD140").unlink()
    assert "not there after 1 s: renderD of 0000:01:00.0" in boot.boot().stdout and slept.exists()
    slept.unlink()
    record = boot.folder.root / RECORD[1:] / "nodes"
    record.write_text("".join(line for line in record.read_text().splitlines(True) if "/dri/" not in line))
    assert boot.boot().stdout == "" and not slept.exists()


def test_a_container_that_is_gone_keeps_no_boot_waiting(boot: Boot) -> None:
    record = boot.folder.root / "var/lib/homelab/containers"
    shutil.copytree(record / "300", record / "301")
    (record / "301/nodes").write_text("/dev/dri/renderD131 226:131 0000:06:00.0 renderD mode=0666\n")
    boot.folder.command("sleep", 'echo >>"$ROOT/slept"')
    assert boot.boot().returncode == 0
    assert not (boot.folder.root / "slept").exists()


@pytest.mark.parametrize("trouble", ["no driver", "a lock", "no record", "pct hangs"])
def test_no_boot_fails_for_it(boot: Boot, trouble: str) -> None:
    boot.number(129)
    before = boot.conf
    if trouble == "no driver":
        shutil.rmtree(boot.folder.root / "sys")
    elif trouble == "a lock":
        before += "lock: backup\n"
        boot.conf = before
    elif trouble == "no record":
        boot.folder.write(f"{RECORD}/nodes", "auto\n\n- - - -\n")
    else:
        boot.folder.command("pct", "exit 124")
    done = boot.boot()
    assert done.returncode == 0
    assert boot.conf == before
    if trouble in ("no driver", "a lock"):
        assert "wanted:" in done.stdout


def test_a_boot_that_is_cut_short_is_made_good_by_the_next_and_undone(folder: Folder, tmp_path: Path) -> None:
    cut_kit.stock(folder, "grub")
    boot = Boot(folder, "mount-entry")
    boot.number(129)
    program = boot.program.replace("\nmain() {", "\ncut() { mend 300; }\nmain() {", 1)
    cuts = cut_kit.cuts(folder, "cut", program, tmp_path / "output")
    assert len(cuts) > 15
    mended = boot.conf
    assert "renderD129" in mended
    for number, cut in enumerate(random.Random("boot").sample(cuts, 6)):
        cut_kit.restore(folder.root, cut.files)
        if number % 2:
            assert boot.boot().returncode == 0
        found = boot.conf if number % 2 else boot.revert()
        assert found == (mended if number % 2 else boot.stock), f"{cut.number}, {cut.how}"


def test_what_was_late_at_one_boot_is_followed_at_the_next(boot: Boot) -> None:
    with_nvidia(boot, f"{AMD}=render")
    boot.late(*NODES)
    boot.drm(NVIDIA, None)
    boot.number(129)
    assert boot.followed() and "renderD140" in boot.conf
    boot.come(*[name for name in NODES if "dri" not in name])
    boot.drm(NVIDIA, 141)
    assert boot.followed() and "renderD141" in boot.conf and "renderD140" not in boot.conf
    assert boot.drift() == "" and boot.revert() == boot.stock


@pytest.mark.parametrize("method", ["device", "mount-entry"])
def test_a_line_that_had_to_go_comes_back_with_the_card(folder: Folder, method: str) -> None:
    boot = Boot(folder, method)
    before = with_nvidia(boot, "", method)
    boot.drm(NVIDIA, None)
    boot.drm("0000:07:00.0", 140)  # another card has the name, and NVIDIA's driver hasn't come
    assert boot.followed() and "renderD140" not in boot.conf
    boot.drm("0000:07:00.0", None)
    boot.drm(NVIDIA, 140)
    assert boot.followed() and lines(boot.conf) == lines(before)
    assert boot.revert() == boot.stock


@pytest.mark.parametrize("method", ["device", "mount-entry"])
def test_two_cards_that_take_each_others_numbers_are_both_there_in_the_end(folder: Folder, method: str) -> None:
    boot = Boot(folder, method)
    boot.groups("root:x:0:\n")
    (folder.root / RECORD[1:] / "wanted").unlink()  # the groups are looked up anew: the lines of both are alike
    boot.drm(AMD, 128)
    with_nvidia(boot, f"{AMD}=render", method)
    boot.drm(NVIDIA, 129)
    boot.followed()
    boot.drm(NVIDIA, None)
    boot.drm(AMD, 129)
    assert boot.followed() and "renderD128" not in boot.conf
    boot.drm(AMD, 128)
    boot.drm(NVIDIA, 129)
    assert boot.followed() and "renderD128" in boot.conf and "renderD129" in boot.conf
    assert boot.drift() == "" and boot.revert() == boot.stock


@pytest.mark.parametrize(("method", "at_boot"), sampling.paired(["device", "mount-entry"], [True, False], "numbers"))
def test_nvidias_own_numbers_follow_the_card(folder: Folder, method: str, at_boot: bool) -> None:
    """Two cards of NVIDIA's in one host, one of which the container has; at a boot, and when one comes back from a VM."""
    boot = Boot(folder, method)
    information = "/proc/driver/nvidia/gpus/{}/information"
    folder.write(information.format(NVIDIA), "Device Minor: \t 0\n")
    folder.write(information.format(SECOND), "Device Minor: \t 1\n")
    before = with_nvidia(boot, "", method)
    folder.write(information.format(NVIDIA), "Device Minor: \t 1\n")
    folder.write(information.format(SECOND), "Device Minor: \t 0\n")
    boot.come("nvidia1")
    boot.drm(NVIDIA, 141)
    boot.drm(SECOND, 140)
    if at_boot:
        assert boot.followed()
    else:
        boot.follow()
    assert lines(boot.conf) == {
        re.sub(r"nvidia0\b", "nvidia1", line).replace("renderD140", "renderD141") for line in lines(before)
    }
    assert boot.revert() == boot.stock


def numbered(folder: Folder) -> None:
    """The numbers of a device are what its file says: MAJOR MINOR in hexadecimal."""
    each = """for path in "${@:3}"; do
  [[ ! -s $path ]] || printf '%s %s\\n' "$(cat "$path")" "$(/usr/bin/stat -c '%a %n' "$path")"
  [[ -s $path ]] || /usr/bin/stat -c "$2" "$path"
done"""
    folder.command("stat", f'[[ $1 == -c && $2 == "%t %T %a %n" ]] || exec /usr/bin/stat "$@"\n{each}')


def allowed(conf: str) -> list[str]:
    return sorted(re.findall(r"allow: c (\S+)", conf))


@pytest.mark.parametrize("rule", ["", "lxc.cgroup2.devices.allow: c 508:* rwm\n"])
def test_rules_follow_the_numbers_also_where_somebodys_own_was_enough(folder: Folder, rule: str) -> None:
    boot = Boot(folder, "mount-entry")
    boot.revert()
    numbered(folder)
    boot.conf = stock = boot.stock + rule
    numbers = {"nvidia0": "c3 0", "nvidiactl": "c3 ff", "nvidia-uvm": "1fc 0"}
    caps = {"nvidia-caps/nvidia-cap1": "1fd 1", "nvidia-caps/nvidia-cap2": "1fd 2"}
    for name, text in (numbers | caps).items():
        folder.write(f"/dev/{name}", text, 0o666)
    devices = {"METHOD": "mount-entry", "MINORS": "0", "FUNCTIONS": "", "CARDS": ""}
    assert folder.run("apply", scripts.container_gpus(300, devices, SHUTDOWN, "0")).returncode == 0
    # They change their numbers with each other; at one boot half of them is late.
    boot.late(*caps)
    folder.write("/dev/nvidia-uvm", "1fd 0", 0o666)
    assert boot.followed()
    assert allowed(boot.conf) == sorted(["195:0", "195:255", "509:0", "509:1", "509:2", *(["508:*"] if rule else [])])
    for name, text in caps.items():
        folder.write(f"/dev/{name}", text.replace("1fd", "1fc"), 0o666)
    boot.followed()
    assert {"195:0", "195:255", "509:0"} <= {*allowed(boot.conf)}
    assert rule or allowed(boot.conf) == ["195:0", "195:255", "508:1", "508:2", "509:0"]
    assert boot.revert() == stock


def test_where_nothing_has_moved_somebodys_own_lines_change_nothing(boot: Boot) -> None:
    with_nvidia(boot, "")
    boot.conf += "".join(f"dev{20 + index}: /dev/{name}\n" for index, name in enumerate(NODES[:3]))
    assert not boot.followed()


def test_a_node_that_somebody_gives_it_already_is_given_once_and_ours_comes_back_after_that(boot: Boot) -> None:
    with_nvidia(boot, "")
    boot.conf += "dev30: /dev/dri/renderD141\n"
    boot.drm(NVIDIA, 141)
    assert boot.followed() and boot.conf.count("renderD141") == 1 and "renderD140" not in boot.conf
    boot.drm(NVIDIA, 140)
    assert boot.followed() and "renderD140,mode=0666" in boot.conf


@pytest.mark.parametrize(("before", "after"), [("printf 6.0.18", "exit 1"), ("printf 4.0.3", "printf 6.0.18")])
def test_a_boot_leaves_the_way_in_which_nodes_are_given(boot: Boot, before: str, after: str) -> None:
    boot.folder.command("dpkg-query", before)
    given = lines(with_nvidia(boot, ""))
    boot.folder.command("dpkg-query", after)
    assert not boot.followed()
    boot.drm(NVIDIA, 141)
    assert boot.followed() and lines(boot.conf) == {
        line.replace("D140", "D141").replace("226:140", "226:141") for line in given
    }


def test_a_node_that_the_kernel_knows_and_udev_has_not_made_is_waited_for(boot: Boot) -> None:
    with_nvidia(boot, "")
    boot.drm(NVIDIA, 141, made=False)
    boot.followed()
    boot.come("dri/renderD141")
    boot.followed()
    assert "renderD141" in boot.conf and "renderD140" not in boot.conf


def test_another_container_under_the_same_number_gets_nothing(boot: Boot) -> None:
    with_nvidia(boot, "")
    boot.drm(NVIDIA, None)
    boot.drm("0000:07:00.0", 140)
    assert boot.followed()
    boot.conf = BASE
    boot.drm(NVIDIA, 141)
    assert not boot.followed()


def test_a_container_that_waited_for_a_restart_has_had_it(boot: Boot) -> None:
    boot.folder.write("/state", "running\n")
    with_nvidia(boot, f"{AMD}=render")
    assert "still has to be restarted" in boot.drift()
    boot.folder.write("/state", "stopped\n")
    boot.drm(NVIDIA, 141)
    assert boot.followed()
    boot.folder.write("/state", "running\n")
    assert boot.drift() == ""


@pytest.mark.parametrize("restart_waits", [False, True])
def test_what_could_not_be_written_stays_ours(boot: Boot, restart_waits: bool) -> None:
    if restart_waits:  # an `up` on a running container was cut before its restart
        boot.folder.write("/state", "running\n")
        with_nvidia(boot, f"{AMD}=render")
        boot.folder.write("/state", "stopped\n")
    boot.number(129)
    boot.no_quorum()
    before = boot.conf
    assert "no quorum" in boot.boot().stdout and boot.conf == before
    boot.quorum()
    assert boot.followed() and "renderD129" in boot.conf
    assert boot.revert() == boot.stock


def test_what_a_killed_boot_has_written_stays_ours_where_the_next_one_can_not_write(boot: Boot) -> None:
    boot.number(129)
    real = boot.folder.commands / "pct"
    real.rename(real.with_name("pct.written"))
    # Of this host alone: others are tested beside it.
    parent = 'kill -9 $(ps -eo pid,args | grep -F "$ROOT/" | grep "[h]omelab-card-nodes mend" | awk "{print \\$1}")'
    boot.folder.command("pct", f'"{real}.written" "$@"; status=$?; [[ $1 != set ]] || {parent}; exit $status')
    boot.boot()
    assert "renderD129" in boot.conf
    real.with_name("pct.written").rename(real)
    boot.number(130)
    boot.no_quorum()
    boot.boot()
    boot.quorum()
    assert boot.followed() and "renderD130" in boot.conf and "renderD129" not in boot.conf
    assert boot.revert() == boot.stock
