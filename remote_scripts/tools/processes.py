"""Which processes have a card open. NVIDIA's driver waits without end for the last of them to close it, so they are
looked for first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from remote_scripts.tools.done import Done
from remote_scripts.tools.system import System

T = TypeVar("T")
_LOOK_SECONDS = 60.0
#: How many files a program is asked about at once.
_PATHS = 1000
_BYTES = 1 << 20
_NO_FILES = ("socket:", "pipe:", "anon_inode:")


class ScanError(Exception):
    """The look at processes failed, so that it isn't known who has it; the text says why."""


def processes_using(system: System, control: str, numbers: Collection[str], mapped: str) -> list[str]:
    """The processes that have one of these nodes open, or the card's memory mapped, in words.

    What is in a container has paths of its own: numbers count. Threads are looked at: where the first one of a process
    has ended, or another one has open files of its own, the process shows nothing. A process that ends meanwhile has
    let go.

    What a program says of a single path is passed over: a process that has ended, or a file on a storage that is gone.
    No device node answers root with an error.

    :param control: a node that each look has to see, or it counts for nothing.
    :param numbers: MAJOR:MINOR in hexadecimal.
    :param mapped: a pattern of grep's.
    :raises ScanError: it can't be told.
    """
    pids: set[int] = set()
    control = str(system.files.at(control))
    proc = str(system.files.at("/proc"))
    for paths in _parts(_open_files(system)):
        # What lies on a storage that doesn't answer isn't asked of it.
        done = system.run.ask(
            "stat", "--cached=always", "-L", "-c", "%t:%T %F %n", *paths, control, seconds=_LOOK_SECONDS, limit=_BYTES
        )
        _need_answer(done, 1)
        is_seen = False
        for line in done.text.splitlines():
            number, _, rest = line.partition(" ")
            kind, _, path = rest.rpartition(" ")
            is_seen = is_seen or path == control
            if number in numbers and kind == "character special file" and path.startswith(f"{proc}/"):
                pids.add(int(path[len(proc) + 1 :].partition("/")[0]))
        if not is_seen:
            raise ScanError(f"the look at all processes has not shown {control}, which is there")
    for paths in _parts(_maps(system)):
        done = system.run.ask("grep", "-lE", mapped, *paths, os.devnull, seconds=_LOOK_SECONDS, limit=_BYTES)
        _need_answer(done, 2)
        pids |= {int(path[len(proc) + 1 :].partition("/")[0]) for path in done.text.splitlines()}
    return [_describe(system, pid) for pid in sorted(pids)]


def _parts(paths: Iterable[str]) -> Iterator[list[str]]:
    """The last one may be empty: then the control alone is looked at."""
    every = [*paths]
    for start in range(0, len(every) + 1, _PATHS):
        yield every[start : start + _PATHS]


def _threads(system: System) -> Iterator[tuple[str, list[str]]]:
    """Each process' folder, and the names of its threads."""
    proc = str(system.files.at("/proc"))
    processes = _asked(os.listdir, proc)
    if processes is None:
        raise ScanError(f"{proc} isn't there")
    for process in filter(str.isdecimal, processes):
        if names := _asked(os.listdir, f"{proc}/{process}/task"):
            yield f"{proc}/{process}", sorted((name for name in names if name.isdecimal()), key=int)


def _asked(ask: Callable[[str], T], path: str) -> T | None:
    """What the kernel says of a path; None: whose it was has ended."""
    try:
        return ask(path)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise ScanError(f"the look at all processes failed: {path}: {error.strerror}") from error


def _open_files(system: System) -> Iterator[str]:
    """Links that may lead to a node; of what all threads of a process have alike one."""
    for process, threads in _threads(system):
        yielded: set[tuple[str, str]] = set()
        for thread in threads:
            folder = f"{process}/task/{thread}/fd"
            for name in _asked(os.listdir, folder) or ():
                target = _asked(os.readlink, f"{folder}/{name}")
                if target and not target.startswith(_NO_FILES) and (name, target) not in yielded:
                    yielded.add((name, target))
                    yield f"{folder}/{name}"


def _maps(system: System) -> Iterator[str]:
    """Threads have one memory: two of them are asked, since the first may have ended."""
    for process, threads in _threads(system):
        for thread in dict.fromkeys((threads[0], threads[-1])) if threads else ():
            yield f"{process}/task/{thread}/maps"


def _need_answer(done: Done, most: int) -> None:
    """:param most: the status of a program that could not look at some of its paths."""
    if not 0 <= done.status <= most:
        raise ScanError(f"the look at all processes failed: {done.text or f'status {done.status}'}")


def _describe(system: System, pid: int) -> str:
    name = system.files.text(f"/proc/{pid}/comm").replace("\n", "")
    group = system.files.text(f"/proc/{pid}/cgroup").rpartition("\n")[2]
    owner = ""
    if match := re.search(r"/lxc(?:\.payload)?[./](\d+)", group):
        owner = f" of container {match[1]}"
    elif match := re.search(r"/([^/]+\.(?:service|scope))(?:$|/)", group):
        owner = f" of {match[1]}"
    return f"{name or '?'} (PID {pid}{owner})"
