"""Inside a lab's containers: which nodes are there, who may open them, and what the programs say that try."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab.host.container import nodes
from lab.host.state import HostState
from tests.conftest import shared
from tests.lab.host_kit import Host, rebound

ALL = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")
REFUSED = "Operation not permitted"
DENIED = "Permission denied"
MISSING = "No such file or directory"
NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"


def conf(host: Host, text: str, ctid: int = 901, privileged: bool = False) -> None:
    """Start a container whose configuration has these lines besides its own."""
    path = host.root / f"etc/pve/lxc/{ctid}.conf"
    stock = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if not re.match(r"dev\d|lxc\.", line) and not (privileged and line.startswith("unprivileged"))
    ]
    path.write_text("\n".join(stock) + f"\n{text}", encoding="utf-8")
    host.run(f"pct stop {ctid}")
    host.output(f"pct start {ctid}")


def opening(host: Host, name: str, who: str = "", ctid: int = 901) -> str:
    """What `dd` says that opens a node for reading and for writing: nothing when it may."""
    path = f"/dev/{name}"
    done = host.run(f"pct exec {ctid} -- {who} dd if={path} of={path} count=0 conv=notrunc status=none")
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stderr.strip().removeprefix(f"dd: failed to open '{path}': ")


def bind(name: str, options: str = "bind,optional,create=file") -> str:
    return f"lxc.mount.entry: /dev/{name} dev/{name} none {options}\n"


def allow(rule: str, version: str = "2") -> str:
    return f"lxc.cgroup{version}.devices.allow: {rule}\n"


def uvm(host: Host) -> int:
    match = re.search(r"(\d+) nvidia-uvm\n", (host.root / "proc/devices").read_text())
    assert match is not None
    return int(match[1])


# -- the recorded node -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "folders", "lines_of_conf"),
    [
        (
            14,
            "/dev /dev/dri",
            "dev0: /dev/nvidia0\ndev1: /dev/dri/renderD128,gid=104,mode=0660\ndev2: path=/dev/nvidiactl\n",
        ),
        (
            50,
            "/dev",
            "dev1: /dev/dri/renderD128,gid=104,mode=0660\ndev2: path=/dev/nvidiactl\n"
            + allow("c 195:* rwm")
            + bind("nvidia1"),
        ),
    ],
)
def test_dev_holds_what_a_real_containers_holds(tmp_path: Path, line: int, folders: str, lines_of_conf: str) -> None:
    transcript = shared("pve_api", "transcripts", "lxc_start_with_devices.jsonl").read_text().splitlines()
    inside = json.loads(transcript[line - 1])["out"].partition("/dev:\n")[2] or json.loads(transcript[line - 1])["out"]
    host = Host(tmp_path, "recorded-node", running=True)
    host.write("/etc/pve/nodes/pve1/lxc/201.conf", f"arch: amd64\nunprivileged: 1\n{lines_of_conf}")
    host.output("pct start 201")
    wanted, seen = nodes_listed(inside), nodes(HostState(tmp_path / "guests/201"))
    paths = [path for path in seen if str(Path(path).parent) in folders.split()]
    found = nodes_listed(host.output(f"pct exec 201 -- stat -c '%A 1 %u %g %Hr, %Lr x %n' {' '.join(paths)}"))
    found = {Path(path).name: node for path, node in found.items()}
    terminals = {"tty1", "tty2"}  # only a terminal's user sees them
    assert found == {name: node for name, node in wanted.items() if name not in terminals}
    rules = re.findall(r"^lxc\.cgroup2\.devices\.allow = (.*)$", json.loads(transcript[line - 1])["out"], re.M)
    assert set(rules) <= set(json.loads((tmp_path / "guests/201/machine.json").read_text())["container"]["rules"])


def nodes_listed(text: str) -> dict[str, tuple[str, ...]]:
    """Name -> mode, owner, group, major, minor of the nodes in a listing by numbers."""
    pattern = re.compile(r"(c[rw-]{9}) +1 +(\d+) +(\d+) +(\d+), +(\d+) .* (\S+)$", re.M)
    return {match[5]: match[:5] for match in pattern.findall(text)}


# -- dev[n] ----------------------------------------------------------------------------------------------------
def test_a_device_entry_gives_its_node_and_its_rule_to_those_whom_its_mode_lets(phoenix: Host) -> None:
    conf(phoenix, "dev0: /dev/nvidia0\ndev1: /dev/nvidiactl,mode=0666\ndev2: /dev/nvidia-uvm,gid=44,mode=0660\n")
    assert [opening(phoenix, name) for name in ALL] == ["", MISSING, "", ""]
    assert [opening(phoenix, name, NOBODY) for name in ALL] == [DENIED, MISSING, "", DENIED]
    in_video = "setpriv --reuid 1000 --regid 1000 --groups 44"
    assert [opening(phoenix, name, in_video) for name in ALL] == [DENIED, MISSING, "", ""]


def test_a_device_that_may_not_be_written_can_be_read(phoenix: Host) -> None:
    conf(phoenix, "dev0: /dev/nvidia0,mode=0666,deny-write=1\n")
    assert opening(phoenix, "nvidia0") == REFUSED
    assert phoenix.run("pct exec 901 -- dd if=/dev/nvidia0 of=/dev/null count=0").returncode == 0


def test_a_device_entry_follows_the_majors(phoenix: Host) -> None:
    conf(phoenix, "dev0: /dev/nvidia-uvm,mode=0666\n")
    before = uvm(phoenix)
    phoenix.machine.set_fault("nvidia-majors-change", True)
    phoenix.reboot()
    assert uvm(phoenix) != before
    assert opening(phoenix, "nvidia-uvm") == ""


def test_a_missing_device_is_said_when_it_is_set_and_at_the_start(phoenix: Host) -> None:
    before = phoenix.output("cat $HOMELAB_ROOT/etc/pve/lxc/901.conf")
    assert phoenix.run("pct set 901 -dev0 /dev/nvidia9").stderr == "Device /dev/nvidia9 does not exist\n"
    assert phoenix.output("cat $HOMELAB_ROOT/etc/pve/lxc/901.conf") == before
    conf(phoenix, "dev0: /dev/nvidia0\n")
    phoenix.output("pct stop 901; rm $HOMELAB_ROOT/dev/nvidia0")
    done = phoenix.run("pct start 901")
    assert (done.returncode, done.stderr) == (255, "Device /dev/nvidia0 does not exist\n")
    assert phoenix.output("pct status 901") == "status: stopped\n"


def test_a_new_device_is_put_into_a_running_container_and_leaves_with_its_next_start(phoenix: Host) -> None:
    phoenix.output("pct set 901 -dev0 /dev/nvidia0,mode=0666")
    assert opening(phoenix, "nvidia0") == ""
    phoenix.output("pct set 901 -delete dev0")
    assert opening(phoenix, "nvidia0") == ""
    phoenix.output("pct reboot 901")
    assert opening(phoenix, "nvidia0") == MISSING


def test_older_releases_keep_a_new_device_for_the_next_start(tmp_path: Path) -> None:
    host = Host(tmp_path, "containers-pve8", running=True)
    host.output("pct set 211 -dev0 /dev/nvidia0")
    assert "dev0: /dev/nvidia0" in (host.root / "etc/pve/lxc/211.conf").read_text().partition("[pve:pending]")[2]
    assert opening(host, "nvidia0", ctid=211) == MISSING
    host.output("pct reboot 211")
    assert opening(host, "nvidia0", ctid=211) == ""


# -- raw lines -------------------------------------------------------------------------------------------------
def test_raw_lines_give_nodes_of_the_hosts_mode_under_their_rules(phoenix: Host) -> None:
    assert [opening(phoenix, name, ctid=950) for name in ALL] == [""] * 4
    assert [opening(phoenix, name, NOBODY, ctid=950) for name in ALL] == [""] * 4
    listed = phoenix.output("pct exec 950 -- stat -c '%F %t %a %U' /dev/nvidia-uvm")
    assert listed == f"character special file {uvm(phoenix):x} 666 nobody\n"


@pytest.mark.parametrize(
    ("rules", "answers"),
    [
        ("", [REFUSED] * 4),
        (allow("c 195:* rwm"), ["", "", "", REFUSED]),
        (allow("c 195:0 rwm") + allow("c 195:255 rw"), ["", REFUSED, "", REFUSED]),
        (allow("c 195:* r"), [REFUSED] * 4),
        (allow("b 195:* rwm"), [REFUSED] * 4),
        (allow("c *:* rwm"), [""] * 4),
        (allow("a"), [""] * 4),
        (allow("c 195:* rwm", ""), [REFUSED] * 4),
        (allow("c 195:* rwm") + allow("c 508:* rwm"), ["", "", "", REFUSED]),
        (allow("c 195:* rwm") + "lxc.cgroup2.devices.deny: c 195:* rwm\n", [REFUSED] * 4),
        ("lxc.cgroup2.devices.deny: a\n" + allow("c 195:1 rw"), [REFUSED, "", REFUSED, REFUSED]),
    ],
)
def test_a_node_opens_as_the_rules_say(phoenix: Host, rules: str, answers: list[str]) -> None:
    conf(phoenix, rules + "".join(map(bind, ALL)))
    assert [opening(phoenix, name) for name in ALL] == answers


def test_a_privileged_container_has_the_same_rules(phoenix: Host) -> None:
    conf(phoenix, allow("c 195:* rwm") + "".join(map(bind, ALL)), privileged=True)
    assert [opening(phoenix, name) for name in ALL] == ["", "", "", REFUSED]
    assert phoenix.output("pct exec 901 -- stat -c %U /dev/nvidia0") == "root\n"


def test_a_rule_is_stale_when_the_major_has_changed(phoenix: Host) -> None:
    phoenix.machine.set_fault("nvidia-majors-change", True)
    phoenix.reboot()
    assert [opening(phoenix, name, ctid=950) for name in ALL] == ["", "", "", REFUSED]


def test_the_confs_that_people_trust_are_found_out(phoenix: Host) -> None:
    text = shared("real_hosts", "pve-lxc-wrong-majors", "lxc_conf.txt").read_text()
    conf(phoenix, text)
    assert [opening(phoenix, name) for name in ("nvidia0", "nvidiactl", "nvidia-uvm")] == ["", "", REFUSED]
    assert "renderD128" in phoenix.output("pct exec 901 -- ls /dev/dri")
    conf(phoenix, shared("real_hosts", "pve-lxc-rtx3060", "lxc_conf.txt").read_text())
    assert phoenix.output("pct exec 901 -- stat -c %t:%T /dev/nvidia-caps/nvidia-cap1") == f"{uvm(phoenix):x}:1\n"


@pytest.mark.parametrize(
    "entry", ["/dev/net/tun dev/net/tun none bind,create=file", "/dev/net dev/net none bind,create=dir"]
)
def test_a_node_that_every_kernel_has_is_on_every_host(phoenix: Host, entry: str) -> None:
    conf(phoenix, allow("c 10:200 rwm") + f"lxc.mount.entry: {entry}\n")
    assert phoenix.output("pct exec 901 -- stat -c %t:%T /dev/net/tun") == "a:c8\n"
    assert opening(phoenix, "net/tun") == ""


def test_a_mount_without_optional_keeps_a_container_from_starting(phoenix: Host) -> None:
    phoenix.output("pct stop 901; rm $HOMELAB_ROOT/dev/nvidia1")
    path = phoenix.root / "etc/pve/lxc/901.conf"
    stock = path.read_text(encoding="utf-8")
    path.write_text(stock + bind("nvidia1", "bind,create=file"), encoding="utf-8")
    done = phoenix.run("pct start 901")
    assert done.returncode == 255
    assert 'No such file or directory - Failed to mount "/dev/nvidia1"' in done.stderr
    assert done.stderr.endswith("startup for container '901' failed\n")
    path.write_text(stock + bind("nvidia1"), encoding="utf-8")
    phoenix.output("pct start 901")
    assert opening(phoenix, "nvidia1") == MISSING


def test_without_create_a_mount_has_no_place_in_dev(phoenix: Host) -> None:
    conf(phoenix, allow("c 195:* rwm") + bind("nvidia0", "bind,optional"))
    assert opening(phoenix, "nvidia0") == MISSING


def test_a_bound_node_that_only_the_hosts_root_may_open(phoenix: Host) -> None:
    rules = allow("c *:* rwm") + bind("nvidia-caps/nvidia-cap1") + bind("nvidia-caps/nvidia-cap2")
    conf(phoenix, rules)
    assert opening(phoenix, "nvidia-caps/nvidia-cap1") == DENIED, "its owner isn't known in the user namespace"
    assert phoenix.run("pct exec 901 -- dd if=/dev/nvidia-caps/nvidia-cap2 of=/dev/null count=0").returncode == 0
    conf(phoenix, rules, privileged=True)
    assert opening(phoenix, "nvidia-caps/nvidia-cap1") == ""
    assert opening(phoenix, "nvidia-caps/nvidia-cap1", NOBODY) == DENIED


def test_a_node_without_a_driver_behind_it(phoenix: Host) -> None:
    phoenix.output(rebound("0000:02:00.0", "vfio-pci"))
    phoenix.output("rmmod nvidia_uvm")
    assert [opening(phoenix, name, ctid=950) for name in ALL] == [
        "", "No such device or address", "", "No such device or address",
    ]  # fmt: skip


def test_folders_of_the_host_are_seen_inside(phoenix: Host) -> None:
    phoenix.write("/mnt/models/readme", "weights\n")
    conf(phoenix, "lxc.mount.entry: /mnt/models srv/models none bind,create=dir 0 0\n")
    assert phoenix.output("pct exec 901 -- cat /srv/models/readme") == "weights\n"


# -- every way of opening --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("dd if=/dev/{} of=/dev/null count=1", "dd: failed to open '/dev/{}': {}\n"),
        ("cat /dev/{}", "cat: /dev/{}: {}\n"),
        ("head -c 1 /dev/{}", "head: cannot open '/dev/{}' for reading: {}\n"),
    ],
)
def test_programs_say_why_they_can_not_open(phoenix: Host, command: str, said: str) -> None:
    conf(phoenix, "dev0: /dev/nvidia0\n" + bind("nvidia1"))
    for name, who, why in (("nvidia0", NOBODY, DENIED), ("nvidia1", "", REFUSED), ("nvidia9", "", MISSING)):
        done = phoenix.run(f"pct exec 901 -- {who} {command.format(name)}")
        assert (done.returncode, done.stderr) == (1, said.format(name, why))


def test_a_shells_redirection_meets_the_same_rules(phoenix: Host) -> None:
    conf(phoenix, "dev0: /dev/nvidia0,mode=0660\ndev1: /dev/nvidiactl,mode=0666\n" + bind("nvidia1"))
    for who, opened in (("", "nvidia0 nvidiactl"), (f"{NOBODY} sh -c", "nvidiactl")):
        loop = (
            'for n in nvidia0 nvidia1 nvidiactl; do (exec 3<>"${HOMELAB_ROOT:-}/dev/$n") 2>/dev/null && echo $n; done'
        )
        done = phoenix.run(f"pct exec 901 -- {who or 'sh -c'} '{loop}'")
        assert done.stdout.split() == opened.split(), done.stderr


def test_mknod_inside_is_for_privileged_containers_alone(phoenix: Host) -> None:
    conf(phoenix, allow("c 195:* rw"))
    assert phoenix.run("pct exec 901 -- mknod /dev/own c 195 0").stderr == f"mknod: /dev/own: {REFUSED}\n"
    conf(phoenix, allow("c 195:* rw"), privileged=True)
    phoenix.output("pct exec 901 -- mknod -m 600 /dev/own c 195 0")
    assert opening(phoenix, "own") == ""
    assert opening(phoenix, "own", NOBODY) == DENIED
    phoenix.output("pct exec 901 -- rm /dev/own")
    assert opening(phoenix, "own") == MISSING


# -- NVIDIA's userspace ----------------------------------------------------------------------------------------
def test_nvidia_smi_in_the_working_container(phoenix: Host) -> None:
    listed = phoenix.output("pct exec 950 -- nvidia-smi --query-gpu=name,driver_version --format=csv,noheader")
    assert listed.splitlines() == ["NVIDIA GeForce RTX 5090, 580.105.08", "NVIDIA GeForce RTX 4090, 580.105.08"]
    assert phoenix.output("pct exec 950 -- nvidia-smi -L") == phoenix.output("nvidia-smi -L")


def test_nvidia_smi_is_not_found_where_it_is_not_installed(phoenix: Host) -> None:
    done = phoenix.run("pct exec 901 -- nvidia-smi")
    assert done.returncode == 127 and done.stderr.endswith('No such file or directory - Failed to exec "nvidia-smi"\n')
    done = phoenix.run("pct exec 901 -- sh -c nvidia-smi")
    assert done.returncode == 127 and "not found" in done.stderr


def test_nvidia_smi_says_a_mismatch_as_the_real_one(tmp_path: Path) -> None:
    host = Host(tmp_path, "containers-pve8", running=True)
    done = host.run("pct exec 212 -- nvidia-smi")
    real = shared("real_hosts", "pve-lxc-rtx3060", "nvml_mismatch.txt").read_text()
    assert done.returncode == 18
    assert " ".join(done.stderr.split()) == real.strip().replace("535.230", "550.144")


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        ("", 9, "couldn't communicate with the NVIDIA driver"),
        (bind("nvidiactl"), 255, "Failed to initialize NVML: Unknown Error"),
        ("dev0: /dev/nvidiactl\n", 6, "No devices were found"),
        ("dev0: /dev/nvidiactl\ndev1: /dev/nvidia1\n", 0, "RTX 4090"),
    ],
)
def test_nvidia_smi_finds_what_may_be_opened(phoenix: Host, lines: str, status: int, said: str) -> None:
    conf(phoenix, lines, 950)
    done = phoenix.run("pct exec 950 -- nvidia-smi -L")
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "RTX 5090" not in done.stdout


def test_nvidia_smi_of_a_user_whom_the_modes_keep_out(phoenix: Host) -> None:
    conf(phoenix, "dev0: /dev/nvidiactl\n", 950)
    done = phoenix.run(f"pct exec 950 -- {NOBODY} nvidia-smi")
    assert (done.returncode, done.stderr) == (4, "Failed to initialize NVML: Insufficient Permissions\n")


def test_libraries_that_are_installed_inside_count_at_once(phoenix: Host) -> None:
    tree = phoenix.machine.state / "guests/950/root/usr/lib/x86_64-linux-gnu"
    (tree / "libnvidia-ml.so.580.105.08").rename(tree / "libnvidia-ml.so.580.95.05")
    assert phoenix.run("pct exec 950 -- nvidia-smi").returncode == 18
    phoenix.output("pct exec 950 -- sh -c 'rm \"${HOMELAB_ROOT:-}\"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.*'")
    done = phoenix.run("pct exec 950 -- nvidia-smi")
    assert done.returncode == 12 and "couldn't find libnvidia-ml.so library" in done.stderr


def test_a_container_sees_the_hosts_driver(phoenix: Host) -> None:
    assert phoenix.output("pct exec 901 -- cat /proc/driver/nvidia/version") == phoenix.output(
        "cat $HOMELAB_ROOT/proc/driver/nvidia/version"
    )
    for command in ("uname -r", "uname --kernel-release"):
        assert phoenix.output(f"pct exec 901 -- {command}") == phoenix.output("uname -r")
    assert phoenix.output("pct exec 901 -- hostname") == "ai-lab\n"


# -- pct -------------------------------------------------------------------------------------------------------
def test_what_is_written_inside_stays_until_the_container_is_destroyed(phoenix: Host) -> None:
    phoenix.output("echo kept | pct exec 901 -- sh -c 'cat >\"${HOMELAB_ROOT:-}/root/note\"'")
    phoenix.output("pct reboot 901")
    phoenix.reboot()
    assert phoenix.output("pct exec 901 -- cat /root/note") == "kept\n"
    assert phoenix.run("pct exec 950 -- cat /root/note").returncode == 1
    phoenix.output("pct stop 901; pct destroy 901")
    assert not (phoenix.machine.state / "guests/901").exists()


def test_exec_passes_streams_and_status_on(phoenix: Host) -> None:
    assert phoenix.run("pct exec 901 -- sh -c 'exit 7'").returncode == 7
    assert phoenix.output("printf 'a\\nb\\n' | pct exec 901 -- grep -c .") == "2\n"
    done = phoenix.run("pct exec 901 -- bash -s -- one <<<'echo \"$1 $HOMELAB_ROOT\" >&2'")
    assert done.stderr == f"one {phoenix.machine.state}/guests/901/root\n"
    assert phoenix.run("pct exec 901 -- sh -c 'kill -TERM $$'").returncode == 143
    assert phoenix.output("pct exec 901 -- grep -o ^root /etc/passwd") == "root\n"


def test_exec_needs_a_running_container(phoenix: Host) -> None:
    phoenix.output("pct stop 901")
    done = phoenix.run("pct exec 901 -- true")
    assert (done.returncode, done.stderr) == (255, "container '901' not running!\n")
    assert phoenix.run("pct exec 103 -- true").returncode == 2


def test_unlock(phoenix: Host) -> None:
    path = phoenix.root / "etc/pve/lxc/901.conf"
    stock = path.read_text(encoding="utf-8")
    path.write_text(stock + "lock: backup\n", encoding="utf-8")
    assert phoenix.run("pct set 901 -cores 2").stderr == "CT is locked (backup)\n"
    phoenix.output("pct unlock 901")
    assert path.read_text(encoding="utf-8") == stock
    assert phoenix.run("pct unlock 901").returncode == 255


def test_a_script_that_holds_the_configurations_file_lock_keeps_others_out(phoenix: Host) -> None:
    lock = "/run/lock/lxc/pve-config-901.lock"
    done = phoenix.run(f"flock $HOMELAB_ROOT{lock} pct set 901 -cores 2")
    assert (done.returncode, done.stderr) == (255, f"can't lock file '{lock}' - got timeout\n")
    assert "cores: 8" in phoenix.output("pct config 901")
    phoenix.output("pct set 901 -cores 2")


def test_a_container_that_ignores_a_shutdown(phoenix: Host) -> None:
    phoenix.machine.set_fault("guest-ignores-shutdown", 901)
    done = phoenix.run("pct shutdown 901 --timeout 1")
    assert done.returncode == 255 and "lxc-stop -n 901 --nokill --timeout 1" in done.stderr
    assert done.stderr.endswith("container did not stop\n")
    assert phoenix.output("pct status 901") == "status: running\n"
    phoenix.output("pct shutdown 901 --timeout 1 --forceStop 1")
    assert phoenix.output("pct status 901") == "status: stopped\n"


def test_somebody_elses_change_is_noticed_by_the_digest(phoenix: Host) -> None:
    digest = phoenix.output("sha1sum <$HOMELAB_ROOT/etc/pve/lxc/901.conf").split()[0]
    phoenix.machine.set_fault("foreign-change", 1)
    done = phoenix.run(f"pct set 901 -cores 2 -digest {digest}")
    assert "detected modified configuration" in done.stderr
    assert "changed by somebody else" in phoenix.output("pct config 901")


def test_a_containers_rollback_stops_it_and_has_it_started_by_a_task_of_its_own(phoenix: Host) -> None:
    phoenix.output("pct snapshot 901 before && pct set 901 --cores 3 && pct rollback 901 before --start 1")
    assert "cores: 8\n" in phoenix.output("pct config 901; pct status 901 | grep running")
    index = phoenix.output("tail -n 2 $ROOT/var/log/pve/tasks/index")
    assert re.findall(r":(vz\w+):901:\S+ \w+ OK\n", index) == ["vzrollback", "vzstart"]
