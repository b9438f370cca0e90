"""Ids that somebody else gives to vfio-pci: where they stand, and which functions they name."""

from __future__ import annotations

import pytest

from remote_scripts.shared import vfio_ids
from tests.agent.reading_kit import DRIVERCTL
from tests.scripts.conftest import Folder

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


@DRIVERCTL
def test_what_driverctl_binds_at_each_start_is_known_to_what_is_in_bash(
    folder: Folder, name: str, text: str, binds: bool
) -> None:
    folder.write(f"etc/driverctl.d/{name}", text)
    said = folder.bash("has_override 0000:01:00.0 && echo yes || echo no", parts=["vfio_ids"]).stdout
    assert said.strip() == ("yes" if binds else "no")
