"""remote_scripts/files/initramfs_hook.sh, as mkinitramfs runs it: plain sh, once for each kernel."""

from __future__ import annotations

import subprocess

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder
from tests.waiting import PATIENCE

NEEDED = "vfio vfio_iommu_type1 vfio_pci"
OWN = "vfio_virqfd"


@pytest.fixture
def machine(folder: Folder) -> Folder:
    folder.write("/usr/share/initramfs-tools/hook-functions", 'manual_add_modules() { echo "$@" >>"$ROOT/added"; }\n')
    return folder


def added(machine: Folder, version: str, *arguments: str) -> list[str]:
    """The modules that the hook adds to a kernel's initramfs."""
    environment = machine.environment | {"version": version}
    command = ["sh", "-c", scripts.file("initramfs_hook.sh"), "hook", *arguments]
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
    file = machine.root / "added"
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize("version", ["5.15.158-2-pve", "6.1.0-13-amd64", "4.19-own"])
def test_before_6_2_vfio_virqfd_is_a_module_of_its_own(machine: Folder, version: str) -> None:
    assert added(machine, version) == [*NEEDED.split(), OWN]


@pytest.mark.parametrize("version", ["6.2.16-3-pve", "6.17.2-1-pve", "6.2-rc1", "6.14+own", "7.0.0-1-pve"])
def test_from_6_2_on_nobody_asks_for_a_module_that_is_gone(machine: Folder, version: str) -> None:
    assert added(machine, version) == NEEDED.split()


def test_asked_what_must_run_before_it_the_hook_names_nothing_and_adds_nothing(machine: Folder) -> None:
    assert added(machine, "6.17.2-1-pve", "prereqs") == []
