"""A layer of the host's agent on a folder, in the test's own process: what it answers, and what is on the disk when it is cut short at any call."""

from __future__ import annotations

import fcntl
import importlib
import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

from homelab.remote.agent import command_in_memory
from lab.host.host_python import nodes_below
from lab.host.state import of_root
from remote_scripts import agent
from remote_scripts.tools import disk
from remote_scripts.tools.done import Done
from remote_scripts.tools.plain import to_plain
from remote_scripts.tools.run import Stand
from remote_scripts.tools.system import System
from tests import sampling, sent_along
from tests.agent import disk_kit
from tests.agent.disk_kit import Tree
from tests.waiting import PATIENCE

#: What lasts on a host, and is compared: the rest is the running system's.
LASTING = ("boot", "etc", "usr", "var")


class Refused(Exception):
    """What a person reads of a layer that ended with an error, and its exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class Killed(BaseException):
    """A run, as by SIGKILL."""


class Host:
    """A host that is nothing but a folder.

    :param place: a folder of the test's.
    """

    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        #: What is called in the place of programs; whatever else is asked for isn't there.
        self.programs: dict[str, Stand] = {"sync": lambda _arguments, _stdin: 0}
        for path in ("etc", "var/lib", "usr", "run", "proc", "boot", "sys"):
            (self.root / path).mkdir(parents=True, exist_ok=True)

    def system(self) -> System:
        return System(self.root, programs=self.programs)

    def working_system(self) -> System:
        """With the folder that whoever has the lock has made."""
        (self.root / "run/homelab").mkdir(mode=0o700, exist_ok=True)
        return self.system()

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> Path:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        target.chmod(mode)
        return target

    def function(self, address: str, code: str, ids: str = "", *, driver: str = "", **files: str | bytes) -> None:
        """A PCI function of this class with these files."""
        own = {name: f"0x{one}\n" for name, one in zip(("vendor", "device"), ids.split(":"), strict=False) if one}
        for name, content in {"class": f"{code}\n", **own, **files}.items():
            self.write(f"/sys/bus/pci/devices/{address}/{name}", content)
        if driver:
            (self.root / f"sys/bus/pci/devices/{address}/driver").symlink_to(f"../../drivers/{driver}")

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path.lstrip("/"))

    def ask(self, verb: str, layer: str, wanted: Any) -> Any:
        """What the layer answers.

        :raises Refused: it ended with an error.
        """
        request = agent.Request(layer=layer, input=json.loads(json.dumps(to_plain(wanted))))
        module = importlib.import_module(f"remote_scripts.layers.{layer}")
        status, text = agent.answered(self.system(), verb, request, module)
        if status:
            raise Refused(text, status)
        return json.loads(text)

    def tree(self, *places: str) -> dict[str, tuple[int, bytes | str | None]]:
        """Everything below these places, by its path without the root; by default all but /run."""
        tops = [*places] if places else [name for name in os.listdir(self.root) if name != "run"]  # noqa: PTH208
        there = [(top, path) for top in tops if os.path.lexists(path := f"{self.root}/{top}")]
        listed = [(top, path, os.lstat(path)) for top, path in there]
        return disk_kit.tree_of(listed + disk_kit.all_below(self.root, tops))

    @contextmanager
    def up_at_work(self, who: str, passes: str = "") -> Iterator[None]:
        """A run that holds the host."""
        self.write("/run/homelab/up", f"{who}\n")
        self.write("/run/homelab/passes", passes)
        (self.root / "run/homelab").chmod(0o700)
        with (self.root / "run/homelab/up").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        self.write("/run/homelab/up", "")

    def lasting(self) -> Tree:
        return self.tree(*LASTING)


def of_machine(*names: str) -> dict[str, Stand]:
    """Programs of this machine's own, in the place of the host's."""

    def stand(name: str) -> Stand:
        def run(arguments: Sequence[str], stdin: bytes) -> Done:
            environment = {"LC_ALL": "C", "PATH": os.environ["PATH"]}
            done = subprocess.run([name, *arguments], input=stdin, capture_output=True, env=environment)
            return Done(done.returncode, done.stdout, done.stderr)

        return run

    return {name: stand(name) for name in names}


AnyHost = TypeVar("AnyHost", bound=Host)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def with_files_as_devices(patch: pytest.MonkeyPatch, place: Path) -> None:
    """A file below a folder is the device that it says (lab/host/host_python.py)."""
    stat, mknod = nodes_below(f"{place}/")
    patch.setattr(os, "stat", stat)
    patch.setattr(os, "mknod", mknod)


def command(host: Host, name: str, text: str) -> None:
    """A stand-in in bash for a command of the host's, before this machine's own (`bash`)."""
    file = host.root.parent / "commands" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


def bash(host: Host, line: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line as a host runs it, with this on standard input."""
    path = f"{host.root.parent / 'commands'}:{os.environ['PATH']}"
    return ran("/bin/bash", "-c", line, text=text, **{**of_root(host.root), "PATH": path, **environment})


