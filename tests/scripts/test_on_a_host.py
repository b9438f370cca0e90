"""The scripts on a whole host, without SSH and Pulumi: what happens to its boot when things are not as they should be."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from homelab.host import gates, plan, remapping
from homelab.remote import scripts
from lab.machine import Machine, load_scenario
from tests.conftest import PROJECT
from tests.lab.host_kit import run_script
from tests.lab.test_real_hosts import read
from tests.unit.hosts import settings

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2882,0000:01:00.1=10de:22be"


class Host:
    """A running lab host; scripts run in its environment."""

    def __init__(self, state: Path, scenario: str) -> None:
        self.machine = Machine.install(state, load_scenario(scenario))
        self.root = state / "root"
        self.machine.boot("start")

    def run(self, verb: str, script: str) -> subprocess.CompletedProcess[str]:
        return run_script(self.machine, verb, script)

    def bash(self, text: str) -> str:
        done = subprocess.run(["bash", "-c", text], env=self.machine.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def restart(self) -> None:
        self.machine.shutdown()
        assert self.machine.boot("reboot").comes_up

    def drivers(self) -> dict[str, str]:
        """PCI address -> driver."""
        devices = (self.root / "sys/bus/pci/devices").iterdir()
        return {one.name: link.readlink().name for one in devices if (link := one / "driver").is_symlink()}

    def files(self) -> dict[str, bytes]:
        """Everything that a boot reads, and our state."""
        folders = [self.root / "etc", self.root / "boot", self.root / "var/lib", self.machine.state / "esp"]
        return {
            str(path): path.read_bytes()
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


@pytest.fixture
def host(tmp_path: Path) -> Callable[[str], Host]:
    return lambda scenario: Host(tmp_path / scenario, scenario)


def test_a_file_that_is_read_later_and_takes_our_words_away_is_named_and_nothing_is_changed(
    host: Callable[[str], Host],
) -> None:
    desktop = host("rtx5090")
    (desktop.root / "etc/default/grub.d/zzz-own.cfg").write_text('GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    before = desktop.files()
    done = desktop.run("apply", scripts.cmdline("iommu", IOMMU, 0))
    assert done.returncode == 1
    assert "what sorts after zz-homelab in /etc/default/grub.d" in done.stdout
    assert desktop.files() == before


def test_an_iommu_word_with_more_options_is_left_to_its_owner(host: Callable[[str], Host]) -> None:
    desktop = host("rtx5090")
    default = desktop.root / "etc/default/grub"
    default.write_text(default.read_text().replace('"quiet"', '"quiet intel_iommu=on,sm_on iommu=pt"'))
    desktop.bash("update-grub")
    before = desktop.files()
    done = desktop.run("apply", scripts.cmdline("iommu", "intel_iommu=on iommu=pt", 0))
    assert (done.returncode, '"added":[]' in done.stdout) == (0, True)
    assert desktop.files() == before


@pytest.mark.parametrize("scenario", ["rtx5090", "intel-zfs", "zfs-grub-shim"])
def test_applied_twice_and_taken_back_twice_is_as_once(host: Callable[[str], Host], scenario: str) -> None:
    machine = host(scenario)
    stock = machine.files()
    layers = [
        scripts.cmdline("iommu", IOMMU, 0),
        scripts.vfio_initramfs(True, 0),
        scripts.cmdline("vfio", VFIO, 0, entry=True),
    ]
    for script in layers:
        assert machine.run("apply", script).returncode == 0
    configured = machine.files()
    for script in layers:
        assert '"changed":"no"' in machine.run("apply", script).stdout
    assert machine.files() == configured
    for _ in range(2):
        for script in reversed(layers):
            assert machine.run("revert", script).returncode == 0
    assert machine.files() == stock


# Scenario -> the slot that its stack gives to a VM. tests/e2e/test_converge.py has more, with the engine.
SLOTS = {
    "rtx5090": "0000:01:00",
    "wtr-max": "0000:01:00",
    "two-identical": "0000:1e:00",
    "four-functions": "0000:01:00",
    "zfs-grub-shim": "0000:01:00",
    "iommu-off": "0000:03:00",
}


# Scenario -> what the refusal names, with the cards of its stack.
REFUSED = {
    "crowded-group": "nvme0n1",
    "nic-in-group": "network card",
    "firmware-off": "switch on Intel VT-d",
    "z370-two-cards-one-group": "graphics card",
    "one-to-one": "mapped 1:1",
}


@pytest.mark.parametrize("scenario", REFUSED)
def test_a_host_that_would_be_brought_down_is_refused(host: Callable[[str], Host], scenario: str) -> None:
    machine = host(scenario)
    about = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{scenario}.yaml").read_text())
    slots, errors = gates.check(read(machine.machine), settings(about["gpus"]))
    assert slots and REFUSED[scenario] in "\n".join(map(str, errors))


def test_an_id_that_two_cards_have_asks_for_an_address(host: Callable[[str], Host]) -> None:
    machine = host("two-identical")
    (error,) = gates.check(read(machine.machine), settings({"g": {"match": "10de:2204"}}))[1]
    assert "2: 0000:1d:00, 0000:1e:00" in error.found and 'add `address: "0000:1d:00"`' in error.next


def test_a_boot_partition_without_room_is_refused(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    machine.machine.set_fault("boot-free-mb", 0)
    (error,) = gates.check(read(machine.machine), settings({"g": {"match": "10de:2b85"}}))[1]
    assert "room on /boot for a new initramfs" in error.wanted and error.found == "0 MiB free"


@pytest.mark.parametrize("scenario", SLOTS)
def test_a_host_is_bound_by_what_is_planned_for_it_and_given_back(host: Callable[[str], Host], scenario: str) -> None:
    machine = host(scenario)
    stock, before = machine.files(), machine.drivers()
    about = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{scenario}.yaml").read_text())
    wanted = settings(about["gpus"])
    want = plan.wanted(remapping.to_be(read(machine.machine), wanted), wanted)
    layers = [
        scripts.iommu_cmdline(want.iommu_words),
        scripts.vfio_initramfs(bool(want.vfio_words)),
        scripts.vfio_cmdline(want.vfio_words),
    ]
    for script in layers:
        assert machine.run("apply", script).returncode == 0
    machine.restart()
    bound = {address for address, driver in machine.drivers().items() if driver == "vfio-pci"}
    assert bound == {path.name for path in (machine.root / "sys/bus/pci/devices").glob(f"{SLOTS[scenario]}.*")}
    assert {address: driver for address, driver in machine.drivers().items() if address not in bound} == {
        address: driver for address, driver in before.items() if address not in bound
    }
    found = read(machine.machine)
    assert plan.verify(found, wanted, want) == []
    # What its boot is to have is noted by whoever restarts it (reboot_host.sh): nobody did.
    assert {layer for layer, lines in plan.drift(found, want).items() if lines} == {"boot"}
    again = plan.wanted(remapping.to_be(found, wanted), wanted)
    assert (again.words, again.functions) == (want.words, want.functions)
    for script in reversed(layers):
        assert machine.run("revert", script).returncode == 0
    assert machine.files() == stock
    machine.restart()
    assert machine.drivers() == before


@pytest.mark.parametrize(
    ("scenario", "generated", "step", "script"),
    [
        ("rtx5090", "root/boot/grub/grub.cfg", "boot", scripts.cmdline("iommu", IOMMU, 0)),
        ("intel-zfs", "esp/*/loader/entries/proxmox-*.conf", "boot", scripts.cmdline("iommu", IOMMU, 0)),
        ("rtx5090", "root/boot/initrd.img-*", "initramfs", scripts.vfio_initramfs(True, 0)),
    ],
)
def test_a_power_cut_before_a_file_was_generated_is_made_good(
    host: Callable[[str], Host], scenario: str, generated: str, step: str, script: str
) -> None:
    machine = host(scenario)
    old = {path: path.read_bytes() for path in machine.machine.state.glob(generated)}
    machine.run("apply", script)
    configured = machine.files()
    assert old and all(path.read_bytes() != text for path, text in old.items())
    for path, text in old.items():
        path.write_bytes(text)
    pending = machine.root / "var/lib/homelab/pending" / step
    pending.parent.mkdir()
    pending.touch()
    assert machine.run("apply", script).returncode == 0
    assert machine.files() == configured


def test_an_initramfs_that_fails_for_one_kernel_leaves_no_file_of_ours_and_is_mended_by_the_next_run(
    host: Callable[[str], Host],
) -> None:
    machine = host("rtx5090")
    stock = machine.files()
    oldest = sorted(path.name.removeprefix("vmlinuz-") for path in (machine.root / "boot").glob("vmlinuz-*"))[0]
    machine.machine.set_fault("update-initramfs", f"fail:{oldest}")
    done = machine.run("apply", scripts.vfio_initramfs(True, 0))
    assert done.returncode == 1 and done.stdout.startswith("wanted: the initramfs of every installed kernel made anew")
    left = {path.relative_to(machine.root).as_posix() for path in map(Path, machine.files()) if str(path) not in stock}
    assert left == {"var/lib/homelab/pending/initramfs"}, "with the old files it failed, too: that is still to be done"
    machine.machine.clear_faults()
    assert machine.run("revert", scripts.cmdline("iommu", IOMMU, 0)).returncode == 0, "whichever script comes next"
    assert machine.files() == stock


def test_an_initramfs_that_a_power_cut_left_empty_is_made_anew_and_half_ones_go(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    machine.run("apply", scripts.vfio_initramfs(True, 0))
    configured = machine.files()
    image = sorted((machine.root / "boot").glob("initrd.img-*"))[0]
    image.write_bytes(b"")
    image.with_name(image.name + ".new").write_bytes(b"")
    image.with_name("initrd.img-of-a-kernel-that-is-gone.new").write_bytes(b"half")
    assert machine.run("apply", scripts.vfio_initramfs(True, 0)).returncode == 0
    assert machine.files() == configured


def test_a_menu_without_a_kernel_is_no_menu(host: Callable[[str], Host], tmp_path: Path) -> None:
    """A broken command makes update-grub's scripts find no kernel, and update-grub end well."""
    machine = host("rtx5090")
    stock = machine.files()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "update-grub").write_text('#!/bin/bash\nsed -i /linux/d "$ROOT/boot/grub/grub.cfg"\n')
    (broken / "update-grub").chmod(0o755)
    script = scripts.cmdline("iommu", IOMMU, 0)
    done = machine.run("apply", f'PATH={broken}:"$PATH"\n{script}')
    assert (done.returncode, "a menu without any kernel; the one from before is back" in done.stdout) == (1, True)
    left = {path for path, text in machine.files().items() if stock.get(path) != text}
    assert {Path(path).name for path in left} <= {"boot"}  # that it must be made anew
    assert machine.run("revert", script).returncode == 0
    assert machine.files() == stock


