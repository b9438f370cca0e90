"""remote_scripts/files/init_top.sh, as an initramfs runs it: plain sh, on a sysfs made of files."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder
from tests.waiting import PATIENCE

GPU, AUDIO = "0000:01:00.0", "0000:01:00.1"
WORD = f"homelab.vfio={GPU}=10de:2b85,{AUDIO}=10de:22e8"


@pytest.fixture
def machine(folder: Folder) -> Folder:
    for address, device in ((GPU, "0x2b85"), (AUDIO, "0x22e8")):
        folder.write(f"/sys/bus/pci/devices/{address}/vendor", "0x10de\n")
        folder.write(f"/sys/bus/pci/devices/{address}/device", f"{device}\n")
    folder.write("/sys/bus/pci/drivers_probe", "")
    folder.write("/dev/kmsg", "")
    folder.write("/proc/cmdline", f"root=/dev/mapper/pve-root ro {WORD} quiet\n")
    folder.command("modprobe", 'echo "$@" >>"$HOMELAB_SYSROOT/modprobe"')
    # Where busybox isn't installed, an initramfs has klibc's few commands.
    (folder.commands / "readlink").symlink_to(shutil.which("readlink") or "")
    return folder


def boot(machine: Folder) -> None:
    # initramfs-tools has the root file system's device in ROOT: the script must not take it for a prefix.
    environment = {"PATH": str(machine.commands), "HOMELAB_SYSROOT": str(machine.root), "ROOT": "/dev/mapper/pve-root"}
    subprocess.run(["/bin/sh", "-c", scripts.file("init_top.sh")], env=environment, check=True, timeout=PATIENCE)


def override(machine: Folder, address: str) -> str | None:
    path = machine.root / f"sys/bus/pci/devices/{address}/driver_override"
    return path.read_text().strip() if path.exists() else None


def test_every_function_named_on_the_command_line_is_given_to_vfio_pci(machine: Folder) -> None:
    boot(machine)
    assert (override(machine, GPU), override(machine, AUDIO)) == ("vfio-pci", "vfio-pci")
    assert machine.read("/modprobe") == "vfio-pci\n"
    assert machine.read("/sys/bus/pci/drivers_probe") == f"{AUDIO}\n"  # the last write; each is one


def test_another_device_at_the_address_is_left_alone_and_named(machine: Folder) -> None:
    machine.write(f"/sys/bus/pci/devices/{GPU}/device", "0x1234\n")
    boot(machine)
    assert override(machine, GPU) is None
    assert override(machine, AUDIO) == "vfio-pci"


def test_an_address_without_a_device_does_not_stop_the_others(machine: Folder) -> None:
    (machine.root / f"sys/bus/pci/devices/{GPU}/vendor").unlink()
    boot(machine)
    assert override(machine, AUDIO) == "vfio-pci"


def test_without_the_word_nothing_happens(machine: Folder) -> None:
    machine.write("/proc/cmdline", "root=/dev/mapper/pve-root ro quiet\n")
    before = machine.tree()
    boot(machine)
    assert machine.tree() == before


def test_a_built_in_driver_is_taken_off_first(machine: Folder) -> None:
    machine.write("/sys/bus/pci/drivers/xhci_hcd/unbind", "")
    (machine.root / f"sys/bus/pci/devices/{AUDIO}/driver").symlink_to("../../drivers/xhci_hcd")
    boot(machine)
    assert machine.read("/sys/bus/pci/drivers/xhci_hcd/unbind") == f"{AUDIO}\n"


def test_a_missing_vfio_pci_keeps_other_drivers_off_nevertheless(machine: Folder) -> None:
    machine.command("modprobe", "exit 1")
    boot(machine)
    assert override(machine, GPU) == "vfio-pci"


def test_it_has_no_prerequisites_so_that_it_sorts_before_udev(machine: Folder) -> None:
    done = subprocess.run(["sh", "-s", "prereqs"], input=scripts.file("init_top.sh"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "homelab-vfio" < "udev"
