"""A host that an older version of this program configured: this version takes it over, without need to reboot, and gives it back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests.scripts.test_on_a_host import Host

OLDER = Path(__file__).parent / "older_versions"
VERSIONS = sorted(path.name for path in OLDER.iterdir() if path.is_dir())

# What the version was told to put on the command line.
WORDS = {
    "rtx5090": ("amd_iommu=on iommu=pt", "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8"),
    "intel-zfs": ("intel_iommu=on iommu=pt", "homelab.vfio=0000:01:00.0=10de:2786,0000:01:00.1=10de:22bc"),
}
BLACKLIST = "modprobe.blacklist=nouveau,nvidia,nvidia_drm,nvidia_modeset,nvidia_uvm,nvidiafb,nova_core"
# What is generated of the older version's files, as it was then: for each boot loader what a host has.
GENERATE = "update-initramfs -u -k all && if test -s $ROOT/etc/kernel/proxmox-boot-uuids; then proxmox-boot-tool refresh; else update-grub; fi"


def left_by(version: str, scenario: str, folder: Path) -> tuple[Host, dict[str, bytes]]:
    """A running host as that version left it, and its files from before."""
    machine = Host(folder, scenario)
    stock = machine.files()
    files = OLDER / version / scenario
    for path in (one for one in files.rglob("*") if one.is_file()):
        target = machine.root / path.relative_to(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        # git keeps no more of a mode than whether it may be executed.
        target.chmod(0o600 if "var/lib/homelab" in str(target) else path.stat().st_mode & 0o755)
    return machine, stock


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scenario", WORDS)
def test_a_binding_of_an_older_version_is_taken_over_without_a_reboot_and_given_back(
    tmp_path: Path, version: str, scenario: str
) -> None:
    machine, stock = left_by(version, scenario, tmp_path / scenario)
    machine.bash(GENERATE)
    machine.machine.shutdown()
    machine.machine.boot("reboot")
    iommu, vfio = WORDS[scenario][0], f"{WORDS[scenario][1]} {BLACKLIST}"
    layers = [
        scripts.cmdline("iommu", iommu, 0),
        scripts.vfio_initramfs(True, 0),
        scripts.cmdline("vfio", vfio, 0, entry=True),
    ]
    for script in layers:
        done = machine.run("apply", script)
        assert done.returncode == 0, done.stdout
    functions = ["0000:01:00.0", "0000:01:00.1"]
    assert (
        '"reboot":"no"' in machine.run("apply", scripts.reboot_host("auto", f"{iommu} {vfio}", functions, 600)).stdout
    )
    configured = machine.files()
    for script in layers:
        assert '"changed":"no"' in machine.run("apply", script).stdout
    assert machine.files() == configured
    for script in reversed(layers):
        done = machine.run("revert", script)
        assert done.returncode == 0, done.stdout
    assert machine.files() == stock


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_of_an_older_version_is_taken_over_as_it_is_and_given_back(tmp_path: Path, version: str) -> None:
    machine, stock = left_by(version, "phoenix", tmp_path / "phoenix")
    nodes = scripts.nvidia_nodes(0)
    devices = {"METHOD": "auto", "MINORS": "0 1", "FUNCTIONS": ""}
    lines = scripts.container_gpus(901, devices, {"timeout": 60, "otherwise": "stop"}, "0")
    conf = machine.root / "etc/pve/nodes/phoenix/lxc/901.conf"
    given = conf.read_text()
    for script in (nodes, lines):
        done = machine.run("apply", script)
        assert done.returncode == 0, done.stdout
    assert conf.read_text() == given
    for script in (lines, nodes):
        done = machine.run("revert", script)
        assert done.returncode == 0, done.stdout
    assert machine.files() == stock
