"""What a reading says of the lab's systems (tests/agent/test_read_system.py has folders that stand for others)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.both.read_system import Wanted
from remote_scripts.both.stack_folder import Wanted as StackFolder
from tests import sampling
from tests.kept_systems import KeptSystems
from tests.lab.host_kit import Host
from tests.lab.nvidia_kit import GUESTS, Container, ProxmoxHost, VirtualMachine

MOK = "/var/lib/dkms/mok.pub"
# The kernel of Ubuntu 26.04 knows the card.
WITH_NOUVEAU = "ubuntu-26.04"


@pytest.fixture
def phoenix(kept_systems: KeptSystems) -> Container:
    """A container of a host with a driver."""
    return kept_systems.take(Container, Container)


@pytest.mark.parametrize(
    "distribution", [WITH_NOUVEAU, *sampling.sample([name for name in GUESTS if name != WITH_NOUVEAU], 1, "read")]
)
def test_a_vm(kept_systems: KeptSystems, distribution: str) -> None:
    vm = kept_systems.take(("vm", distribution), lambda folder: VirtualMachine(folder, distribution))
    system = vm.read()
    assert f"{system.distribution}-{system.version}" == distribution
    assert system.kernels == (system.running,) == (vm.output("uname -r").strip(),)
    assert system.secure_boot is False and system.mok_enrolled is None
    assert set(system.cards or ()) >= {"10de:2b85"}
    assert (system.loaded, system.nouveau) == ("", distribution == WITH_NOUVEAU)
    assert system.host_driver is None and system.runtimes == ()


def test_a_vms_secure_boot_its_key_and_the_runtimes_that_packages_bring(tmp_path: Path) -> None:
    vm = VirtualMachine(tmp_path, system={"secure-boot": True, "mok-enrolled": True})
    assert (vm.read().secure_boot, vm.read().mok_enrolled) == (True, True)
    vm.enrolled(False)
    assert vm.read().mok_enrolled is False
    (vm.root / MOK.lstrip("/")).unlink()
    vm.output("apt-get -qq update && apt-get -qq install -y docker.io podman")
    system = vm.read()
    assert (system.mok_enrolled, sorted(system.runtimes or ())) == (False, ["docker", "podman"])
    vm.output("apt-get -qq remove -y docker.io containerd")
    assert sorted(vm.read().runtimes or ()) == ["podman"]


def test_a_host_with_its_kernels_and_what_has_the_card(tmp_path: Path) -> None:
    host = ProxmoxHost(Host(tmp_path, "rtx5090", running=True))
    reading = host.read()
    assert (reading.distribution, reading.version) == ("debian", "13")
    assert reading.kernels == ("6.14.11-4-pve", "6.17.2-1-pve")
    assert reading.nouveau is True
    assert reading.boot_id == (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    assert not reading.steps and not reading.drift


def test_of_a_host_with_a_driver_cards_that_vms_get_are_not_its_own_until_they_come_back(phoenix: Container) -> None:
    host = ProxmoxHost(phoenix.host)
    asked, start = len(host.host.programs()), time.monotonic()
    reading = host.read()
    # Generous: the lab's programs start a Python each, and this machine may be busy.
    assert time.monotonic() - start < 15
    assert not [line for line in host.host.programs()[asked:] if line["program"] == "apt-get"]
    assert reading.libraries == reading.loaded == "580.105.08"
    assert {"10de:2b85", "10de:2684"} <= set(reading.cards or ())
    cards = host.read(passed=("0000:01:00",)).cards or ()
    assert "10de:2b85" not in cards and "10de:2684" in cards

    device = "$HOMELAB_ROOT/sys/bus/pci/devices/0000:01:00.0"
    host.output(
        f"modprobe vfio-pci; echo vfio-pci >{device}/driver_override; echo 0000:01:00.0 >{device}/driver/unbind"
    )
    host.output("echo 0000:01:00.0 >$HOMELAB_ROOT/sys/bus/pci/drivers_probe")

    def counts(**about: Any) -> bool:
        return "10de:2b85" in (host.read(**about).cards or ())

    assert counts(staying=("0000:01:00",)) and not counts(released=True)
    running = host.root / "proc/cmdline"
    running.write_text(f"{running.read_text()} homelab.vfio=0000:01:00.0=10de:2b85")
    assert counts(released=True) and not counts() and not counts(released=True, passed=("0000:01:00",))
    # Another card is there by now, which isn't bound by that word.
    running.write_text(running.read_text().replace("=10de:2b85", "=10de:2684"))
    assert not counts(released=True)


def test_a_container_has_the_cards_whose_nodes_it_has_and_one_that_is_off_or_gone_is_named(phoenix: Container) -> None:
    system = phoenix.read()
    assert (system.distribution, system.version) == ("ubuntu", "24.04")
    assert system.cards == ("10de:2b85",), "nvidia0 is the first card"
    assert system.host_driver == "580.105.08" and system.kernels == ()
    phoenix.host.output("pct stop 901")
    text = phoenix.layer("read", "read_system", Wanted()).stdout
    assert "container 901 running" in text and "pct start 901" in text
    phoenix.host.output("pct destroy 901 --force 1 2>/dev/null || rm $HOMELAB_ROOT/etc/pve/lxc/901.conf")
    assert "wanted: container 901\n" in phoenix.layer("read", "read_system", Wanted()).stdout
    # Nothing is to be taken out of it.
    taken = phoenix.layer("revert", "stack_folder", StackFolder(owner="stack"))
    assert taken.stdout.strip() == '{"reverted":"nothing"}'
