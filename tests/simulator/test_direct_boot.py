"""VMs that boot a kernel and an initramfs of their `args`, started by qm as a script calls it, and by the API."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import Lab
from lab.host import archive
from lab.host.archive import Member
from lab.state import process_start_time
from tests.lab.host_kit import Host
from tests.waiting import wait_until

KERNEL = "/boot/vmlinuz-6.17.2-1-pve"
SAYS = "#!/bin/sh\nroot=$HOMELAB_SYSROOT\n"
OFF = 'echo o >"$root/proc/sysrq-trigger"\nread -r _\n'
ARGS = f"-kernel {KERNEL} -initrd /srv/initrd.img -append 'console=ttyS0 panic=-1' -serial file:/srv/console -no-reboot"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    machine = Host(tmp_path / "lab", "rtx5090", running=True)
    (machine.root / "srv").mkdir(exist_ok=True)
    return machine


def put_initrd(host: Host, init: str, *, mode: int = 0o100755, programs: tuple[str, ...] = ("sh", "mount")) -> None:
    members = {"init": Member(mode, init.encode()), "bin": Member(0o040755, b"")}
    members |= {f"bin/{name}": Member(0o100755, b"#!/bin/false\n") for name in programs}
    (host.root / "srv/initrd.img").write_bytes(archive.pack(members))


def start(host: Host, args: str = ARGS, *options: str) -> None:
    host.output(f'qm create 500 --machine q35 --vga none {" ".join(options)} --args "{args}" && qm start 500')


def console(host: Host) -> str:
    return (host.root / "srv/console").read_bytes().decode()


def until_off(host: Host) -> str:
    """Wait for the VM's own end; what came on its console."""
    wait_until(lambda: "stopped" in host.output("qm status 500"))
    return console(host)


def until_says(host: Host, text: str) -> str:
    wait_until(lambda: (host.root / "srv/console").exists() and text in console(host))
    return console(host)


def test_init_runs_in_a_tree_of_the_guest_s_own_and_switches_it_off(host: Host) -> None:
    put_initrd(
        host,
        f'{SAYS}mount -t proc proc "$root/proc"\nmount -t sysfs sysfs "$root/sys"\nread -r words <"$root/proc/cmdline"\n'
        f'echo "words: $words"\necho "$root"/sys/bus/pci/devices/*\n{OFF}',
    )
    start(host, ARGS, "--hostpci0 0000:01:00,pcie=1")
    said = until_off(host)
    assert "\r\nwords: console=ttyS0 panic=-1\r\n" in said
    assert "/0000:01:00.0 " in said and "/0000:01:00.1" in said and "0000:02:00.0" not in said
    assert said.startswith("[    0.000000] Linux version 6.17.2-1-pve")
    assert host.output('cat "$HOMELAB_ROOT/run/qemu-server/pci-id-reservations"') == ""


def test_proc_and_sys_are_empty_until_they_are_mounted(host: Host) -> None:
    put_initrd(host, f'{SAYS}echo "before: $(echo "$root"/sys/*)"\n')
    start(host)
    assert "before: " in (said := until_off(host)) and "sys/*" in said
    assert "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000" in said


def test_only_what_the_initramfs_holds_can_be_called(host: Host) -> None:
    put_initrd(host, f'{SAYS}mount -t proc proc "$root/proc" 2>&1\ncat /dev/null 2>&1\n', programs=("sh",))
    start(host)
    said = until_off(host)
    assert "mount: not found" in said and "cat: not found" in said


def test_a_kernel_without_the_serial_console_says_nothing_there(host: Host) -> None:
    put_initrd(host, f'{SAYS}mount -t proc proc "$root/proc"\necho hello\n{OFF}')
    start(host, ARGS.replace("console=ttyS0 ", ""))
    assert until_off(host) == ""


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (KERNEL, "qemu: could not open kernel file '/boot/vmlinuz-none': No such file or directory"),
        ("/srv/initrd.img", "qemu: error reading initrd /boot/vmlinuz-none: Failed to open file"),
        ("/srv/console", "file:/none/console: Could not open '/none/console': No such file or directory"),
    ],
)
def test_what_qemu_misses_fails_the_start_in_its_words(host: Host, missing: str, words: str) -> None:
    put_initrd(host, f"{SAYS}{OFF}")
    args = ARGS.replace(missing, "/none/console" if missing == "/srv/console" else "/boot/vmlinuz-none")
    done = host.run(f'qm create 500 --machine q35 --hostpci0 0000:01:00,pcie=1 --args "{args}" && qm start 500')
    assert done.returncode == 255 and words in done.stderr
    assert done.stderr.endswith("start failed: QEMU exited with code 1\n")
    assert "stopped" in host.output("qm status 500")
    assert host.output('cat "$HOMELAB_ROOT/run/qemu-server/pci-id-reservations"') == ""


