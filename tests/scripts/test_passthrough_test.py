"""remote_scripts/passthrough_test.sh on a folder: qm is a stand-in that keeps configurations and plays the VM's console."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from homelab.remote import scripts
from lab.host import archive
from tests.scripts.conftest import Folder
from tests.waiting import PATIENCE

GPU, AUDIO = "0000:01:00.0", "0000:01:00.1"
FUNCTIONS = {GPU: "10de:2b85", AUDIO: "10de:22e8"}
PLACE = "/run/homelab-passthrough-test"
NAME = scripts.PASSTHROUGH_TEST_NAME
KERNEL = os.uname().release

# What a q35 VM with the card says; QEMU's own bridge is among it.
CONSOLE = f"""\
[    0.000000] Linux version {KERNEL}
homelab-passthrough BEGIN
homelab-passthrough 0000:00:00.0 8086:29c0 060000
homelab-passthrough 0000:00:1c.0 1b36:000c 060400 0:4096:0x0000000000040200
homelab-passthrough 0000:01:00.0 10de:2b85 030000 0:67108864:0x0000000000040200 1:34359738368:0x000000000014220c 5:128:0x0000000000040101
homelab-passthrough 0000:01:00.1 10de:22e8 040300 0:16384:0x0000000000040200
homelab-passthrough END 4
"""

QM = r"""
script() { # the bash that runs all of it, above what limits the time of its commands
  local process=$PPID parent
  while parent=$(cut -d' ' -f4 "/proc/$process/stat") && [[ $(<"/proc/$parent/comm") =~ ^(bash|timeout)$ ]]; do process=$parent; done
  echo "$process"
}
echo "$*" >>"$ROOT/qm"
conf=$ROOT/etc/pve/qemu-server/$2.conf
case $1 in
  status) if [[ -e $ROOT/runs/$2 ]]; then echo "status: running"; else echo "status: stopped"; fi ;;
  create)
    [[ ! -e $conf ]] || { echo "unable to create VM $2 - VM $2 already exists on node 'pve'" >&2; exit 255; }
    shift 2
    while (($#)); do
      printf '%s: %s\n' "${1#--}" "$2" >>"$conf"
      shift 2
    done
    [[ ! -e $ROOT/signal-at-create ]] || kill -s "$(<"$ROOT/signal-at-create")" "$(script)" ;;
  start)
    [[ ! -e $ROOT/start-fails ]] || { cat "$ROOT/start-fails" >&2; exit 255; }
    [[ ! -e $ROOT/signal ]] || kill -s "$(<"$ROOT/signal")" "$(script)"
    [[ -e $ROOT/says ]] || exit 0
    serial=$(sed -nE 's/^args: .* -serial file:([^ ]+).*/\1/p' "$conf")
    touch "$ROOT/runs/$2"
    # As QEMU does, whatever becomes of who asked.
    setsid cat "$ROOT/says" >"$ROOT$serial" 2>/dev/null </dev/null & ;;
  stop) rm -f "$ROOT/runs/$2" ;;
  destroy)
    [[ ! -e $ROOT/destroy-fails ]] || { echo "can't remove VM $2" >&2; exit 255; }
    rm "$conf" ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture
def machine(folder: Folder) -> Folder:
    """A host with both functions on vfio-pci, another device, VM 103 that runs without a card, and a VM that sees all."""
    resources = {
        GPU: "0x00000000f4000000 0x00000000f7ffffff 0x0000000000040200\n"
        "0x0000006000000000 0x00000067ffffffff 0x000000000014220c\n"
        + "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 3
        + "0x000000000000f000 0x000000000000f07f 0x0000000000040101\n"
        + "0x00000000f8000000 0x00000000f807ffff 0x0000000000046200\n",
        AUDIO: "0x00000000f8080000 0x00000000f8083fff 0x0000000000040200\n",
    }
    for address, ids in FUNCTIONS.items():
        add_function(folder, address, ids, resources[address])
    folder.write(f"/boot/vmlinuz-{KERNEL}", "kernel")
    folder.write("/etc/pve/qemu-server/103.conf", "name: Sandbox\nmemory: 2048\n")
    folder.write("/runs/103", "")
    folder.write("/says", CONSOLE)
    folder.command("qm", QM)
    folder.command("pvesh", "echo '\"104\"'")
    folder.command("hostname", "echo pve")
    # In the initramfs, which no VM starts here, for this machine's shell with its libraries: these take 0.1 s to compress.
    folder.command("busybox", "printf 'ls\\nmount\\nsh\\n'")
    return folder


