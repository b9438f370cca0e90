"""Boots of a whole host, with each boot loader: the one on trial, a bad one, the one without the words, and those of other kernels.

Which boot is in order: tests/agent/test_trial.py. What its timer runs: tests/agent/test_rollback.py. On a lab that runs: test_dead_mans_switch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lab.host.proxmox_boot import on_vfat
from tests import sampling
from tests.boot_layers import initramfs, iommu, vfio
from tests.kept_systems import KeptSystems
from tests.lab.boots_kit import BootingHost

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2882,0000:01:00.1=10de:22be"
WORDS = {*IOMMU.split(), VFIO}
LAYERS = (iommu(IOMMU, rollback_after=20), vfio(VFIO, rollback_after=20))
GRUB, SYSTEMD_BOOT, GRUB_BY_TOOL = "rtx5090", "intel-zfs", "zfs-grub-shim"
LOADERS = (GRUB, SYSTEMD_BOOT, GRUB_BY_TOOL)
ELAPSED = 'REBOOT_SECONDS=0 RETRY_SECONDS=0 sh "$HOMELAB_ROOT/var/lib/homelab/rollback" 20'


@pytest.fixture
def host(kept_systems: KeptSystems) -> Callable[[str], BootingHost]:
    """With an agent."""

    def made(folder: Path, scenario: str) -> BootingHost:
        host = BootingHost(folder, scenario)
        host.put_agent()
        return host

    return lambda scenario: kept_systems.take(("boots", scenario), lambda folder: made(folder, scenario))


def boot(host: BootingHost) -> set[str]:
    """Restarts it, and says with which command line."""
    return {*host.restart("power").cmdline.split()}


def kernel(host: BootingHost) -> str:
    return (host.root / "proc/sys/kernel/osrelease").read_text().strip()


@pytest.mark.parametrize("scenario", sampling.sample(LOADERS, 2, "boots"))
def test_a_boot_on_trial_is_started_once_a_bad_one_leads_back_and_a_confirmed_one_stays(
    host: Callable[[str], BootingHost], scenario: str
) -> None:
    """Also where kernels come and go meanwhile."""

    def changed(host: BootingHost, before: dict[str, bytes]) -> set[str]:
        """The files that aren't as they were, but for what is told to people."""
        now = host.files()
        told = {f"root/var/lib/homelab/{name}" for name in ("rolled-back", "wanted-boot")}
        return {path for path in {*now, *before} if now.get(path) != before.get(path)} - told

    tried = host(scenario)
    tried.all("apply", initramfs())
    before = tried.files()

    # Its kernel panics: without userland.
    tried.all("apply", *LAYERS)
    tried.machine.set_fault("panics-when", "homelab.vfio")
    assert not WORDS & boot(tried)
    assert "has ended before it was confirmed" in tried.confirm()["rolled_back"]
    assert changed(tried, before) == set()
    tried.machine.set_fault("panics-when", None)

    # Nobody confirms it, and somebody else restarts the host.
    tried.all("apply", *LAYERS)
    assert boot(tried) > WORDS | {"homelab.trial"}
    tried.machine.install_kernel("6.17.13-20-pve")
    tried.machine.remove_kernel(kernel(tried))
    assert not WORDS & boot(tried) and kernel(tried) == "6.17.13-20-pve"
    tried.output(ELAPSED)
    assert "on trial" in (tried.root / "var/lib/homelab/rolled-back").read_text()
    assert not (tried.root / "var/lib/homelab/trial").exists()

    tried.all("apply", *LAYERS)
    assert boot(tried) > WORDS
    tried.machine.install_kernel("6.17.13-21-pve")
    tried.machine.remove_kernel(kernel(tried))
    assert tried.confirm()["confirmed"]
    words = boot(tried)
    assert words > WORDS and "homelab.trial" not in words and kernel(tried) == "6.17.13-21-pve"


@pytest.fixture
def armed(kept_systems: KeptSystems) -> BootingHost:
    """With GRUB, whose next boot is on trial."""

    def made(folder: Path) -> BootingHost:
        host = BootingHost(folder, GRUB)
        host.all("apply", LAYERS[0])
        return host

    return kept_systems.take("armed", made)


def test_an_esp_that_grub_cannot_write_starts_no_trial(armed: BootingHost) -> None:
    armed.machine.set_fault("grub-cannot-write", True)
    for _ in range(2):
        assert not WORDS & boot(armed)
    assert armed.confirm()["rolled_back"]


def test_a_trial_whose_kernel_is_gone_starts_the_first_entry(armed: BootingHost) -> None:
    kernels = (armed.root / "boot").glob("vmlinuz-*")
    max(kernels, key=lambda path: path.name.split("-")[1].split(".")).unlink()
    armed.output("update-grub")
    assert not WORDS & boot(armed)


def test_a_boot_by_another_entry_ends_the_trial(armed: BootingHost) -> None:
    """A person has chosen it, and shall not find the trial in the next boot."""
    armed.machine.next_entry = "0"
    assert not WORDS & boot(armed)
    assert "on trial" in armed.confirm()["rolled_back"] and not WORDS & boot(armed)


def test_a_pinned_kernel_is_the_one_that_is_tried(host: Callable[[str], BootingHost]) -> None:
    pinned = host(GRUB)
    oldest = sorted(path.name.removeprefix("vmlinuz-") for path in (pinned.root / "boot").glob("vmlinuz-*"))[0]
    pinned.output(f"proxmox-boot-tool kernel pin {oldest}")
    pinned.all("apply", LAYERS[0])
    assert boot(pinned) > {*IOMMU.split()} and kernel(pinned) == oldest


def test_pinning_a_kernel_still_works_beside_the_second_boot_entry(host: Callable[[str], BootingHost]) -> None:
    """proxmox-boot-tool takes the root device's id from grub.cfg by a pattern that a doubled entry would match twice."""
    machine = host(GRUB_BY_TOOL)
    machine.runs(VFIO)
    machine.all("apply", vfio(VFIO))
    machine.output("update-grub")
    version = machine.output("proxmox-boot-tool kernel list").split()[-1]
    machine.output(f"proxmox-boot-tool kernel pin {version}; proxmox-boot-tool refresh")
    pinned = (machine.root / "etc/default/grub.d/proxmox-kernel-pin.cfg").read_text()
    assert pinned.count("\n") == 1 and f"gnulinux-{version}-advanced-" in pinned
    assert machine.restart().kernel == version


def test_an_esp_that_is_full_has_its_whole_images_again(host: Callable[[str], BootingHost]) -> None:
    """As proxmox-kernel-helper 8.1.0 leaves it: a part of the first image, nothing on the second ESP, and status 1."""
    machine = host(SYSTEMD_BOOT)
    esps = sorted((machine.machine.state / "esp").iterdir())
    before = [{path: path.read_bytes() for path in esp.rglob("*") if path.is_file()} for esp in esps]
    machine.machine.set_fault("esp-bytes", sum(on_vfat(len(content)) for content in before[0].values()))
    done = machine.ask("apply", initramfs())
    assert done.returncode != 0 and "No space left on device" in done.stdout + done.stderr
    assert [{path: path.read_bytes() for path in esp.rglob("*") if path.is_file()} for esp in esps] == before