def test_an_initramfs_that_is_none_ends_in_a_panic_and_with_it_the_vm(host: Host) -> None:
    host.write("/srv/initrd.img", "no archive")
    start(host)
    said = until_off(host)
    assert "Initramfs unpacking failed: invalid magic at start of compressed archive" in said
    assert "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)" in said


@pytest.mark.parametrize(
    ("init", "mode", "programs", "error"),
    [
        (f"{SAYS}{OFF}", 0o100644, ("sh",), "-13"),
        (f"{SAYS}{OFF}", 0o100755, ("dash",), "-2"),
        ("echo $HOMELAB_SYSROOT", 0o100755, ("sh",), "-8"),
    ],
)
def test_an_init_that_the_kernel_cant_start_is_a_panic(
    host: Host, init: str, mode: int, programs: tuple[str, ...], error: str
) -> None:
    put_initrd(host, init, mode=mode, programs=programs)
    start(host)
    said = until_off(host)
    assert f"Failed to execute /init (error {error})" in said and "No working init found." in said


def test_an_init_that_knows_no_prefix_is_never_run_on_this_machine(host: Host, tmp_path: Path) -> None:
    put_initrd(host, f"#!/bin/sh\ntouch {tmp_path}/touched\n")
    start(host)
    until_says(host, "Not run.")
    assert "running" in host.output("qm status 500") and not (tmp_path / "touched").exists()
    host.output("qm stop 500")


def test_a_panic_without_panic_or_without_no_reboot_is_no_end(host: Host) -> None:
    for number, args in enumerate((ARGS.replace(" panic=-1", ""), ARGS.replace(" -no-reboot", ""))):
        host.write("/srv/initrd.img", "no archive")
        start(host, args)
        until_says(host, "Kernel panic")
        assert "running" in host.output("qm status 500"), number
        host.output("qm stop 500 && qm destroy 500 && rm $HOMELAB_ROOT/srv/console")


def test_a_boot_that_hangs_says_nothing_and_the_vm_runs(host: Host) -> None:
    put_initrd(host, SAYS + OFF)
    host.machine.set_fault("guest-boot-hangs", True)
    start(host)
    assert "running" in host.output("qm status 500") and console(host) == ""
    assert "process" not in host.machine._host().machine["guests"]["500"]


def test_a_vm_that_is_stopped_ends_with_all_that_ran_in_it(host: Host) -> None:

    def environment(process: Path) -> bytes:
        try:
            return (process / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return b""  # ended meanwhile, or another user's

    put_initrd(host, f"{SAYS}/bin/sleep 600 &\nwait\n")
    start(host)
    until_says(host, "Run /init")
    [pid, _] = host.machine._host().machine["guests"]["500"]["process"]
    assert Path(f"/proc/{pid}").exists()
    host.output("qm stop 500 && qm destroy 500")
    own = str(host.machine.state).encode()
    wait_until(lambda: not any(own in environment(path) for path in Path("/proc").glob("[0-9]*")))
    assert not (host.machine.state / "guests/500").exists()


def test_a_pipe_as_the_console_tells_its_reader_of_the_end(host: Host) -> None:
    put_initrd(host, f'{SAYS}mount -t proc proc "$root/proc"\necho hello\n{OFF}')
    done = host.output(
        f'mkfifo $HOMELAB_ROOT/srv/console; timeout 60 cat $HOMELAB_ROOT/srv/console & qm create 500 --args "{ARGS}" >&2; qm start 500; wait $!'
    )
    assert "\nhello\n" in done and done.endswith("reboot: Power down\n")


def test_a_vm_without_such_args_starts_as_ever(host: Host) -> None:
    host.output("qm create 500 --args '-cpu host -smbios type=1' && qm start 500")
    assert "running" in host.output("qm status 500")
    assert "process" not in host.machine._host().machine["guests"]["500"]


# -- with the daemon -----------------------------------------------------------------------------------------------
def test_a_vm_that_the_api_starts_boots_as_well_and_a_reboot_of_the_host_ends_it(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        host = Host.__new__(Host)
        host.machine, host.root = lab.machine, lab.root
        (lab.root / "srv").mkdir(exist_ok=True)
        put_initrd(host, f'{SAYS}mount -t proc proc "$root/proc"\necho hello\n{OFF}')
        lab.run(f'qm create 500 --machine q35 --args "{ARGS}"')
        lab.ask_api("POST", "/nodes/pve/qemu/500/status/start")
        until_says(host, "hello")
        until_off(host)
        host.write("/srv/initrd.img", "no archive")
        lab.run(
            f'qm set 500 --onboot 1 --args "{ARGS.replace(" panic=-1", "")}" && rm $HOMELAB_ROOT/srv/console && qm start 500'
        )
        until_says(host, "Kernel panic")
        [pid, started] = lab.machine._host().machine["guests"]["500"]["process"]
        assert process_start_time(pid) == started
        (lab.root / "srv/console").unlink()
        lab.reboot()
        assert process_start_time(pid) != started
        # It starts with the host, and so boots again.
        until_says(host, "Kernel panic")
        lab.run("qm stop 500 && qm destroy 500")