def add_function(folder: Folder, address: str, ids: str, resource: str, driver: str = "vfio-pci") -> None:
    device = f"/sys/bus/pci/devices/{address}"
    for file, value in zip(("vendor", "device"), ids.split(":"), strict=True):
        folder.write(f"{device}/{file}", f"0x{value}\n")
    folder.write(f"{device}/resource", resource)
    (folder.root / device[1:] / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def apply(
    machine: Folder, functions: dict[str, str] = FUNCTIONS, timeout: int = 20
) -> subprocess.CompletedProcess[str]:
    return machine.run("apply", scripts.passthrough_test(functions, timeout=timeout))


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.fullmatch(r"wanted: .+\nfound:  .+\nwhy:    .+\nnext:   .+\n", done.stdout, re.DOTALL), done.stdout
    return done.stdout


def commands(machine: Folder) -> list[str]:
    log = machine.root / "qm"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def assert_nothing_is_left(machine: Folder) -> None:
    assert sorted(path.name for path in (machine.root / "etc/pve/qemu-server").iterdir()) == ["103.conf"]
    assert machine.read("/etc/pve/qemu-server/103.conf") == "name: Sandbox\nmemory: 2048\n"
    assert [path.name for path in (machine.root / "run").iterdir()] == ["homelab"]
    assert not (machine.root / "var/lib/homelab").exists()


# -- what it answers ---------------------------------------------------------------------------------------------------
def test_it_answers_what_the_vm_saw_and_leaves_nothing(machine: Folder) -> None:
    done = apply(machine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "kernel": KERNEL,
        "vmid": 104,
        "functions": [
            {
                "guest": "0000:01:00.0",
                "address": GPU,
                "id": "10de:2b85",
                "class": "030000",
                "bars": [
                    {"index": 0, "size": 67108864},
                    {"index": 1, "size": 34359738368},
                    {"index": 5, "size": 128},
                ],
            },
            {
                "guest": "0000:01:00.1",
                "address": AUDIO,
                "id": "10de:22e8",
                "class": "040300",
                "bars": [{"index": 0, "size": 16384}],
            },
        ],
    }
    assert_nothing_is_left(machine)
    assert "stop 103" not in machine.read("/qm") and "destroy 103" not in machine.read("/qm")


def test_the_vm_gets_each_slot_once_and_its_kernel_by_args(machine: Folder) -> None:
    other = {"0000:41:00.0": "10de:2204"}
    add_function(machine, "0000:41:00.0", "10de:2204", "0x0 0x0 0x0\n")
    apply(machine, FUNCTIONS | other)
    created = next(line for line in machine.read("/qm").splitlines() if line.startswith("create"))
    assert "--hostpci0 host=0000:01:00,pcie=1,rombar=0 --hostpci1 host=0000:41:00,pcie=1,rombar=0 --args" in created
    assert f"-kernel /boot/vmlinuz-{KERNEL} -initrd {PLACE}/initrd.img -append 'console=ttyS0 panic=-1'" in created
    assert f"-serial file:{PLACE}/serial -no-reboot" in created and "--onboot 0" in created


def test_of_a_slot_that_holds_more_than_the_card_the_vm_gets_the_cards_functions(machine: Folder) -> None:
    add_function(machine, "0000:01:00.3", "1022:15b9", "0x0 0x0 0x0\n", driver="xhci_hcd")
    apply(machine)
    created = next(line for line in machine.read("/qm").splitlines() if line.startswith("create"))
    assert f"--hostpci0 host={GPU};{AUDIO},pcie=1,rombar=0 --args" in created


def test_an_id_that_is_given_is_taken(machine: Folder) -> None:
    done = machine.run("apply", scripts.passthrough_test(FUNCTIONS, vmid=9000, timeout=20))
    assert json.loads(done.stdout)["vmid"] == 9000


def test_a_serial_line_with_carriage_returns_and_the_kernels_words_between_is_read(machine: Folder) -> None:
    lines = CONSOLE.splitlines()
    machine.write("/says", "\r\n".join([*lines[:3], "[    1.5] pci something", *lines[3:], ""]))
    assert apply(machine).returncode == 0


def test_cards_with_the_same_ids_are_told_apart_by_their_order(machine: Folder) -> None:
    add_function(machine, "0000:41:00.0", "10de:2b85", "0x0 0x0 0x0\n")
    more = "homelab-passthrough 0000:02:00.0 10de:2b85 030000\nhomelab-passthrough END 5\n"
    machine.write("/says", CONSOLE.replace("homelab-passthrough END 4\n", more))
    done = apply(machine, FUNCTIONS | {"0000:41:00.0": "10de:2b85"})
    assert done.returncode == 0, done.stdout
    assert [(f["address"], f["guest"]) for f in json.loads(done.stdout)["functions"]] == [
        (GPU, "0000:01:00.0"),
        (AUDIO, "0000:01:00.1"),
        ("0000:41:00.0", "0000:02:00.0"),
    ]


def test_on_a_host_where_the_prefix_is_empty_it_does_the_same(machine: Folder) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("a root folder of its own takes root, and mounts")
    for path in ("usr", "dev", "tmp"):
        (machine.root / path).mkdir()
    for path in ("bin", "sbin", "lib", "lib64"):
        (machine.root / path).symlink_to(f"usr/{path}")
    shutil.copytree(machine.commands, machine.root / "commands")
    shutil.copytree("/etc/alternatives", machine.root / "etc/alternatives", symlinks=True)
    own_root = 'for f in usr dev proc; do mount --bind "/$f" "$0/$f" || exit; done; exec chroot "$0" bash -s -- apply'
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", own_root, str(machine.root)],
        input=scripts.passthrough_test(FUNCTIONS, timeout=20),
        env={"PATH": "/commands:/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(done.stdout)["functions"]) == 2
    assert_nothing_is_left(machine)


# -- what fails --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("0000:01:00.1 10de:22e8", "0000:01:00.1 10de:1234", f"{AUDIO} (10de:22e8): at 0000:01:00.1 in the VM there is 10de:1234"),
        ("0000:01:00.1 10de:22e8", "0000:06:12.0 1af4:1000", f"{AUDIO} (10de:22e8): is not in the VM"),
        (" 1:34359738368:0x000000000014220c", "", f"{GPU} (10de:2b85): BAR 1 of 34359738368 bytes has no address in the VM"),
        (" 0:16384:0x0000000000040200", "", f"{AUDIO} (10de:22e8): BAR 0 of 16384 bytes has no address in the VM"),
        (" 0:16384:", " 0:4096:", f"{AUDIO} (10de:22e8): BAR 0 of 16384 bytes has no address in the VM"),
    ],
)  # fmt: skip
def test_what_the_vm_does_not_see_as_the_host_does_is_named(machine: Folder, old: str, new: str, found: str) -> None:
    machine.write("/says", CONSOLE.replace(old, new))
    assert f"found:  {found}" in refusal(apply(machine))
    assert_nothing_is_left(machine)


