"""What VMs and containers share: their files, whether they run, locks, and changing a configuration."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.host.boot import mark_running
from lab.host.cluster import Cluster
from lab.host.distributions import system as default_system
from lab.host.state import HostState

from .errors import ApiError, Died, bad_parameters
from .guest_config import GuestConfig, Kind
from .options import split_list
from .quorum import require_cluster_lock, require_writable
from .reference import reference

_FOLDERS: dict[Kind, str] = {"qemu": "qemu-server", "lxc": "lxc"}
_NAMES: dict[Kind, str] = {"qemu": "VM", "lxc": "CT"}
_MACHINE_KINDS: dict[Kind, str] = {"qemu": "vm", "lxc": "container"}
#: From a guest's start until its agent, or its init, answers.
BOOT_SECONDS = 0.3
_LOCK_FILE = ".pve.lock"
_GONE_SECONDS = 0.0003
#: Of guests' configurations.
LOCKS: dict[Kind, str] = {
    "qemu": "/var/lock/qemu-server/lock-{}.conf",
    "lxc": "/run/lock/lxc/pve-config-{}.lock",
}
_CRON = """\
# cluster wide vzdump cron schedule
# Automatically generated file - do not edit

PATH="/usr/sbin:/usr/bin:/sbin:/bin"

"""


@contextlib.contextmanager
def exclusively(host: HostState) -> Iterator[None]:
    """Keep other writers of /etc/pve out, in the daemon and at a shell, between a read and the write that follows."""
    cluster = Cluster.of(host)
    with ((cluster.folder if cluster else host.state) / _LOCK_FILE).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host.reload()
        yield


@contextlib.contextmanager
def hold_config(guest: Guest) -> Iterator[None]:
    """Hold the lock that `locked_config` takes, over more than a moment; whether others' faults hold it was asked before.

    Raises:
        ApiError: 500, somebody holds it.
    """
    with _lock_file(guest) as (path, free):
        if not free:
            raise Died(f"can't lock file '{path}' - got timeout")
        yield


@contextlib.contextmanager
def _lock_file(guest: Guest) -> Iterator[tuple[str, bool]]:
    """A guest's lock, held from here on if it is free: its path, and whether it was."""
    path = LOCKS[guest.kind].format(guest.vmid)
    # /var/lock is a link to /run/lock on a node.
    place = guest.host.rooted(path.replace("/var/lock/", "/run/lock/"))
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as lock:
        free = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        yield path, free


@contextlib.contextmanager
def locked_config(guest: Guest) -> Iterator[None]:
    """Hold the file lock under which a node reads and writes a guest's configuration.

    A node waits ten seconds for it; here whoever holds it may need this very process to go on, so that it is refused at
    once, in the words that come after these seconds. Who holds it: a script with flock(1), or, as the fault
    `config-lock` has it, another process of the node.

    Raises:
        ApiError: 500, somebody holds it.
    """
    with _lock_file(guest) as (path, free):
        if not free or guest.meets_held_lock():
            raise Died(f"can't lock file '{path}' - got timeout")
        yield


def await_config_lock(guest: Guest, log: Callable[[str], None]) -> None:
    """A task's way to the configuration's lock; it is held for the moment alone in which the task has begun.

    Raises:
        ApiError: 500, somebody else holds it for more than ten seconds.
    """
    try:
        with locked_config(guest):
            pass
    except ApiError:
        log("trying to acquire lock...")
        raise


