"""A function on the PCI bus as the kernel shows it (remote_scripts/tools/pci.py)."""

from __future__ import annotations

import pytest

from remote_scripts.tools import pci
from remote_scripts.tools.disk import Disk
from tests.agent.kit import Host

GPU = "0000:01:00.0"
FOLDER = f"{pci.DEVICES}/{GPU}"


def test_a_function_has_ids_and_a_driver(host: Host) -> None:
    system = host.system()
    assert (pci.ids_of(system, GPU), pci.driver_of(system, GPU)) == (":", "")
    host.write(f"{FOLDER}/vendor", "0x10de\n")
    host.write(f"{FOLDER}/device", "0x2b85\n")
    (host.root / FOLDER[1:] / "driver").symlink_to("../../../drivers/nvidia")
    assert (pci.ids_of(system, GPU), pci.driver_of(system, GPU)) == ("10de:2b85", "nvidia")


def test_a_driver_that_lets_go_while_it_is_asked_for_is_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "is_link", lambda *_: True)
    assert pci.driver_of(host.system(), GPU) == ""
