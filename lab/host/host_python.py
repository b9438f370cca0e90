"""The host's Python, as the lab runs it: `host_python.py OPTIONS FILE|-|-c TEXT ARGUMENTS`, in the place of /usr/bin/python3.

What a program writes into a control file of sysfs acts before its write(2) has returned, and fails as write(2) would (sysfs_writes.py). It is the
real Python of this machine otherwise, and has what its options ask for: whoever starts this gives them to it, too.
"""

from __future__ import annotations

import errno
import os
import runpy
import stat
import subprocess
import sys
from typing import Any

_REFUSALS = {os.strerror(number): number for number in errno.errorcode}


def _hear_writes() -> None:
    real = os.write

    def write(descriptor: int, data: Any, /) -> int:
        count = real(descriptor, data)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) and mode & stat.S_ISVTX:
            # The process that asks is named, since /proc/self is the program's own.
            asked = [f"{os.environ['LAB_STATE']}/bin/lab-sysfs-write", f"/proc/{os.getpid()}/fd/{descriptor}"]
            done = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                refused = (done.stdout + done.stderr).strip()
                raise OSError(_REFUSALS.get(refused, errno.EIO), refused)
        return count

    os.write = write


def main() -> None:
    """Run what the arguments name."""
    words = sys.argv[1:]
    while words and words[0] in ("-I", "-S", "-B", "-X"):
        del words[: 2 if words[0] == "-X" else 1]
    if "LAB_STATE" in os.environ:
        _hear_writes()
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-":
        sys.argv = words
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