def ran(*words: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of this machine's, with this on standard input, and this environment alone."""
    return subprocess.run(words, input=text, capture_output=True, text=True, env=environment, timeout=PATIENCE)


def ask_in_memory(host: Host, verb: str, *requests: str) -> subprocess.CompletedProcess[str]:
    """What a session asks of a host that keeps no agent."""
    done = bash(host, command_in_memory("root"), sent_along.text(verb, *requests))
    done.stdout = sent_along.answer(done.stdout)
    return done


@contextmanager
def watched(watch: disk.Watch) -> Iterator[None]:
    """`watch` is called before each call that changes the file system."""
    disk.WATCH.append(watch)
    try:
        yield
    finally:
        disk.WATCH.pop()


@contextmanager
def failing(code: int, *calls: str, at: str) -> Iterator[None]:
    """These calls end with this error, of paths that have this in them."""

    def watch(call: str, path: str) -> None:
        if call in calls and at in path:
            raise OSError(code, os.strerror(code), path)

    with watched(watch):
        yield


def held(host: Host) -> IO[str]:
    """The host's lock, which another run has until this is closed."""
    lock = (host.working_system().root / "run/homelab/lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


class Entry:
    """Of a folder, as of `os.scandir`: of a link nobody asks where it leads."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.name, self.path, self.is_symlink, self._entry = entry.name, entry.path, entry.is_symlink, entry

    def is_dir(self) -> bool:
        assert not self.is_symlink(), f"{self.path} was followed"
        return self._entry.is_dir()


class Listing(AbstractContextManager["Listing"]):
    """As of `os.scandir`."""

    def __init__(self, folder: Any, scandir: Any = os.scandir) -> None:
        self._entries = scandir(folder)

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    def __iter__(self) -> Listing:
        return self

    def __next__(self) -> Entry:
        return Entry(next(self._entries))


def follows_no_link(patch: pytest.MonkeyPatch) -> None:
    """Whoever lists a folder and follows a link in it, which may lead to a share that hangs, fails."""
    patch.setattr(os, "scandir", Listing)


def hangs(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """No call of the kernel about a place, or what is below it, returns: /etc/pve without its daemon, a share that is gone."""
    monkeypatch.setattr("remote_scripts.tools.time_limit.SECONDS", 0.5)
    for name in ("open", "stat", "access", "lstat", "listdir", "scandir"):
        real = getattr(os, name)

        def waits(path: Any = ".", *arguments: Any, real: Any = real, **named: Any) -> Any:
            return time.sleep(30) if f"{path}/".startswith(f"{place}/") else real(path, *arguments, **named)

        monkeypatch.setattr(os, name, waits)


@dataclass(frozen=True)
class Cut:
    """A host whose act was cut short. `how`: before which call, for a test's message; `lasting`: what is on its disk; `kernel`: what is in /sys."""

    how: str
    lasting: disk_kit.Tree
    kernel: Tree


# What may make a file, which may get the inode number of one that is gone.
_MAKING = frozenset({"create", "append", "mkdir", "symlink", "link", "mknod", "program"})
# Logs, and what Proxmox VE itself writes in /etc/pve.
_UNFLUSHED = re.compile(r"etc/pve/(?!homelab/)|var/log/|var/lib/homelab/handover/log")


def cuts(
    host: AnyHost,
    act: Callable[[AnyHost], object],
    *,
    ends: bool = True,
    power_cuts: bool = True,
    in_cluster: bool = False,
    most: int | None = None,
    name: str = "",
) -> list[Cut]:
    """What is left when the act is killed before each of its calls that change the file system, and after a power cut there; it is done on the host,
    and on its disk.

    Of a power cut two disks are left: one has only what was flushed, a file's bytes by flushing the file and its name by flushing the folder (POSIX's
    strictest reading); the other has every name, and files whose bytes weren't flushed are empty, but for those of pmxcfs, which is a database and has
    each change whole or not at all. /sys is then as it was at the beginning.

    :param ends: whether the act comes to its end: then all that it did is on the disk.
    :param most: one cut each at so many calls, in a sample drawn by `name` (tests/sampling.py) while the act goes on (reservoir sampling): to look at
        all that is there takes far longer than the act itself.
    :param power_cuts: not only kills.
    :param in_cluster: other nodes keep /etc/pve as it was at a power cut.
    """
    most = None if sampling.EVERY else most
    booted, drawn, numbers = host.tree("sys"), sampling.drawn(name), itertools.count()
    found: list[Cut] = []
    sampled: dict[int, Cut] = {}
    power = disk_kit.Disk(host.root)
    flushing: list[Path] = []

    def watch(call: str, path: str) -> None:
        if call == "write" and path.startswith(f"{host.root}/sys/"):
            return  # opening a file there empties none
        number = next(numbers)
        place = number if most is None or number < most else drawn.randrange(number + 1)
        looks = most is None or place < most
        flush()
        if looks or call in _MAKING:
            below = disk_kit.all_below(host.root)
            power.forget_gone(below)
        if looks:
            how = f"before call {number}, {call} /{os.path.relpath(path, host.root)}"
            now = disk_kit.tree_of(below)
            left = [Cut(f"killed {how}", now, host.tree("sys"))]
            if power_cuts:
                flushed, named = (power.after_a_cut(now, below, names_as_now=all_names) for all_names in (False, True))
                named = _with_cluster(named, now)
                if in_cluster:
                    flushed = _with_cluster(flushed, now)
                left += [
                    Cut(f"power cut {how}", flushed, booted),
                    Cut(f"power cut, with all names, {how}", named, booted),
                ]
            if most is not None:
                sampled[place] = drawn.choice(left)
            else:
                for cut in left:
                    if not any(cut.lasting == one.lasting and cut.kernel == one.kernel for one in found[-6:]):
                        found.append(cut)
        if call == "flush":
            # Of an ESP, which isn't mounted any more when it is looked at.
            flushing.append(Path(os.path.realpath(path)) if path.startswith(f"{host.root}/run/") else Path(path))

    def flush() -> None:
        while flushing:
            power.flush(flushing.pop())

    def sync(arguments: Sequence[str], _stdin: bytes) -> int:
        assert arguments[0] == "-f", "a file system as a whole is everything here"
        flush()
        power.flush_all()
        return 0

    host.programs["sync"] = sync
    with watched(watch):
        act(host)
    flush()
    below = disk_kit.all_below(host.root)
    power.forget_gone(below)
    now = disk_kit.tree_of(below)
    after = power.after_a_cut(now, below, names_as_now=False)
    not_flushed = sorted(
        path for path in {*now, *after} if now.get(path) != after.get(path) and not _UNFLUSHED.match(path)
    )
    assert not (ends and not_flushed), f"a power cut after its end loses what was done to {not_flushed}"
    return found or [sampled[place] for place in sorted(sampled)]


def _with_cluster(disk: disk_kit.Tree, now: disk_kit.Tree) -> disk_kit.Tree:
    rest = {path: about for path, about in disk.items() if not path.startswith("etc/pve")}
    return {**rest, **{path: about for path, about in now.items() if path.startswith("etc/pve")}}


def left_by(cut: Cut, host: AnyHost, place: Path) -> AnyHost:
    """The host after the cut, killed or booted again, in a folder that isn't there yet."""
    left = type(host)(place)
    left.programs = {**host.programs, "sync": lambda _arguments, _stdin: 0}
    disk_kit.write(left.root, {**cut.lasting, **cut.kernel})
    return left
