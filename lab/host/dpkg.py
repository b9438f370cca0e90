"""dpkg's database of a system: /var/lib/dpkg/status in its own format, and what apt knows was installed by itself.

A package's paragraph names the group of lab/network/packages.yaml that it is of (X-Lab-Group), so that removing it
undoes what that says it gives.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import functools
import re
import time
from collections.abc import Iterator
from typing import Any

from . import network
from .account_programs import current_user
from .program import Failure
from .state import HostState
from .versions import relations

STATUS, EXTENDED = "/var/lib/dpkg/status", "/var/lib/apt/extended_states"
LOCK = "/var/lib/dpkg/lock-frontend"
#: The package whose configuration the fault apt-broken has left half-way.
_HALF_WAY = "ca-certificates"
_POLL_SECONDS = 0.05
_DEBIAN = re.compile(r"^ID=\"?(debian|ubuntu)", re.M)  # in os-release
_BETWEEN = re.compile(r"\n\s*\n")  # paragraphs


class Package:
    """One package of the database. `state` is dpkg's: installed, half-configured, unpacked, config-files."""

    def __init__(
        self,
        name: str,
        version: str,
        state: str = "installed",
        hold: bool = False,
        group: str = "",
        fields: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.state = state
        self.hold = hold
        self.group = group
        self.fields = {} if fields is None else fields

    @property
    def status(self) -> str:
        """The Status field: what is wanted, errors, what there is."""
        wanted = "hold" if self.hold else "deinstall" if self.state == "config-files" else "install"
        return f"{wanted} ok {self.state}"

    @property
    def present(self) -> bool:
        """Whether its files are there."""
        return self.state in ("installed", "half-configured", "unpacked")

    @property
    def architecture(self) -> str:
        """`amd64` or `all`."""
        return self.fields.get("Architecture", "amd64")

    def provides(self) -> set[str]:
        """The names that it can stand for, its own among them."""
        return {self.name, *(clause[0].name for clause in relations(self.fields.get("Provides", "")))}


class Database:
    """The installed packages of one system; call `save` after changes.

    Args:
        host: the system.
    """

    def __init__(self, host: HostState) -> None:
        self.host = host
        self.packages: dict[str, Package] = {}
        for name, version, state, hold, group, fields in _packages(host.read(STATUS, "")):
            self.packages[name] = Package(name, version, state, hold, group, dict(fields))
        self.automatic = set(_automatic(host.read(EXTENDED, "")))
        #: Whether dpkg was ended in its work (fault apt-broken), and wants `dpkg --configure -a` first.
        self.interrupted = self._is_interrupted()
        if self.interrupted:
            self.packages[_HALF_WAY].state = "half-configured"

    def _is_interrupted(self) -> bool:
        repaired = self.host.state / "dpkg-repaired"
        if network.fault(self.host, "apt-broken") is None:
            if repaired.exists():  # hardly ever: a query that removes nothing only looks
                repaired.unlink(missing_ok=True)
            return False
        return _HALF_WAY in self.packages and not repaired.exists()

    def note_repair(self) -> None:
        """What the fault apt-broken left half-way is whole again, until the fault is taken back and set anew."""
        (self.host.state / "dpkg-repaired").touch()
        self.interrupted = False

    def get(self, name: str) -> Package | None:
        """A package whose files are there."""
        package = self.packages.get(name)
        return package if package is not None and package.present else None

    def broken(self) -> list[Package]:
        """Packages that aren't configured."""
        return [p for p in self.packages.values() if p.state in ("half-configured", "unpacked")]

    def matching(self, patterns: list[str]) -> dict[str, list[Package]]:
        """The packages, by the patterns that were asked for."""
        return {
            pattern: [p for n, p in sorted(self.packages.items()) if fnmatch.fnmatchcase(n, pattern.partition(":")[0])]
            for pattern in patterns
        }

    def save(self) -> None:
        """Write the database, each file whole or not at all, as dpkg and apt do."""
        self._replace(STATUS, "".join(_paragraph(p) for _, p in sorted(self.packages.items())))
        names = sorted(name for name in self.automatic if self.get(name))
        text = "".join(f"Package: {name}\nArchitecture: amd64\nAuto-Installed: 1\n\n" for name in names)
        self._replace(EXTENDED, text)

    def _replace(self, path: str, text: str) -> None:
        # By dpkg's own name, not one for each process: what a killed one left is the next one's.
        self.host.write(f"{path}-new", text)
        self.host.rooted(f"{path}-new").rename(self.host.rooted(path))


def paragraphs(text: str) -> list[dict[str, str]]:
    """The paragraphs of a control file (deb822(5)): comments left out, continued lines joined with newlines."""
    found = []
    for block in _BETWEEN.split(text):
        fields: dict[str, str] = {}
        last = ""
        for line in block.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and last:
                fields[last] += f"\n{line.strip()}"
                continue
            name, _, value = line.partition(":")
            last = name
            fields[name] = value.strip()
        if fields:
            found.append(fields)
    return found


# A process that does commands reads the same database many times.
@functools.lru_cache(maxsize=8)
def _packages(text: str) -> list[tuple[str, str, str, bool, str, dict[str, str]]]:
    """The arguments of each Package."""
    found = []
    for fields in paragraphs(text):
        wanted, _, state = fields.get("Status", "install ok installed").split(" ")
        kept = {k: v for k, v in fields.items() if k not in ("Package", "Status", "Version", "X-Lab-Group")}
        group = fields.get("X-Lab-Group", "")
        found.append((fields["Package"], fields.get("Version", ""), state, wanted == "hold", group, kept))
    return found


@functools.lru_cache(maxsize=8)
def _automatic(text: str) -> frozenset[str]:
    """What was installed because something else needs it."""
    return frozenset(p["Package"] for p in paragraphs(text) if p.get("Auto-Installed") == "1")


def _paragraph(package: Package) -> str:
    fields = {"Package": package.name, "Status": package.status, **package.fields, "Version": package.version}
    if package.group:
        fields["X-Lab-Group"] = package.group
    return "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"


def package_of(name: str, record: dict[str, Any], group: str, state: str = "installed") -> Package:
    """A package of the network as the database has it."""
    fields = {"Architecture": record.get("architecture", "amd64")}
    for key in ("depends", "recommends", "conflicts", "provides"):
        if record.get(key):
            fields[key.capitalize()] = record[key]
    return Package(name, record["version"], state, False, group, fields)


# -- who may use it --------------------------------------------------------------------------------------------
def require_debian(host: HostState, name: str) -> None:
    """Refuse where the system has no apt.

    Raises:
        Failure: as a shell does that finds no such command.
    """
    if not _DEBIAN.search(host.read("/etc/os-release", "")):
        raise Failure(f"bash: line 1: {name}: command not found", 127)


def require_root(path: str) -> None:
    """Refuse to anybody but root.

    Raises:
        Failure: in apt's words.
    """
    if current_user() != "root":
        raise Failure(
            f"E: Could not open lock file {path} - open (13: Permission denied)\n"
            f"E: Unable to acquire the dpkg frontend lock ({path}), are you root?",
            100,
        )


# -- the lock --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def locked(host: HostState, seconds: float) -> Iterator[None]:
    """Hold dpkg's lock, as every program that changes packages does.

    Args:
        seconds: how long to wait for it; less than 0: for ever.

    Raises:
        Failure: somebody else holds it.
    """
    path = host.rooted(LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    until = None if seconds < 0 else time.monotonic() + seconds
    said = False
    with path.open("a") as lock:
        while (holder := _holder(host, lock)) is not None:
            text = f"Could not get lock {LOCK}. It is held by process {holder}"
            if until is not None and time.monotonic() >= until:
                raise Failure(
                    f"E: {text}\nN: Be aware that removing the lock file is not a solution and may break your system.\n"
                    f"E: Unable to acquire the dpkg frontend lock ({LOCK}), is another process using it?",
                    100,
                )
            if not said:
                print(f"Waiting for cache lock: {text}...", flush=True)
            said = True
            time.sleep(_POLL_SECONDS)
        yield


def _holder(host: HostState, lock: Any) -> str | None:
    """Who holds the lock, None once it is ours."""
    if _unattended(host):
        return "1482 (unattended-upgr)"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "2210 (apt-get)"
    return None


def _unattended(host: HostState) -> bool:
    """Whether the fault apt-locked holds the lock: for so many seconds from when somebody first wants it."""
    note = host.state / "apt-locked"
    value = network.fault(host, "apt-locked")
    if value is None:
        note.unlink(missing_ok=True)
        return False
    if not note.exists() or note.read_text(encoding="utf-8").split()[0] != value:
        note.write_text(f"{value} {time.time()}\n", encoding="utf-8")
    since = float(note.read_text(encoding="utf-8").split()[1])
    return time.time() < since + float(value)