@dataclass(frozen=True)
class Guest:
    """A VM or a container of this node, whether its configuration exists or not."""

    host: HostState
    kind: Kind
    vmid: int

    @property
    def label(self) -> str:
        """`VM 103` or `CT 200`."""
        return f"{_NAMES[self.kind]} {self.vmid}"

    @property
    def relative_path(self) -> str:
        """The configuration's path below /etc/pve."""
        return f"nodes/{self.host.node}/{_FOLDERS[self.kind]}/{self.vmid}.conf"

    @property
    def path(self) -> Path:
        """The configuration's file."""
        return self.host.rooted(f"/etc/pve/{self.relative_path}")

    @property
    def folder(self) -> Path:
        """Where the lab keeps what is inside the guest."""
        return self.host.state / "guests" / str(self.vmid)

    @property
    def exists(self) -> bool:
        """Whether there is a configuration."""
        return self.path.exists()

    def config(self) -> GuestConfig:
        """The configuration.

        Raises:
            ApiError: 500, there is none.
        """
        try:
            return GuestConfig.parse(self.kind, self.path.read_text(encoding="utf-8", errors="surrogateescape"))
        except FileNotFoundError:
            raise Died(f"Configuration file '{self.relative_path}' does not exist") from None

    def save(self, config: GuestConfig) -> None:
        """Write the configuration, and what the machine keeps of it: its name, whether it starts with the host.

        Raises:
            ApiError: 500, the node has no quorum, so that /etc/pve can't be written.
        """
        require_writable(self.host, f"/etc/pve/{self.relative_path}")
        place = f"/etc/pve/{self.relative_path}"
        self.host.write(f"{place}.tmp.{os.getpid()}", config.text(), 0o640)
        with contextlib.suppress(FileNotFoundError):
            self.host.rooted(place).unlink()
            time.sleep(_GONE_SECONDS)  # as on pmxcfs: while one file takes another's place, who opens it finds none
        self.host.rooted(f"{place}.tmp.{os.getpid()}").rename(self.host.rooted(place))
        with self.host.changing() as machine:
            entry = machine["guests"].setdefault(str(self.vmid), {"running": False, "at_start": False})
            onboot = config.merged().get("onboot") == "1" and config.merged().get("template") != "1"
            entry |= {"kind": _MACHINE_KINDS[self.kind], "name": self.name(config), "onboot": onboot}

    def take_pending(self, config: GuestConfig) -> None:
        """Put in force what waits for the start, and write it."""
        if config.is_pending:
            config.apply_pending()
            self.save(config)

    def purge(self, log: Callable[[str], None]) -> None:
        """Take one whose disks are gone out of the lists of jobs: each is written anew, as PVE::ReplicationConfig and PVE::VZDump::Plugin do.

        Raises:
            ApiError: 500, somebody changes them: what is left of the guest stays.
        """
        left = GuestConfig(self.kind)
        left.values["lock"] = "destroyed"
        self.save(left)
        log(f"purging {self.label} from related configurations..")
        require_cluster_lock(self.host, "file-replication_cfg")
        for name in ("replication.cfg", "jobs.cfg"):
            self.host.write(f"/etc/pve/{name}", self.host.read(f"/etc/pve/{name}", ""), 0o640)
        self.host.write("/etc/pve/vzdump.cron", _CRON, 0o640)

    def remove(self) -> None:
        """Remove the configuration, and what was inside the guest."""
        self.path.unlink()
        if self.folder.exists():
            shutil.rmtree(self.folder)
        with self.host.changing() as machine:
            machine["guests"].pop(str(self.vmid), None)

    def name(self, config: GuestConfig) -> str:
        """What it is called in lists."""
        fallback = f"VM {self.vmid}" if self.kind == "qemu" else f"CT{self.vmid}"
        return config.merged().get("name" if self.kind == "qemu" else "hostname", fallback)

    # -- the running guest -------------------------------------------------------------------------------
    @property
    def _record(self) -> dict[str, Any]:
        self.host.reload()
        found: dict[str, Any] = self.host.machine["guests"].get(str(self.vmid), {})
        return found

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return bool(self._record.get("running")) and self.exists

    @property
    def paused(self) -> bool:
        """Whether it runs and its processors are halted."""
        return self.running and bool(self._record.get("paused"))

    def set_paused(self, paused: bool) -> None:
        """Halt its processors, or let them go on."""
        with self.host.changing() as machine:
            machine["guests"][str(self.vmid)]["paused"] = paused

    @property
    def started_at(self) -> float | None:
        """When it was started, in seconds since 1970; for one that came up with the host, when that did."""
        started = self._record.get("started_at") or self.host.running.get("started_at")
        return float(started) if started else None

    @property
    def uptime(self) -> float:
        """Seconds since it was started; 0 when it doesn't run."""
        started = self.started_at
        return max(0.0, time.time() - started) if self.running and started else 0.0

    @property
    def system_started(self) -> float:
        """When the system in it was last started, in seconds since 1970: at the guest's start, or its last reboot from inside."""
        return max(self.started_at or 0.0, float(self._record.get("restarted_at") or 0.0))

    @property
    def booted(self) -> bool:
        """Whether what runs in it has come up: it reacts to a shutdown, its agent answers."""
        return self.running and time.time() - self.system_started >= BOOT_SECONDS

    @property
    def system(self) -> dict[str, Any]:
        """What it has installed (lab.host.distributions.system)."""
        found: dict[str, Any] = self._record.get("system") or default_system()
        return found

    def set_system(self, system: dict[str, Any]) -> None:
        """Have it another system installed, or that of the VM that it's a clone of."""
        with self.host.changing() as machine:
            machine["guests"][str(self.vmid)]["system"] = system

    @property
    def pid(self) -> int:
        """The process that it runs in."""
        return 20000 + self.vmid

    @property
    def nvidia_at_first(self) -> str | None:
        """The version of NVIDIA's libraries in a container as its scenario describes it."""
        found: str | None = self._record.get("nvidia")
        return found

    def set_running(self, running: bool) -> None:
        """Let it run, or not."""
        if str(self.vmid) not in self.host.machine["guests"]:
            self.save(self.config())  # its file was put there by hand
        with self.host.changing() as machine:
            entry = machine["guests"][str(self.vmid)]
            entry |= {"running": running, "started_at": time.time() if running else None, "restarted_at": None}
            entry.pop("paused", None)
        mark_running(self.host, str(self.vmid), running)

    def restart_system(self) -> None:
        """Note that the system in it reboots; QEMU, and so the guest's uptime, goes on."""
        with self.host.changing() as machine:
            machine["guests"][str(self.vmid)]["restarted_at"] = time.time()

    def has_fault(self, name: str) -> bool:
        """Whether a fault names it, or every guest."""
        fault = self.host.fault(name)
        return fault is True or (fault is not None and fault is not False and str(fault) == str(self.vmid))

    def meets_held_lock(self) -> bool:
        """Whether another process has its configuration's lock just now: each time this is asked uses one up."""
        if not self.host.fault("config-lock"):
            return False
        with self.host.changing() as machine:
            machine["faults"]["config-lock"] = int(machine["faults"]["config-lock"]) - 1
        return True


