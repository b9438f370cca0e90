"""remote_scripts/files/init_top.sh, as an initramfs runs it: plain sh, on a sysfs made of files."""

from __future__ import annotations

import shutil

import pytest

from homelab.remote import scripts
from tests.agent.kit import Host, bash, command

GPU, AUDIO = "0000:01:00.0", "0000:01:00.1"
WORD = f"homelab.vfio={GPU}=10de:2b85,{AUDIO}=10de:22e8"
BUS = "/sys/bus/pci"


@pytest.fixture(autouse=True)
def stocked(host: Host) -> None:
    host.function(GPU, "0x030000", "10de:2b85")
    host.function(AUDIO, "0x040300", "10de:22e8")
    host.write(f"{BUS}/drivers_probe", "")
    host.write("/dev/kmsg", "")
    host.write("/proc/cmdline", f"root=/dev/mapper/pve-root ro {WORD} quiet\n")
    command(host, "modprobe", 'echo "$@" >>"$HOMELAB_SYSROOT/modprobe"')
    # Where busybox isn't installed, an initramfs has klibc's few commands.
    (host.root.parent / "commands/readlink").symlink_to(shutil.which("readlink") or "")


def boot(host: Host) -> None:
    # initramfs-tools has the root file system's device in ROOT: the script must not take it for a prefix.
    places = {"HOMELAB_SYSROOT": str(host.root), "ROOT": "/dev/mapper/pve-root"}
    done = bash(host, "exec /bin/sh", scripts.file("init_top.sh"), PATH=str(host.root.parent / "commands"), **places)
    assert done.returncode == 0, done.stderr


def override(host: Host, address: str) -> str | None:
    path = f"{BUS}/devices/{address}/driver_override"
    return host.read(path).strip() if host.exists(path) else None


def test_every_function_named_on_the_command_line_is_given_to_vfio_pci(host: Host) -> None:
    boot(host)
    assert (override(host, GPU), override(host, AUDIO)) == ("vfio-pci", "vfio-pci")
    assert host.read("/modprobe") == "vfio-pci\n"
    assert host.read(f"{BUS}/drivers_probe") == f"{AUDIO}\n"  # the last write; each is one


def test_another_device_at_the_address_is_left_alone_and_named(host: Host) -> None:
    host.write(f"{BUS}/devices/{GPU}/device", "0x1234\n")
    boot(host)
    assert override(host, GPU) is None
    assert override(host, AUDIO) == "vfio-pci"


def test_an_address_without_a_device_does_not_stop_the_others(host: Host) -> None:
    (host.root / f"{BUS[1:]}/devices/{GPU}/vendor").unlink()
    boot(host)
    assert override(host, AUDIO) == "vfio-pci"


def test_without_the_word_nothing_happens(host: Host) -> None:
    host.write("/proc/cmdline", "root=/dev/mapper/pve-root ro quiet\n")
    before = host.tree()
    boot(host)
    assert host.tree() == before


def test_a_built_in_driver_is_taken_off_first(host: Host) -> None:
    unbind = f"{BUS}/drivers/xhci_hcd/unbind"
    host.write(unbind, "")
    (host.root / f"{BUS[1:]}/devices/{AUDIO}/driver").symlink_to("../../drivers/xhci_hcd")
    boot(host)
    assert host.read(unbind) == f"{AUDIO}\n"


def test_a_missing_vfio_pci_keeps_other_drivers_off_nevertheless(host: Host) -> None:
    command(host, "modprobe", "exit 1")
    boot(host)
    assert override(host, GPU) == "vfio-pci"


def test_it_has_no_prerequisites_so_that_it_sorts_before_udev(host: Host) -> None:
    done = bash(host, "exec sh -s prereqs", scripts.file("init_top.sh"))
    assert (done.returncode, done.stdout) == (0, "")
    assert "homelab-vfio" < "udev"