def test_pinning_a_kernel_still_works_beside_the_second_boot_entry(host: Callable[[str], Host]) -> None:
    """proxmox-boot-tool takes the root device's id from grub.cfg by a pattern that a doubled entry would match twice."""
    machine = host("zfs-grub-shim")
    machine.run("apply", scripts.cmdline("vfio", VFIO, 0, entry=True))
    machine.bash("update-grub")
    kernel = machine.bash("proxmox-boot-tool kernel list").split()[-1]
    machine.bash(f"proxmox-boot-tool kernel pin {kernel}; proxmox-boot-tool refresh")
    pinned = (machine.root / "etc/default/grub.d/proxmox-kernel-pin.cfg").read_text()
    assert pinned.count("\n") == 1 and f"gnulinux-{kernel}-advanced-" in pinned
    machine.machine.shutdown()
    assert machine.machine.boot("reboot").kernel == kernel


def test_an_esp_that_is_gone_is_passed_over_as_proxmox_does(host: Callable[[str], Host]) -> None:
    machine = host("intel-zfs")
    uuids = machine.root / "etc/kernel/proxmox-boot-uuids"
    uuids.write_text(uuids.read_text() + "DEAD-BEEF\n")
    assert machine.run("apply", scripts.cmdline("vfio", VFIO, 0, entry=True)).returncode == 0
    for esp in (machine.machine.state / "esp").iterdir():
        entries = {path.name for path in (esp / "loader/entries").iterdir()}
        ours = {name for name in entries if name.startswith("homelab-without-gpu-")}
        assert len(ours) == len(entries) - len(ours) > 0
        assert all("homelab.vfio" not in (esp / "loader/entries" / name).read_text() for name in ours)
        assert all("without GPU passthrough" in (esp / "loader/entries" / name).read_text() for name in ours)


