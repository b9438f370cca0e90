"""From an address and a password to a working card, and back, on a Windows PC: what is asserted is the host's state and the engine's event log."""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from lab import Lab
from tests.e2e import recording
from tests.waiting import PATIENCE
from tests.windows import first_hour
from tests.windows.pc import Pc
from tests.windows.person import Person

pytestmark = [pytest.mark.windows, pytest.mark.timeout(10 * PATIENCE)]

CARD = "0000:01:00.0"
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
    """As docs/windows.md has it: the installed package, in an empty folder. The password comes in once; from then on a key in
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
    assert lab.snapshot() == stock


def test_containers_from_a_checkout_with_windows_line_ends(windows_pc: Pc, folder: Path, tmp_path: Path) -> None:
    person = Person.with_a_clone(windows_pc, folder)
    with Lab.start("phoenix", state=tmp_path / "host") as lab:
        person.init(lab, *(word for card in ("rtx5090", "rtx4090") for word in ("--card", f"{card}=901")))
        assert lab.connection["password"] not in (folder / "Pulumi.homelab.yaml").read_text(encoding="utf-8")

        first, _ = person.up()
        assert first.errors == [], first.output
        assert len(lab.run("pct exec 901 -- nvidia-smi -L").stdout.splitlines()) == 2
        assert [boot["reason"] for boot in lab.boots()] == ["start"]


def in_each_code_page(person: Person) -> None:
    """In a pipe, a card and a refused setting are shown; settings are as PowerShell 5.1 writes them with `>`, which is UTF-16."""
    settings = (person.folder / "Pulumi.homelab.yaml").read_text(encoding="utf-8")
    (person.folder / "utf-16.yaml").write_text(settings, encoding="utf-16")
    (person.folder / "refused.yaml").write_text(settings.replace("rtx5090:", "größe:"), encoding="utf-16")
    for page in ("cp850", "cp1252", "utf-8"):
        shown = person.homelab("show", "--config-file", "utf-16.yaml", encoding=page, PYTHONIOENCODING=page)
        assert "VM 103 (Sandbox)" in shown and ("├── " in shown) is (page == "utf-8"), shown
        refused = person.homelab(
            "show", "--config-file", "refused.yaml", status=2, encoding=page, PYTHONIOENCODING=page
        )
        assert "größe" in refused and "Traceback" not in refused, refused


def test_code_pages_and_ctrl_c_which_ends_a_step_where_it_waits(windows_pc: Pc, folder: Path, rtx5090: Lab) -> None:
    person, lab = Person.with_a_clone(windows_pc, folder), rtx5090
    person.init(lab, "--card", "rtx5090=103")
    in_each_code_page(person)
    with (lab.root / "run/vzdump.lock").open("w") as backup:  # for which a restart waits three minutes
        fcntl.flock(backup, fcntl.LOCK_EX)
        console, _ = person.begin_up()
        spawned = console.spawned
        deadline = time.monotonic() + PATIENCE
        while not any(re.search(r"pve-reboot +creating", line) for line in console.lines()):
            assert time.monotonic() < deadline and spawned.isalive(), "\n".join(console.lines())
            spawned.expect(pexpect.TIMEOUT, timeout=0.5)
        spawned.expect(pexpect.TIMEOUT, timeout=3)
        spawned.send("\x03")
        console.answer(status=None)
        lab.wait_idle()
    assert spawned.exitstatus != 0
    shown = "".join(console.lines())  # wherever lines are broken
    assert "wanted: the run at work that has started this step" in shown, shown
    assert [boot["reason"] for boot in lab.boots()] == ["start"]
    assert person.pulumi("up").errors == []
    assert driver(lab) == "vfio-pci"