def test_everything_that_is_missing_is_named_at_once(machine: Folder) -> None:
    machine.write(
        "/says",
        "homelab-passthrough BEGIN\nhomelab-passthrough 0000:00:00.0 8086:29c0 060000\nhomelab-passthrough END 1\n",
    )
    text = refusal(apply(machine))
    assert f"{GPU} (10de:2b85): is not in the VM\n{AUDIO} (10de:22e8): is not in the VM" in text


def test_an_io_bar_without_an_address_is_no_failure(machine: Folder) -> None:
    machine.write("/says", CONSOLE.replace(" 5:128:0x0000000000040101", ""))
    assert apply(machine).returncode == 0


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("[    0.5] Kernel panic - not syncing: VFS\n[    0.6] Rebooting\n", "it ends with:\n[    0.5] Kernel panic - not syncing: VFS"),
        ("", "nothing came on the console"),
        (CONSOLE.replace("END 4", "END 5"), "homelab-passthrough END 5"),  # a line was lost
        (CONSOLE.replace("homelab-passthrough END 4\n", ""), "0000:01:00.1 10de:22e8"),
    ],
)  # fmt: skip
def test_a_vm_that_ends_before_it_has_said_all_fails_with_the_end_of_its_console(
    machine: Folder, says: str, found: str
) -> None:
    machine.write("/says", says)
    text = refusal(apply(machine))
    assert text.startswith("wanted: the list of PCI functions on the test VM's console") and found in text
    assert_nothing_is_left(machine)


