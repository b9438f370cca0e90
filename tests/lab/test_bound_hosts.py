"""What is planned for whole hosts: their cards bound by it, and given back; and the hosts that are refused. With the engine: tests/e2e/test_converge.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homelab.host import gates, plan
from homelab.settings import Host as HostSettings
from tests import sampling
from tests.lab.boots_kit import BootingHost, layers_of
from tests.lab.stack_kit import gpus_of
from tests.lab.test_real_hosts import read
from tests.rows import rows
from tests.unit.hosts import settings

# Scenario -> the slot that goes to a VM, and the settings for it, if they aren't those of the scenario's own stack.
SLOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtx5090": ("0000:01:00", {}),
    "wtr-max": ("0000:01:00", {}),
    "intel-zfs": ("0000:01:00", {}),
    "two-identical": ("0000:1e:00", {}),
    "four-functions": ("0000:01:00", {}),
    "zfs-grub-shim": ("0000:01:00", {}),
    "iommu-off": ("0000:03:00", {}),
    # Its containers lose the card.
    "phoenix": ("0000:02:00", {"gpus": {"rtx4090": {"match": "10de:2684", "allowContainers": [901, 950]}}}),
    # The host's driver has both cards.
    "recorded-node": ("0000:41:00", {"gpus": {"second": {"match": "10de:2684", "address": "41:00"}}}),
    # Bound by somebody's own configuration: taken over only when asked.
    "bound-by-hand": ("0000:01:00", {"takeOver": True}),
    # As on a real host with a forgotten audio function: the ids name the card only; the IOMMU words are there.
    "half-bound": ("0000:01:00", {}),
}


def bind(machine: BootingHost, wanted: HostSettings) -> plan.Wanted:
    """What is planned for the host, applied; it takes a restart."""
    want = machine.plan(wanted)
    machine.all("apply", *layers_of(want))
    return want


@pytest.mark.parametrize(
    "scenario", ["wtr-max", *sampling.sample(sorted(SLOTS.keys() - {"wtr-max"}), 3, "bound hosts")]
)
def test_a_host_is_bound_by_what_is_planned_for_it_and_given_back(tmp_path: Path, scenario: str) -> None:
    machine = BootingHost(tmp_path, scenario)
    stock, before = machine.files(), machine.drivers()
    wanted = settings(**({"gpus": gpus_of(scenario)} | SLOTS[scenario][1]))
    want = bind(machine, wanted)
    machine.restart()
    bound = {address for address, driver in machine.drivers().items() if driver == "vfio-pci"}
    slot = SLOTS[scenario][0]
    assert bound == {path.name for path in (machine.root / "sys/bus/pci/devices").glob(f"{slot}.*")}
    assert {address: driver for address, driver in machine.drivers().items() if address not in bound} == {
        address: driver for address, driver in before.items() if address not in bound
    }
    cmdline = (machine.root / "proc/cmdline").read_text()
    if scenario == "half-bound":
        assert "homelab.vfio=0000:01:00.1=10de:22eb" in cmdline and cmdline.split().count("amd_iommu=on") == 1
        assert not [path for path in machine.files() if "zz-homelab-iommu" in path]
    if scenario == "bound-by-hand":
        assert "homelab.vfio=0000:01:00.0=10de:2b85" in cmdline
    found = read(machine.machine)
    assert not [*plan.verify(found, wanted, want)]
    # What its boot is to have is noted by whoever restarts it (the layer reboot): nobody did.
    assert not any(plan.drift(found, want).values())
    again = machine.plan(wanted)
    assert (again.words, again.functions) == (want.words, want.functions)
    machine.all("revert", *reversed(layers_of(want)))
    assert machine.files() == stock
    machine.restart()
    assert machine.drivers() == before


def test_another_card_chosen_is_bound_in_place_of_the_first(tmp_path: Path) -> None:
    machine = BootingHost(tmp_path, "two-identical")
    before = machine.drivers()
    bind(machine, settings(gpus_of("two-identical")))
    machine.restart()
    bind(machine, settings({"first": {"match": "10de:2204", "address": "1d:00", "allowConsole": True}}))
    machine.restart()
    assert machine.drivers()["0000:1d:00.0"] == "vfio-pci"
    assert machine.drivers()["0000:1e:00.0"] == before["0000:1e:00.0"]


@pytest.mark.parametrize("scenario", ["rtx5090", "intel-zfs"])
def test_the_second_boot_entry_gives_the_card_back_for_one_boot_and_a_new_kernel_is_bound(
    tmp_path: Path, scenario: str
) -> None:
    """With either loader."""
    machine = BootingHost(tmp_path, scenario)
    machine.put_agent()
    bind(machine, settings(gpus_of(scenario)))
    machine.restart()
    machine.confirm()
    bound = machine.drivers()
    assert bound["0000:01:00.0"] == "vfio-pci"
    ours = sorted(path.stem for path in machine.machine.state.glob("esp/*/loader/entries/homelab-without-gpu-*.conf"))
    machine.machine.next_entry = ours[-1] if ours else "Proxmox VE without GPU passthrough, GNU/Linux"
    machine.restart()
    assert machine.drivers() == bound | {"0000:01:00.0": "nouveau", "0000:01:00.1": "snd_hda_intel"}
    machine.restart()
    assert machine.drivers() == bound
    version = "6.17.13-21-pve"
    machine.machine.install_kernel(version)
    assert machine.restart().kernel == version
    assert machine.drivers()["0000:01:00.0"] == "vfio-pci"
    entries = machine.machine.state.glob("esp/*/loader/entries/*.conf")
    seconds = [path.read_text() for path in entries if path.name == f"homelab-without-gpu-{version}.conf"]
    assert bool(seconds) == bool(ours) and not [text for text in seconds if "homelab.vfio" in text]


# Scenario -> what the refusal names, with the cards of its stack.
REFUSED = {
    "crowded-group": "nvme0n1",
    "nic-in-group": "network card",
    "firmware-off": "switch on Intel VT-d",
    "z370-two-cards-one-group": "graphics card",
    "one-to-one": "mapped 1:1",
}


@rows("scenario", [*REFUSED])
def test_a_host_that_would_be_brought_down_is_refused(tmp_path: Path, scenario: str) -> None:
    machine = BootingHost(tmp_path / scenario, scenario)
    slots, errors = gates.check(read(machine.machine), settings(gpus_of(scenario)))
    assert slots and REFUSED[scenario] in "\n".join(map(str, errors))
