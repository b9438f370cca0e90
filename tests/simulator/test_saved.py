"""A saved host comes back as it was, running: what the tests with the engine begin from."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import Lab, LabError
from lab.control import request

VM = 103


@pytest.fixture(scope="module")
def lab(shared_lab: Lab) -> Lab:
    shared_lab.wait_guest(VM)
    shared_lab.wait_idle()
    shared_lab.save()
    return shared_lab


def boots(lab: Lab) -> tuple[list[str], list[str]]:
    return [one["boot_id"] for one in lab.boots()], [one["boot_id"] for one in lab.guest_boots(VM)]


def test_host_and_guest_go_on_in_the_boots_that_they_were_in(lab: Lab) -> None:
    files, known, log = lab.snapshot(), boots(lab), lab.commands()
    lab.run(f"echo mine >/etc/mine; rm /etc/default/grub; qm stop {VM}; qm set {VM} --memory 1024")
    lab.reboot()
    lab.wait_settled(boots=len(known[0]) + 1)
    assert lab.snapshot() != files
    lab.restore()
    assert (lab.snapshot(), boots(lab), lab.commands()) == (files, known, log)
    assert (lab.root / "proc/sys/kernel/random/boot_id").read_text().strip() == known[0][-1]
    lab.wait_guest(VM)
    assert boots(lab) == known


def test_a_guest_that_was_made_since_can_be_made_again(lab: Lab) -> None:
    reached = []
    for _ in range(2):
        lab.run("qm create 104 --name new --memory 512")
        reached.append(lab.guest(104))
        lab.restore()
        assert "104" not in lab.run("qm list").stdout
    assert reached[0] == reached[1]


def test_a_fault_set_since_is_gone_and_a_host_that_is_off_runs_again(lab: Lab) -> None:
    lab.fault("no-quorum", "yes")
    request(lab.state, "poweroff")
    lab.wait_settled()
    lab.restore()
    assert lab.status()["phase"] == "up"
    assert lab.machine.faults.get("no-quorum") is None


def test_a_host_on_which_something_runs_is_not_saved(lab: Lab) -> None:
    units = "$HOMELAB_ROOT/etc/systemd/system"
    lab.run(
        f"printf '[Timer]\nOnActiveSec=300\n' >{units}/later.timer; printf '[Service]\nExecStart=true\n' >{units}/later.service"
    )
    lab.run("systemctl start later.timer")
    with pytest.raises(LabError, match="wanted it up, with nothing running"):
        lab.save()
    lab.restore()
    assert lab.machine.power() == "on"


def test_what_was_never_saved_is_not_restored(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as stock, pytest.raises(LabError, match="nothing was saved"):
        stock.restore()