def test_a_vm_that_never_speaks_is_stopped_when_its_time_is_up(machine: Folder) -> None:
    (machine.root / "says").unlink()
    assert "within 1 s\nfound:  nothing came on the console" in refusal(apply(machine, timeout=1))
    assert_nothing_is_left(machine)


def test_a_start_that_fails_is_told_in_the_words_of_qm(machine: Folder) -> None:
    machine.write("/start-fails", "can't unbind/bind PCI group to VFIO '0000:01:00.0'\n")
    assert "found:  can't unbind/bind PCI group to VFIO '0000:01:00.0'" in refusal(apply(machine))
    assert_nothing_is_left(machine)


def test_an_id_that_is_taken_is_told_and_its_vm_stays(machine: Folder) -> None:
    done = machine.run("apply", scripts.passthrough_test(FUNCTIONS, vmid=103, timeout=20))
    assert "VM 103 already exists" in refusal(done)
    assert_nothing_is_left(machine)
    assert (machine.root / "runs/103").exists()


def test_a_vm_that_cannot_be_removed_is_named_with_the_way_to_do_it(machine: Folder) -> None:
    machine.write("/destroy-fails", "")
    text = refusal(apply(machine))
    assert f"found:  VM 104 ({NAME}) is still there: can't remove VM 104" in text
    assert "next:   qm stop 104; qm destroy 104 --purge" in text


@pytest.mark.parametrize("number", ["HUP", "INT", "TERM"])
def test_a_signal_ends_the_test_and_the_vm_goes_with_it(machine: Folder, number: str) -> None:
    machine.write("/signal", number)
    (machine.root / "says").unlink()
    assert f"found:  it was stopped by SIG{number}" in refusal(apply(machine))
    assert commands(machine)[-3:] == ["start", "stop", "destroy"]
    assert_nothing_is_left(machine)


def test_a_signal_while_the_vm_is_made_leaves_none_either(machine: Folder) -> None:
    machine.write("/signal-at-create", "TERM")
    refusal(apply(machine))
    assert commands(machine) == ["create", "stop", "destroy"]
    assert_nothing_is_left(machine)


# -- what it refuses before anything is made -----------------------------------------------------------------------------
def test_a_function_on_another_driver_is_refused(machine: Folder) -> None:
    link = machine.root / f"sys/bus/pci/devices/{AUDIO}/driver"
    link.unlink()
    link.symlink_to("../../../bus/pci/drivers/snd_hda_intel")
    assert f"wanted: {AUDIO} on vfio-pci\nfound:  its driver is snd_hda_intel" in refusal(apply(machine))
    link.unlink()
    assert "found:  its driver is none" in refusal(apply(machine))
    assert commands(machine) == []


