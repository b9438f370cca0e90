"""Where the tests' temporary files are: in memory, if there is room.

A simulated host is a tree of two thousand files, which nearly each test makes, changes and removes. On a disk (ext4) that takes twice the processor time
that it takes in memory, and the disk's own time.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

#: A file system in memory that each Linux has.
MEMORY = Path("/dev/shm")
#: What has to be free there, and in memory: all workers of a run take about a third of it.
FREE_THERE, FREE_MEMORY = 4 * 2**30, 8 * 2**30


def is_well(mounts: str, meminfo: str, free: int) -> bool:
    """Whether the tests' files can be there.

    Args:
        mounts: what /proc/mounts says.
        meminfo: what /proc/meminfo says.
        free: bytes that are free there.
    """
    lines = [line.split() for line in mounts.splitlines()]
    options = [words[3].split(",") for words in lines if len(words) > 3 and words[1:3] == [str(MEMORY), "tmpfs"]]
    available = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    return (
        bool(options)
        and not {"ro", "noexec"} & set(options[-1])  # the lab's commands are programs in there
        and free >= FREE_THERE
        and available is not None
        and int(available[1]) * 1024 >= FREE_MEMORY
    )


def choose() -> None:
    """For this process and those that it starts, unless somebody has chosen (TMPDIR)."""
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return
    mounts, meminfo = (Path(f"/proc/{name}").read_text(encoding="utf-8") for name in ("mounts", "meminfo"))
    if is_well(mounts, meminfo, shutil.disk_usage(MEMORY).free):
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # it is kept there once it was asked for
