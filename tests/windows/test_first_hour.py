"""From an address and a password to a working card, and back, on a Windows PC: what is asserted is the host's state and the engine's event log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab
from tests.e2e import recording
from tests.waiting import PATIENCE
from tests.windows import first_hour
from tests.windows.pc import Pc
from tests.windows.person import Person

pytestmark = [pytest.mark.windows, pytest.mark.timeout(10 * PATIENCE)]

CARD, MAPPING = "0000:01:00.0", "etc/pve/mapping/pci.cfg"
FOLDER = ("Jürgens Häuser", "lab")


def driver(lab: Lab) -> str:
    return (lab.root / "sys/bus/pci/devices" / CARD / "driver").readlink().name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FOLDER[0]).mkdir()
    return tmp_path.joinpath(*FOLDER)


@pytest.fixture
def rtx5090(tmp_path: Path) -> Iterator[Lab]:
    with Lab.start("rtx5090", state=tmp_path / "host") as lab:
        yield lab


def test_init_preview_up_refresh_show_doctor_destroy(windows_pc: Pc, folder: Path, rtx5090: Lab) -> None:
    """As docs/windows.md has it: the installed package, a project of `homelab new`. The password comes in once; from then on a key in
    %USERPROFILE%\\.ssh logs in."""
    person, lab = Person.with_the_package(windows_pc, folder), rtx5090
    person.init(lab, *first_hour.GIVEN)
    assert (person.home / ".ssh" / "homelab_ed25519").exists()

    stock = lab.snapshot()
    previewed = person.pulumi("preview")
    assert previewed.errors == [] and "reboot: one, because" in previewed.output
    assert lab.snapshot() == stock and driver(lab) == "nouveau"

    first, shown = person.up()
    assert first.errors == [] and "pve-booted" in first.changed, first.output
    assert driver(lab) == "vfio-pci"
    assert [boot["reason"] for boot in lab.boots()] == ["start", "reboot"]
    assert "hostpci0: mapping=rtx5090,pcie=1" in lab.run("qm config 103").stdout

    recording.hold_up("windows", shown)

    again = person.pulumi("up", "--refresh")
    assert again.errors == [] and again.changed == set(), again.output
    recording.hold_show("windows", person.homelab_at_a_console("show"), folder, lab)
    assert "all is well" in "\n".join(person.homelab_at_a_console("doctor"))

    gone = person.pulumi("destroy")
    assert gone.errors == [] and "pve-booted" in gone.changed, gone.output
    left = lab.snapshot()
    # Proxmox VE leaves the list of mappings behind, empty.
    assert (lab.root / MAPPING).read_text(encoding="utf-8") == "" and left.pop(MAPPING)
    assert left == stock