def test_another_device_at_the_address_is_refused(machine: Folder) -> None:
    machine.write(f"/sys/bus/pci/devices/{GPU}/device", "0x1111\n")
    assert f"wanted: 10de:2b85 at {GPU}\nfound:  10de:1111" in refusal(apply(machine))
    assert "found:  none:none" in refusal(apply(machine, {"0000:77:00.0": "10de:2b85"}))
    assert commands(machine) == []


MAPPING = """\
gpu0
\tdescription the one
\tmap id=10de:2b85,iommugroup=14,node=pve,path=0000:01:00,subsystem-id=1043:89e3

elsewhere
\tmap id=10de:2b85,iommugroup=14,node=pve2,path=0000:01:00
\tmap id=10de:2204,iommugroup=15,node=pve,path=0000:41:00

pool
\tmap id=10de:2b85,iommugroup=14,node=pve,path=0000:01:00
\tmap id=10de:2b85,iommugroup=15,node=pve,path=0000:41:00
"""


@pytest.mark.parametrize(
    "option",
    [
        "0000:01:00,pcie=1",
        "01:00",
        "01:00.1,pcie=1",
        "host=0000:41:00;0000:01:00.0,pcie=1",
        "pcie=1,host=01:00.0",
        "mapping=gpu0,pcie=1",
        "pcie=1,mapping=gpu0",
    ],
)
def test_a_running_vm_that_has_the_card_is_named_and_refused(machine: Folder, option: str) -> None:
    machine.write("/etc/pve/mapping/pci.cfg", MAPPING)
    machine.write("/etc/pve/qemu-server/103.conf", f"hostpci3: {option}\nname: Sandbox\n")
    assert "found:  VM 103 (Sandbox) runs with it" in refusal(apply(machine))
    assert commands(machine) == ["status"]


@pytest.mark.parametrize(
    "conf",
    [
        "hostpci0: 0000:41:00,pcie=1\nname: Sandbox\n",
        "hostpci0: 0000:01:01.0\nname: Sandbox\n",
        "hostpci0: mapping=elsewhere\nname: Sandbox\n",
        "hostpci0: mapping=pool\nname: Sandbox\n",  # the reservations tell which of the two it has
        "hostpci0: mapping=gone\nname: Sandbox\n",
        "name: Sandbox\n\n[before]\nhostpci0: 01:00\n",
        "name: Sandbox\n[PENDING]\nhostpci0: 01:00\n",
    ],
)
def test_a_running_vm_with_another_card_is_left_alone(machine: Folder, conf: str) -> None:
    machine.write("/etc/pve/mapping/pci.cfg", MAPPING)
    machine.write("/etc/pve/qemu-server/103.conf", conf)
    machine.write("/run/qemu-server/pci-id-reservations", "0000:41:00.0 103 pid 20103\n")
    assert apply(machine).returncode == 0
    assert machine.read("/etc/pve/qemu-server/103.conf") == conf


def test_a_reservation_of_a_running_vm_is_refused_whatever_its_configuration_says(machine: Folder) -> None:
    machine.write("/run/qemu-server/pci-id-reservations", f"{AUDIO} 103 pid 20103\n")
    assert "VM 103 (Sandbox)" in refusal(apply(machine))


@pytest.mark.parametrize(
    "path", ["/etc/pve/qemu-server/103.conf", "/run/qemu-server/pci-id-reservations", "/etc/pve/mapping/pci.cfg"]
)
def test_who_has_the_card_is_not_told_by_what_cant_be_read(machine: Folder, path: str) -> None:
    (machine.root / path.lstrip("/")).unlink(missing_ok=True)
    (machine.root / path.lstrip("/")).mkdir(parents=True)
    assert f"found:  {path} can't be read" in refusal(apply(machine))


def test_a_vm_of_which_nobody_says_that_it_is_off_may_have_the_card(machine: Folder) -> None:
    machine.write("/etc/pve/qemu-server/103.conf", "hostpci0: 01:00\nname: Sandbox\n")
    qm = (machine.commands / "qm").read_text()
    machine.command("qm", f"[[ $1 != status ]] || exit 255\n{qm}")
    assert "VM 103 (Sandbox) runs with it" in refusal(apply(machine))


