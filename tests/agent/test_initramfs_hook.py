"""remote_scripts/files/initramfs_hook.sh, as mkinitramfs runs it: plain sh, once for each kernel."""

from __future__ import annotations

import pytest

from homelab.remote import scripts
from tests.agent.kit import Host, bash

NEEDED = "vfio vfio_iommu_type1 vfio_pci"


def added(host: Host, version: str, arguments: str = "") -> list[str]:
    """The modules that the hook adds to a kernel's initramfs."""
    functions = 'manual_add_modules() { echo "$@" >>"$HOMELAB_ROOT/added"; }\n'
    host.write("/usr/share/initramfs-tools/hook-functions", functions)
    done = bash(host, f"exec sh -s {arguments}", scripts.file("initramfs_hook.sh"), version=version)
    assert done.returncode == 0, done.stderr
    return host.read("/added").split() if host.exists("/added") else []


@pytest.mark.parametrize("version", ["5.15.158-2-pve", "6.1.0-13-amd64", "4.19-own"])
def test_before_6_2_vfio_virqfd_is_a_module_of_its_own(host: Host, version: str) -> None:
    assert added(host, version) == [*NEEDED.split(), "vfio_virqfd"]


@pytest.mark.parametrize("version", ["6.2.16-3-pve", "6.17.2-1-pve", "6.2-rc1", "6.14+own", "7.0.0-1-pve"])
def test_from_6_2_on_nobody_asks_for_a_module_that_is_gone(host: Host, version: str) -> None:
    assert added(host, version) == NEEDED.split()


def test_asked_what_must_run_before_it_the_hook_names_nothing_and_adds_nothing(host: Host) -> None:
    assert added(host, "6.17.2-1-pve", "prereqs") == []
