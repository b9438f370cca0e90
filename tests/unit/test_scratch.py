"""tests/scratch.py: where the tests' temporary files are."""

from __future__ import annotations

import pytest

from tests import scratch

MOUNTS = "/dev/vda / ext4 rw,relatime 0 0\ntmpfs /dev/shm tmpfs {} 0 0\n"
MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: {} kB\n"
ROOM = 8 * 2**30


@pytest.mark.parametrize(
    ("mounts", "meminfo", "free", "well"),
    [
        (MOUNTS.format("rw,relatime,size=8g"), MEMINFO.format(12_000_000), ROOM, True),
        (MOUNTS.format("rw,nosuid,nodev,noexec"), MEMINFO.format(12_000_000), ROOM, False),
        (MOUNTS.format("rw"), MEMINFO.format(12_000_000), 64 * 2**20, False),  # as a container has it
        (MOUNTS.format("rw"), MEMINFO.format(6_000_000), ROOM, False),
        (MOUNTS.format("rw").replace("/dev/shm", "/tmp"), MEMINFO.format(12_000_000), ROOM, False),
        (MOUNTS.format("rw") + "/dev/vdb /dev/shm ext4 rw 0 0\n", "", ROOM, False),
    ],
)
def test_memory_is_taken_where_there_is_room_and_programs_may_be_run_there(
    mounts: str, meminfo: str, free: int, well: bool
) -> None:
    assert scratch.is_well(mounts, meminfo, free) is well