def test_a_vm_that_is_off_does_not_hold_the_card(machine: Folder) -> None:
    machine.write("/etc/pve/qemu-server/103.conf", "hostpci0: 01:00\nname: Sandbox\n")
    machine.write("/run/qemu-server/pci-id-reservations", f"{GPU} 103 time 1\n")
    (machine.root / "runs/103").unlink()
    assert apply(machine).returncode == 0


def test_what_an_interrupted_test_has_left_is_removed_and_nothing_else(machine: Folder) -> None:
    machine.write("/etc/pve/qemu-server/900.conf", f"hostpci0: host=0000:01:00\nlock: create\nname: {NAME}\n")
    machine.write("/etc/pve/qemu-server/901.conf", f"name: {NAME}-2\n")
    machine.write("/etc/pve/qemu-server/902.conf", f"name: other\n[snap]\nname: {NAME}\n")
    machine.write("/runs/900", "")
    machine.write(f"{PLACE}/initrd.img", "half")
    assert apply(machine).returncode == 0
    assert machine.read("/qm").splitlines()[:2] == ["stop 900 --skiplock 1", "destroy 900 --skiplock 1 --purge 1"]
    assert sorted(path.name for path in (machine.root / "etc/pve/qemu-server").iterdir()) == ["103.conf", "901.conf", "902.conf"]  # fmt: skip
    assert not (machine.root / PLACE[1:]).exists()


def test_a_vm_of_that_name_with_a_disk_is_not_ours(machine: Folder) -> None:
    machine.write("/etc/pve/qemu-server/900.conf", f"name: {NAME}\nscsi0: local:900/disk.qcow2\n")
    assert f"the name {NAME} for the test VM alone\nfound:  VM 900 has it" in refusal(apply(machine))
    assert (machine.root / "etc/pve/qemu-server/900.conf").exists() and commands(machine) == []


def test_a_kernel_that_is_gone_is_named(machine: Folder) -> None:
    (machine.root / f"boot/vmlinuz-{KERNEL}").unlink()
    assert f"found:  no /boot/vmlinuz-{KERNEL}" in refusal(apply(machine))
    assert_nothing_is_left(machine)


@pytest.mark.parametrize("folder_name", ["/", "/run", "/etc/homelab-x", "/run/homelab-x/../../etc", ""])
def test_a_folder_that_is_not_its_own_is_refused_and_not_removed(machine: Folder, folder_name: str) -> None:
    before = machine.tree()
    assert "a folder of our own" in refusal(
        machine.run("apply", scripts.passthrough_test(FUNCTIONS, folder=folder_name))
    )
    assert machine.tree() == before


