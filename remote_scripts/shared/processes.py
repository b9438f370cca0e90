"""Which processes have a card open. NVIDIA's driver waits without end for the last of them to close it, so they are
looked for first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from remote_scripts.tools.run import TIMED_OUT, TOO_MUCH, Done
from remote_scripts.tools.system import System
from remote_scripts.tools.text import LOG_BYTES

_LOOK_SECONDS = 60.0
#: What a program says of a path that is gone has so many bytes more, at most.
_MESSAGE_BYTES = 80
_BYTES = 1 << 20
_NO_FILES = ("socket:", "pipe:", "anon_inode:")
#: What is said where a process has ended meanwhile, or has a file on a storage that is gone: no device node answers
#: like that.
_GONE = "No such file or directory|No such process|Stale file handle|Transport endpoint is not connected"
_GONE += "|Input/output error"


class ScanError(Exception):
    """The look at processes failed, so that it isn't known who has it; the text says why."""


def processes_using(system: System, control: str, numbers: Collection[str], mapped: str) -> list[str]:
    """The processes that have one of these nodes open, or the card's memory mapped, in words.

    What is in a container has paths of its own: numbers count. Threads are looked at: where the first one of a process
    has ended, or another one has open files of its own, the process shows nothing. A process that ends meanwhile has
    let go.

    :param control: a node that the look has to see, or it counts for nothing.
    :param numbers: MAJOR:MINOR in hexadecimal.
    :param mapped: a pattern of grep's.
    :raises ScanError: it can't be told.
    """
    pids: set[int] = set()
    is_seen = False
    control = str(system.files.at(control))
    proc = str(system.files.at("/proc"))
    for paths in _parts([control, *_open_files(system)]):
        # What lies on a storage that doesn't answer isn't asked of it.
        done = system.run.ask(
            "stat", "--cached=always", "-L", "-c", "%t:%T %F %n", *paths, seconds=_LOOK_SECONDS, limit=_BYTES
        )
        _need_answer(system, done)
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
        _need_answer(system, done)
        pids |= {int(path[len(proc) + 1 :].partition("/")[0]) for path in done.text.splitlines()}
    return [_describe(system, pid) for pid in sorted(pids)]


def _parts(paths: Iterable[str]) -> Iterator[Sequence[str]]:
    """What a program says of a part has an end that is kept (LOG_BYTES): all of it has to fit in."""
    part: list[str] = []
    left = LOG_BYTES
    for path in paths:
        size = len(os.fsencode(path)) + _MESSAGE_BYTES
        if part and size > left:
            yield part
            part, left = [], LOG_BYTES
        part.append(path)
        left -= size
    if part:
        yield part


def _threads(system: System) -> Iterator[tuple[str, list[str]]]:
    """Each process' folder, and the names of its threads."""
    proc = system.files.at("/proc")
    try:
        processes = [pid for pid in os.listdir(proc) if pid.isdecimal()]
    except OSError as error:
        raise ScanError(f"{proc} can't be read: {error.strerror}") from error
    for process in processes:
        names = _listed(f"{proc}/{process}/task")
        if names:
            yield f"{proc}/{process}", sorted((name for name in names if name.isdecimal()), key=int)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError as error:
        raise ScanError(f"the look at all processes failed: {folder}: {error.strerror}") from error


def _open_files(system: System) -> Iterator[str]:
    """Links that may lead to a node; of what all threads of a process have alike one."""
    for process, threads in _threads(system):
        yielded: set[tuple[str, str]] = set()
        for thread in threads:
            folder = f"{process}/task/{thread}/fd"
            for name in _listed(folder):
                try:
                    target = os.readlink(f"{folder}/{name}")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                except OSError as error:
                    raise ScanError(f"the look at all processes failed: {folder}: {error.strerror}") from error
                if not target.startswith(_NO_FILES) and (name, target) not in yielded:
                    yielded.add((name, target))
                    yield f"{folder}/{name}"


def _maps(system: System) -> Iterator[str]:
    """Threads have one memory: two of them are asked, since the first may have ended."""
    for process, threads in _threads(system):
        for thread in dict.fromkeys((threads[0], threads[-1])) if threads else ():
            yield f"{process}/task/{thread}/maps"


def _need_answer(system: System, done: Done) -> None:
    """It has failed where something else is said than that processes are gone, or files on a storage that is; or where
    it ends badly without a word.
    """
    errors = [line for line in done.error.decode("utf-8", "replace").splitlines() if not _is_harmless(system, line)]
    if done.status in (TIMED_OUT, TOO_MUCH) or errors or (done.status > 1 and (done.status > 2 or not done.error)):
        raise ScanError(f"the look at all processes failed: {errors[0] if errors else f'status {done.status}'}")


def _is_harmless(system: System, line: str) -> bool:
    place = f"'?{re.escape(str(system.files.at('/proc')))}/[0-9]+/task/[0-9]+/(fd/[0-9]+|maps)'?"
    # "Permission denied" answers a FUSE file system that is its user's alone, where nodes aren't allowed; of a process
    # itself root is denied nothing.
    refused = f"stat: (cannot statx? )?{place}: Permission denied"
    return bool(re.fullmatch(f"(stat|grep): (cannot statx? )?{place}: ({_GONE})|{refused}", line))


def _describe(system: System, pid: int) -> str:
    name = system.files.text(f"/proc/{pid}/comm").replace("\n", "")
    group = system.files.text(f"/proc/{pid}/cgroup").rpartition("\n")[2]
    owner = ""
    if match := re.search(r"/lxc(?:\.payload)?[./](\d+)", group):
        owner = f" of container {match[1]}"
    elif match := re.search(r"/([^/]+\.(?:service|scope))(?:$|/)", group):
        owner = f" of {match[1]}"
    return f"{name or '?'} (PID {pid}{owner})"