def test_a_boot_without_a_switch_can_be_confirmed(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    before = machine.files()
    assert machine.run("apply", scripts.confirm_boot()).returncode == 0
    assert machine.files() == before


def test_taking_everything_back_disarms_the_switch_too(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    stock = machine.files()
    words = scripts.cmdline("iommu", IOMMU, 0)
    machine.run("apply", words)
    machine.machine.set_fault("reboot-ignored", True)
    assert '"reboot":"yes"' in machine.run("apply", scripts.reboot_host("auto", IOMMU, [], 600)).stdout
    assert (machine.root / "etc/systemd/system/homelab-rollback.timer").exists()
    machine.run("revert", words)
    assert machine.files() == stock
    assert not list((machine.root / "etc/systemd/system").rglob("homelab*"))


def test_a_manual_reboot_is_left_to_the_person_and_has_its_switch(host: Callable[[str], Host]) -> None:
    machine = host("rtx5090")
    machine.run("apply", scripts.cmdline("iommu", IOMMU, 0))
    done = machine.run("apply", scripts.reboot_host("manual", IOMMU, [], 600))
    assert '"reboot":"manual"' in done.stdout and "VM 103 (Sandbox)" in done.stdout
    assert list((machine.root / "etc/systemd/system").rglob("homelab*"))
