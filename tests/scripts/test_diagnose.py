"""diagnose.sh, and what it runs inside containers, on a folder: what is passed on, what isn't, and that nothing is changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.doctor.reading import Extra
from homelab.remote import scripts
from tests.scripts.conftest import Folder
from tests.waiting import PATIENCE

STAT = """
for path in "$@"; do
  case $path in
    *nvidia[0-9]) echo "$path c3 ${path: -1} 666 0 0 character special file" ;;
    *nvidia-caps) echo "$path 0 0 755 0 0 directory" ;;
    *nvidia-cap1) echo "$path 1e3 1 400 0 0 character special file" ;;
  esac
done
"""
# Inside, every file in /dev is a node; where nothing matched, the pattern itself was asked for.
NODES = """
for path in "${@:3}"; do
  [[ ! -f $path ]] || echo "$path c3 0 660 0 44 character special file"
  [[ ! -d $path ]] || echo "$path 0 0 755 0 0 directory"
done
"""
CONF = """\
#token=secret-1
arch: amd64
dev0: /dev/nvidia0,mode=0666
hostname: media
lxc.environment: TOKEN=secret-2
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.mount.entry = /dev/nvidia1 dev/nvidia1 none bind,optional,create=file
lxc.mount.entry: //nas/x mnt/x cifs username=a,password=secret-3,create=dir 0 0
net0: name=eth0,bridge=vmbr0