# -- the two halves, for any QEMU -------------------------------------------------------------------------------------------
def build(machine: Folder) -> dict[str, archive.Member]:
    done = machine.run("build", scripts.passthrough_test(FUNCTIONS, folder="/srv/test"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "kernel": f"/boot/vmlinuz-{KERNEL}",
        "initrd": "/srv/test/initrd.img",
        "append": "console=ttyS0 panic=-1",
    }
    assert commands(machine) == []
    return archive.unpack((machine.root / "srv/test/initrd.img").read_bytes())


@pytest.fixture
def without_busybox(machine: Folder) -> Folder:
    """Whatever this machine has, the host has none: one without its applets is as good as none."""
    machine.command("busybox", "echo ls")
    return machine


def test_the_initramfs_holds_init_a_shell_mount_and_every_library_that_they_need(
    without_busybox: Folder, tmp_path: Path
) -> None:
    members = build(without_busybox)
    assert members["init"].data.decode() == scripts.file("passthrough_init.sh") + "\n"
    for name in ("init", "bin/sh", "bin/mount"):
        assert stat.S_ISREG(members[name].mode) and stat.S_IMODE(members[name].mode) == 0o755
    for folder in ("proc", "sys", "dev", "bin"):
        assert stat.S_ISDIR(members[folder].mode)
    for name in members:
        parent = name.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(members[parent].mode), f"{name} has no folder to lie in"
    if os.geteuid() != 0:
        pytest.skip("to start its programs in it takes root, for chroot")
    archive.extract(members, tmp_path / "guest")
    for command in (["/bin/sh", "-c", "echo started"], ["/bin/mount", "--version"]):
        done = subprocess.run(
            ["chroot", str(tmp_path / "guest"), *command], capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr


def test_a_busybox_is_shell_and_mount_in_one(machine: Folder) -> None:
    members = build(machine)
    assert members["bin/sh"].data == (machine.commands / "busybox").read_bytes()
    assert stat.S_ISLNK(members["bin/mount"].mode) and members["bin/mount"].data == b"sh"


def test_the_same_host_makes_the_same_bytes(without_busybox: Folder) -> None:
    assert build(without_busybox) == build(without_busybox)
    first = (without_busybox.root / "srv/test/initrd.img").read_bytes()
    build(without_busybox)
    assert (without_busybox.root / "srv/test/initrd.img").read_bytes() == first


def test_nobody_else_can_read_the_folder(machine: Folder) -> None:
    build(machine)
    assert stat.S_IMODE((machine.root / "srv/test").stat().st_mode) == 0o700


def test_a_library_that_is_missing_is_named(without_busybox: Folder) -> None:
    without_busybox.command("ldd", "printf '\\tlibmount.so.1 => not found\\n'")
    done = without_busybox.run("build", scripts.passthrough_test(FUNCTIONS, folder="/srv/test"))
    assert "libmount.so.1 => not found" in refusal(done)


def test_a_report_is_read_from_what_any_qemu_has_written(machine: Folder) -> None:
    script = scripts.passthrough_test(FUNCTIONS, folder="/srv/test")
    assert "found:  no /srv/test/console" in refusal(machine.run("report", script))
    machine.write("/srv/test/console", CONSOLE)
    done = machine.run("report", script)
    assert (json.loads(done.stdout)["vmid"], len(json.loads(done.stdout)["functions"])) == (None, 2)
    machine.write("/srv/test/console", CONSOLE.replace("10de:22e8", "10de:0000"))
    refusal(machine.run("report", script))
    assert (machine.root / "srv/test/console").exists() and commands(machine) == []


# -- /init -------------------------------------------------------------------------------------------------------------------
def test_init_lists_every_function_with_the_bars_that_have_an_address_and_switches_off(machine: Folder) -> None:
    for address, code in ((GPU, "0x030000"), (AUDIO, "0x040300")):
        machine.write(f"/sys/bus/pci/devices/{address}/class", f"{code}\n")
    machine.write("/proc/sys/kernel/printk", "4\t4\t1\t7\n")
    machine.command("mount", 'echo "$*" >>"$HOMELAB_SYSROOT/mounts"')
    done = subprocess.run(
        ["sh", "-c", scripts.file("passthrough_init.sh")],
        env=machine.environment | {"HOMELAB_SYSROOT": str(machine.root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if line.strip()] == [
        "homelab-passthrough BEGIN",
        f"homelab-passthrough {GPU} 10de:2b85 030000 0:67108864:0x0000000000040200 1:34359738368:0x000000000014220c"
        " 5:128:0x0000000000040101",
        f"homelab-passthrough {AUDIO} 10de:22e8 040300 0:16384:0x0000000000040200",
        "homelab-passthrough END 2",
    ]
    assert machine.read("/mounts") == f"-t proc proc {machine.root}/proc\n-t sysfs sysfs {machine.root}/sys\n"
    assert (machine.read("/proc/sysrq-trigger"), machine.read("/proc/sys/kernel/printk")) == ("o\n", "1\n")
    # More than the serial line's buffer comes after the last word, so that a power-off can't cut it.
    assert len(done.stdout.partition("END 2\n")[2]) > 4096
