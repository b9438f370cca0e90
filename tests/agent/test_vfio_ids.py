"""Ids that somebody else gives to vfio-pci: which functions they name."""

from __future__ import annotations

from remote_scripts.boot import vfio_ids
from tests.rows import rows


@rows(
    ("ids", "named"),
    [
        ("10de:2b85", True),
        ("10de:22e8,10DE:2B85", True),
        ("0x10de:0x2b85", True),
        ("10de:2b8", False),
        ("10de:ffffffff", True),
        ("10de:2b85:", True),
        ("10de:2b85:*", True),
        ("1002:ffffffff", False),
        ("10de:2b85:1043:88e2", True),
        ("10de:2b85:1043", True),
        ("10de:2b85:1462:88e2", True),
        ("10de:ffffffff:ffffffff:ffffffff:00030000:ffff00ff", True),
        ("10de", False),
        ("10de:*", False),
        ("10de:a[$(touch x)0]", False),
        ("", False),
    ],
)
def test_a_function_is_named_by_its_vendor_and_device(ids: str, named: bool) -> None:
    assert vfio_ids.names(ids, "10de:2b85") is named