[before]
dev1: /dev/nvidia1
lxc.hook.mount: /secret-4
"""


@pytest.fixture
def host(folder: Folder) -> Folder:
    """A node with a container of each state, and a neighbour in the cluster."""
    folder.command("hostname", "echo pve")
    folder.command("dpkg-query", "printf 6.0.18")
    folder.command("stat", STAT)
    folder.command(
        "pct", '[[ $1 == status ]] && { echo "status: $(cat "$ROOT/state/$2")"; exit; }\necho "node /dev/nvidia0"'
    )
    for name in ("nvidia0", "nvidia-caps/nvidia-cap1"):
        folder.write(f"/dev/{name}", "")
    folder.write("/etc/pve/nodes/pve/lxc/950.conf", CONF)
    folder.write("/etc/pve/nodes/pve/lxc/901.conf", "hostname: ai\n")
    folder.write(
        "/etc/pve/nodes/pve/qemu-server/103.conf",
        "name: x\n[PENDING]\nhostpci0: 01:00\nargs: secret-5\n[snap]\nhostpci1: 02:00\n",
    )
    folder.write("/etc/pve/nodes/other/lxc/300.conf", "hostname: far\n")
    (folder.root / "etc/pve/lxc").symlink_to("nodes/pve/lxc")
    folder.write("/state/950", "running")
    folder.write("/state/901", "stopped")
    return folder


def read(host: Folder, *containers: int) -> tuple[Extra, str]:
    before = host.tree()
    done = host.run("diagnose", scripts.diagnose(containers))
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.tree() == before
    return Extra.model_validate_json(done.stdout), done.stdout


def test_guests_of_the_whole_cluster_are_listed_with_their_kind_and_node(host: Folder) -> None:
    extra, _ = read(host)
    assert {(one.id, one.kind, one.node) for one in extra.guests} == {
        (950, "lxc", "pve"), (901, "lxc", "pve"), (103, "vm", "pve"), (300, "lxc", "other"),
    }  # fmt: skip
    assert next(one.pending for one in extra.guests if one.id == 103) == "hostpci0: 01:00"
    assert extra.containers == []


def test_only_lines_about_devices_and_what_tells_a_container_from_others_leave_the_host(host: Folder) -> None:
    extra, text = read(host, 950)
    assert "secret" not in text
    (container,) = extra.containers
    assert container.conf.splitlines() == [
        "dev0: /dev/nvidia0,mode=0666",
        "hostname: media",
        "lxc.cgroup2.devices.allow: c 195:* rwm",
        "lxc.mount.entry = /dev/nvidia1 dev/nvidia1 none bind,optional,create=file",
        "net0: name=eth0,bridge=vmbr0",
        "[before]",
        "dev1: /dev/nvidia1",
    ]
    assert container.other_keys == ["lxc.environment"]


def test_a_container_that_is_off_is_not_looked_into(host: Folder) -> None:
    extra, _ = read(host, 901, 950, 103, 300)
    assert [(one.id, one.running, one.inside) for one in extra.containers] == [
        (901, False, ""),
        (950, True, "node /dev/nvidia0"),
    ]


def test_a_container_that_does_not_say_whether_it_runs_is_not_called_off(host: Folder) -> None:
    host.command("pct", "exit 111")
    done = host.bash(f"STATUS_SECONDS=0\n{scripts.diagnose([950])}", "diagnose", parts=())
    (container,) = Extra.model_validate_json(done.stdout).containers
    assert (container.running, container.was_seen) == (None, False)


@pytest.mark.parametrize("kernel_says", [False, True])
def test_the_drivers_version_is_read_where_every_other_script_reads_it(host: Folder, kernel_says: bool) -> None:
    # kernel-open/nvidia/nv-procfs.c makes the file under /proc; sysfs has `version` only of a module that declares MODULE_VERSION.
    host.write("/sys/module/nvidia/refcnt", "0\n")
    if kernel_says:
        host.write(
            "/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\n",
        )
    extra, _ = read(host)
    assert extra.driver.strip() == ("580.95.05" if kernel_says else "")


def test_a_container_that_hangs_hides_nothing_else(host: Folder) -> None:
    host.command(
        "timeout",
        f"[[ $* == *inspect* || $* == *sh\\ -c* ]] || exec {shutil.which('timeout')} \"$@\"\necho 'half an answer'; exit 124",
    )
    extra, _ = read(host, 950, 901)
    assert [one.problem for one in extra.containers] == ["exit status 124: half an answer", ""]


def test_nodes_are_told_by_their_path_on_the_host(host: Folder) -> None:
    extra, _ = read(host)
    assert "/dev/nvidia0 c3 0 666 0 0 character special file" in extra.nodes.splitlines()
    assert "/dev/nvidia-caps/nvidia-cap1 1e3 1 400 0 0 character special file" in extra.nodes.splitlines()


def test_a_machine_that_is_no_proxmox_host_is_read_all_the_same(folder: Folder) -> None:
    folder.command("dpkg-query", "exit 1")
    folder.command("dmesg", "exit 1")
    extra, _ = read(folder, 950)
    assert (extra.guests, extra.containers, extra.driver, extra.nodes) == ([], [], "", "")


# -- inside ------------------------------------------------------------------------------------------------------------
def inside(folder: Folder) -> list[str]:
    before = folder.tree()
    done = subprocess.run(
        ["sh", "-c", scripts.file("inspect_inside.sh")],
        env=folder.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert folder.tree() == before
    return done.stdout.splitlines()


@pytest.fixture
def container(folder: Folder) -> Folder:
    folder.write("/dev/nvidia0", "")
    folder.command("stat", NODES)
    folder.command(
        "dd", "[[ -z ${NOBODY:-} ]] || { echo \"dd: can't open '$1': Permission denied\" >&2; exit 1; }\necho 0+0 >&2"
    )
    folder.command("setpriv", 'shift 5; NOBODY=1 exec "$@"')
    return folder


def test_who_may_open_a_node_is_told_for_root_and_for_an_ordinary_user(container: Folder) -> None:
    assert inside(container) == [
        "node /dev/nvidia0 c3 0 660 0 44 character special file",
        "root /dev/nvidia0 ok",
        "user /dev/nvidia0 Permission denied",
    ]


def test_without_setpriv_su_becomes_nobody(container: Folder) -> None:
    container.command("setpriv", "exit 1")
    container.command("su", '[[ $1 == nobody ]] || exit 9\nNOBODY=1 exec "$3" -c "${@:5}"')
    assert inside(container)[2] == "user /dev/nvidia0 Permission denied"


def test_capabilities_are_opened_for_reading_alone(container: Folder, tmp_path: Path) -> None:
    (container.root / "dev/nvidia0").unlink()
    container.write("/dev/nvidia-caps/nvidia-cap2", "")
    container.command("dd", f'echo "$2" >>{tmp_path}/opened')
    assert "root /dev/nvidia-caps/nvidia-cap2 ok" in inside(container)
    assert set((tmp_path / "opened").read_text().split()) == {"of=/dev/null"}


def test_what_is_no_device_is_passed_over(container: Folder) -> None:
    container.command("stat", 'echo "$3 0 0 644 0 0 regular file"')
    assert inside(container) == []


def test_libraries_are_told_by_the_file_behind_the_link(container: Folder) -> None:
    (container.root / "dev/nvidia0").unlink()
    folder = container.write("/usr/lib/x86_64-linux-gnu/libcuda.so.580.105.08", "").parent
    (folder / "libcuda.so.1").symlink_to("libcuda.so.580.105.08")
    assert inside(container) == [
        "library /usr/lib/x86_64-linux-gnu/libcuda.so.1 /usr/lib/x86_64-linux-gnu/libcuda.so.580.105.08"
    ]
