"""Ids that somebody else gives to vfio-pci: where they stand, and which functions they name."""

from __future__ import annotations

import json

import pytest

from homelab.host import vfio_ids
from tests.scripts.conftest import Folder
from tests.unit.hosts import desktop

CARD = "sys/bus/pci/devices/0000:01:00.0"


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ("10de:2b85", True),
        ("10de:22e8,10DE:2B85", True),
        ("0x10de:0x2b85", True),
        ("10de:2b8", False),
        ("10de:ffffffff", True),
        ("1002:ffffffff", False),
        ("10de:2b85:1043:88e2", True),
        ("10de:2b85:1043", True),
        ("10de:2b85:1462:88e2", False),
        ("10de:ffffffff:ffffffff:ffffffff:00030000:ffff00ff", True),
        ("10de:ffffffff:ffffffff:ffffffff:00040300:ffffffff", False),
        ("10de", False),
        ("10de:*", False),
        ("10de:a[$(touch x)0]", False),
        ("", False),
    ],
)
def test_a_function_is_named_as_the_kernel_has_it_here_and_on_a_host(folder: Folder, ids: str, named: bool) -> None:
    assert vfio_ids.names(ids, "10de:2b85", "1043:88e2", "030000") is named
    about = {"vendor": "10de", "device": "2b85", "subsystem_vendor": "1043", "subsystem_device": "88e2"}
    for name, value in (about | {"class": "030000"}).items():
        folder.write(f"{CARD}/{name}", f"0x{value}\n")
    said = folder.bash(f"names_device '{ids}' \"$ROOT/{CARD}\" && echo yes || echo no", parts=["vfio_ids"]).stdout
    assert said.strip() == ("yes" if named else "no")


def test_ids_are_found_wherever_somebody_has_set_them(folder: Folder) -> None:
    folder.write(
        "etc/modprobe.d/a.conf",
        "# options vfio-pci ids=1:1\nsoftdep nvidia pre: vfio-pci\n"
        'options vfio_pci disable_vga=1 ids="10de:1,10DE:2"\n'
        "options vfio-pci \\\n  ids=10de:3\noptions vfio-pci-core ids=1:1\nvfio-pci ids=1:1\n",
    )
    folder.write("etc/modprobe.d/b.conf", "options vfio-pci disable_idle_d3=1\n  options  vfio-pci ids=10de:4")
    folder.write("etc/modprobe.d/b.conf.bak", "options vfio-pci ids=1:1\n")
    (folder.root / "etc/modprobe.d/c.conf").write_bytes(b"options vfio-pci \\\r\nids=10de:5\r\n")
    folder.write("etc/initramfs-tools/modules", "# vfio_pci ids=1:1\nvfio\nvfio_pci ids=10de:6\n")
    said = folder.bash("bound_by_others", parts=["read/devices"]).stdout
    found = json.loads("{" + said.lstrip(",") + "}")
    assert found["vfio_files"] == {
        "/etc/modprobe.d/a.conf": "10de:1,10DE:2,10de:3",
        "/etc/modprobe.d/b.conf": "10de:4",
        "/etc/modprobe.d/c.conf": "10de:5",
        "/etc/initramfs-tools/modules": "10de:6",
    }
    assert found["vfio_ids"] == "10de:1,10DE:2,10de:3,10de:4,10de:5,10de:6"


@pytest.mark.parametrize(
    ("name", "text", "binds"),
    [
        ("pci-0000:01:00.0", "vfio-pci\n", True),
        ("0000:01:00.0", "vfio-pci\n", True),
        ("pci-0000:01:00.0", "nouveau\n", False),
        ("pci-0000:01:00.1", "vfio-pci\n", False),
    ],
)
def test_what_driverctl_binds_at_each_start_is_known_here_and_on_a_host(
    folder: Folder, name: str, text: str, binds: bool
) -> None:
    folder.write(f"etc/driverctl.d/{name}", text)
    said = folder.bash("has_override 0000:01:00.0 && echo yes || echo no", parts=["vfio_ids"]).stdout
    assert said.strip() == ("yes" if binds else "no")
    found = json.loads("{" + folder.bash("bound_by_others", parts=["read/devices"]).stdout.lstrip(",") + "}")
    facts = desktop(vfio_mentions=found["vfio_mentions"])
    assert facts.has_override(facts.by_address["0000:01:00.0"]) is binds