def reacts(guest: Guest, seconds: float) -> Generator[float, None, bool]:
    """Wait for so long until a guest that runs reacts to a shutdown; return whether it does."""
    waited = 0.0
    while guest.running and (guest.has_fault("guest-ignores-shutdown") or not guest.booted):
        if waited >= seconds:
            return False
        step = min(0.1, seconds - waited)
        yield step
        waited += step
    return True


def disturbed(guest: Guest) -> GuestConfig:
    """The configuration; under the fault foreign-change somebody else has written it a moment ago."""
    count = guest.host.fault("foreign-change")
    if count:
        with guest.host.changing() as machine:
            machine["faults"]["foreign-change"] = int(count) - 1
        config = guest.config()
        config.values["description"] = f"changed by somebody else, {time.time():.6f}"
        guest.save(config)
    return guest.config()


def guests_of(host: HostState, kind: Kind) -> list[Guest]:
    """This node's VMs or containers, by id."""
    folder = host.rooted(f"/etc/pve/nodes/{host.node}/{_FOLDERS[kind]}")
    found = [path.stem for path in folder.glob("*.conf") if path.stem.isdigit()]
    return [Guest(host, kind, int(vmid)) for vmid in sorted(found, key=int)]


def all_ids(host: HostState) -> dict[int, tuple[str, Kind]]:
    """Every guest of the cluster: id -> node and kind."""
    found: dict[int, tuple[str, Kind]] = {}
    for kind, folder in _FOLDERS.items():
        for path in host.rooted("/etc/pve/nodes").glob(f"*/{folder}/*.conf"):
            if path.stem.isdigit():
                found[int(path.stem)] = (path.parent.parent.name, kind)
    return found


def taken_by(host: HostState, vmid: int) -> str | None:
    """Who has an id, on this node or another, in a node's words; None when it is free."""
    if vmid not in all_ids(host):
        return None
    node, kind = all_ids(host)[vmid]
    return f"{_NAMES[kind]} {vmid} already exists on node '{node}'"


def require_unlocked(guest: Guest, config: GuestConfig) -> None:
    """Refuse to change a guest that is locked.

    Raises:
        ApiError: 500, with the lock.
    """
    if lock := config.values.get("lock"):
        raise Died(f"{_NAMES[guest.kind]} is locked ({lock})")


@dataclass
class Change:
    """What a request wants changed in a configuration: values as texts, keys to delete, pending ones to give up."""

    values: dict[str, str]
    delete: list[str]
    revert: list[str]
    digest: str | None

    @classmethod
    def of(cls, kind: Kind, parameters: dict[str, Any]) -> Change:
        """Take a change out of a request's parameters.

        Raises:
            ApiError: nothing is wanted, or what can't be.
        """
        options = reference().options[kind]
        values = option_values(kind, parameters)
        delete = split_list(parameters.get("delete", ""))
        revert = split_list(parameters.get("revert", ""))
        if not (values or delete or revert):
            raise Died("no options specified")
        for name, keys in (("delete", delete), ("revert", revert)):
            for key in keys:
                if key in values:
                    raise bad_parameters({name: f"you can't use '-{key}' and -{name} {key}' at the same time"})
                if key not in options:
                    raise bad_parameters({name: f"unknown option '{key}'"})
        return cls(values, delete, revert, parameters.get("digest"))

    @property
    def keys(self) -> list[str]:
        """All keys that it is about."""
        return [*self.delete, *self.revert, *self.values]


def option_values(kind: Kind, parameters: dict[str, Any]) -> dict[str, str]:
    """Those of a request's parameters that go into a configuration, as texts."""
    options = reference().options[kind]
    found = {name: _text(value) for name, value in parameters.items() if name in options}
    return found | ({"tags": normal_tags(found["tags"])} if "tags" in found else {})


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def normal_tags(text: str) -> str:
    """Tags as a node keeps them: each once whatever its case, sorted, separated by semicolons."""
    seen: dict[str, str] = {}
    for tag in split_list(text):
        seen.setdefault(tag.lower(), tag)
    return ";".join(seen[key] for key in sorted(seen))


def new_mac(seed: str) -> str:
    """A MAC address with Proxmox' prefix; the same for the same seed."""
    digest = hashlib.sha256(seed.encode()).hexdigest().upper()
    return "BC:24:11:" + ":".join(digest[i : i + 2] for i in (0, 2, 4))
