"""What a run makes the simulated host do: how many programs are started there, and how much processor time they take.

What stands for a program of Proxmox VE or Debian does its work in the lab's command server (lab.commands). The process that asked for it counts, as
the program itself would on a real host; what it starts by itself doesn't: this program hasn't asked for that. All of it takes processor time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lab import Lab
from tests.bench.errors import BenchError
from tests.bench.measure import processes, tree

#: Looks at a lab for a time, with a folder for its files; what is yielded says what was seen.
Look = Callable[[Lab, Path], AbstractContextManager[Callable[[], float]]]
#: The end of a successful execve(2), in strace's words, also when another process's line came in between.
_PROGRAM = re.compile(r"^(\d+) +(?:execve\(|<\.\.\. execve resumed>).* = 0$", re.MULTILINE)


def started(trace: str) -> int:
    """How many processes became a program: a launcher that becomes another program is one.

    Args:
        trace: what `strace -f -e trace=execve -o FILE` writes; each line begins with a process's number.
    """
    return len(set(_PROGRAM.findall(trace)))


@contextmanager
def counted(lab: Lab, folder: Path) -> Iterator[Callable[[], int]]:
    """What is yielded says afterwards how many programs were started on the host meanwhile. All there runs several times slower.

    :raises BenchError: strace can't be had, or may not look.
    """
    if shutil.which("strace") is None:
        raise BenchError("strace", "none", "it counts the programs of a host", "install it: apt-get install strace")
    trace = folder / "strace.txt"
    command = ["strace", "-f", "-s", "0", "-e", "signal=none", "-e", "trace=execve", "-o", str(trace)]
    with (folder / "strace.log").open("w+b") as log:
        tracer = subprocess.Popen([*command, "-p", str(_pid(lab))], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while b"attached" not in (folder / "strace.log").read_bytes():
                if tracer.poll() is not None:
                    said = (folder / "strace.log").read_text(encoding="utf-8", errors="replace").strip()
                    raise BenchError("strace at the simulated host", said, "it counts its programs", "run this as root")
                time.sleep(0.01)
            yield lambda: started(trace.read_text(encoding="utf-8", errors="replace"))
        finally:
            tracer.terminate()
            tracer.wait()


@contextmanager
def processor_time(lab: Lab, _folder: Path) -> Iterator[Callable[[], float]]:
    """What is yielded says how many seconds of it the lab has used since, with all that its host ran (proc_pid_stat(5))."""
    before = _used(lab)
    yield lambda: _used(lab) - before


def _used(lab: Lab) -> float:
    ticks = 0
    for process in tree(_pid(lab), processes()):
        try:
            stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        # Of itself, and of its children that ended and were waited for.
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _pid(lab: Lab) -> int:
    pid: int = lab.status()["pid"]
    return pid
