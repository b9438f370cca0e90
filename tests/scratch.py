"""A run of all tests with its temporary files in memory: `python -m tests.scratch -m pytest …`, which is `make test`.

A simulated host is a tree of two thousand files, which nearly each test makes, changes and removes. On a disk (ext4) that takes up to twice the processor
time that it takes in memory, and the disk's own time. The file system is in a mount namespace of the run's own: with the run's last process it
is gone. Without root's rights or without so much memory, and where TMPDIR says another place, it is a run as any other one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

#: What has to be free: all workers of a run take about half of it.
FREE_MEMORY = 8 * 2**30
# With a folder and a command.
_IN_MEMORY = 'mount -t tmpfs -o mode=0700 tests "$0" && TMPDIR=$0 exec "$@"'


def has_room(meminfo: str) -> bool:
    """Whether there is enough memory, by what /proc/meminfo says."""
    available = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    return available is not None and int(available[1]) * 1024 >= FREE_MEMORY


def in_memory(folder: str, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` with TMPDIR=``folder``, a file system in memory that nobody else sees."""
    return ["unshare", "--mount", "--propagation", "private", "bash", "-c", _IN_MEMORY, folder, *command]


def _is_possible(folder: str) -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or "TMPDIR" in os.environ:
        return False
    if not has_room(Path("/proc/meminfo").read_text(encoding="utf-8")):
        return False
    try:  # in a container root may not
        return subprocess.run(in_memory(folder, ["true"]), capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def main(arguments: Sequence[str]) -> int:
    """Run Python with these arguments, and return its exit status."""
    command = [sys.executable, *arguments]
    # Without bytecode, each of the hundreds of Pythons that tests start would compile the program again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="tests-") as folder:
        possible = _is_possible(folder)
        process = subprocess.Popen(in_memory(folder, command) if possible else command)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A terminal's Ctrl-C comes to all of them; the run ends in its own way.
            signal.signal(number, lambda got, _: process.send_signal(got) if got != signal.SIGINT else None)
        status = process.wait()
    if status and possible:
        print(
            "The files of failed tests were in memory, and are gone: run such a test alone, or TMPDIR=/tmp make test."
        )
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
