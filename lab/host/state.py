"""Where a lab host keeps its state: the paths under one state folder, machine.json and the logs of programs.

machine.json holds what is not in the file tree: hardware, firmware switches, faults, which guests run.
kernel.json holds what only the running kernel knows: module options, drivers bound, the clock of dmesg.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Permissions of a control file of sysfs: the sticky bit tells it from every other file (sysfs_writes.py).
CONTROL_FILE = 0o1644
#: How a command server is reached: sendmsg(2)'s number here, a colon, the name of its socket without its mount namespace.
COMMANDS = "LAB_COMMANDS"
#: The Python of a host or guest, by the path that this program names; and what each bash there reads first (BASH_ENV), by which it is the lab's
#: (host_python.py).
HOST_PYTHON = "/usr/bin/python3"
#: Where a node's pvedaemon listens.
PVEDAEMON = ("127.0.0.1", 85)
#: apt's configuration, in STATE/bin.
APT_CONFIG = "apt.conf"
SHELL_FILE = "bash-env"
PYTHON_IN_BASH = f'{HOST_PYTHON}() {{ "$LAB_STATE/bin/lab-python" "$@" || return; }}\n'


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with `text` in one step, so that a reader never sees half a file."""
    folder, _, name = str(path).rpartition("/")
    temporary = f"{folder}/.{name}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)
    os.replace(temporary, path)  # noqa: PTH105


def append_line(path: Path, text: str) -> None:
    """Add a line to a file in one write, so that lines of several writers never mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def write_file(path: str, data: bytes, mode: int) -> None:
    """Write a file whole, with its mode; not by a Path and a buffer, which take as long again: a host has hundreds of files.

    Raises:
        OSError: it can't be made, or the disk has no room for all of it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def stamp(path: str) -> tuple[int, ...]:
    """What a file has for each content of its own, where it is put in place whole; nothing where there is none."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


class HostState:
    """The paths and the small JSON files of one lab host.

    Args:
        state: the lab's state folder (absolute).
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.root = state / "root"
        self.esp = state / "esp"
        self.log = state / "log"
        #: Boot tools say nothing on stderr: an installation, which nobody watches.
        self.quiet = False
        self._machine: dict[str, Any] | None = None
        self._changed: dict[str, Any] | None = None

    @classmethod
    def from_environment(cls) -> HostState:
        """The host a program runs on, from LAB_STATE.

        Raises:
            SystemExit: LAB_STATE is not set, so this is not a lab host's environment.
        """
        state = os.environ.get("LAB_STATE")
        if not state:
            raise SystemExit(
                "lab: LAB_STATE is not set: this program simulates a Proxmox command and only runs inside a lab"
                " host's environment; start one with `python -m lab run -- <command>`"
            )
        return cls(Path(state))

    # -- machine.json ------------------------------------------------------------------------------------
    @property
    def machine(self) -> dict[str, Any]:
        """machine.json, read once per object; change it and call `save_machine`."""
        if self._machine is None:
            self._machine = json.loads((self.state / "machine.json").read_text(encoding="utf-8"))
        return self._machine

    def reload(self) -> None:
        """Forget what was read of machine.json: somebody else may have changed it."""
        self._machine = None

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """Change machine.json alone: read anew, changed by the caller, written, while nobody else does the same."""
        with (self.state / ".machine.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.reload()
            yield self.machine
            self.save_machine()

    def save_machine(self) -> None:
        """Write machine.json as it is in memory; in one line, since indentation costs most of the time that this takes."""
        write_atomically(self.state / "machine.json", json.dumps(self.machine, sort_keys=True) + "\n")

    @property
    def node(self) -> str:
        """The node's name, which is the host's."""
        return str(self.machine["node"])

    def fault(self, name: str) -> Any:
        """The value of a fault that is set, else None."""
        return self.machine["faults"].get(name)

    # -- paths -------------------------------------------------------------------------------------------
    def rooted(self, path: str) -> Path:
        """A host path (`/etc/default/grub`), or one that already starts with HOMELAB_ROOT, as a path on this machine."""
        return Path(self._place(path))

    def _place(self, path: str) -> str:
        # As text: simulated commands and boots ask for paths by the thousand, and a Path takes ten times as long.
        root = str(self.root)
        return path if path == root or path.startswith(f"{root}/") else f"{root}/{path.lstrip('/')}"

    def unrooted(self, path: str | Path) -> str:
        """The host's own name of a path below HOMELAB_ROOT; other paths are returned as they are."""
        text, root = str(path), str(self.root)
        if text == root:
            return "/"
        return text[len(root) :] if text.startswith(root + "/") else text

    def read(self, path: str, default: str | None = None) -> str:
        """The text of a host file.

        Raises:
            FileNotFoundError: it isn't there and no default was given.
        """
        try:
            with open(self._place(path), encoding="utf-8", errors="surrogateescape", newline="") as file:  # noqa: PTH123
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            if default is None:
                raise
            return default

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a host file whole, with its folders and its mode."""
        target = self._place(path)
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        try:
            write_file(target, data, mode)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            write_file(target, data, mode)

    def symlink(self, path: str, target: str) -> None:
        """Make `path` a symbolic link to `target` (as text), replacing what was there."""
        link = self._place(path)
        try:
            os.symlink(target, link)  # noqa: PTH211
        except FileNotFoundError:
            os.makedirs(os.path.dirname(link), exist_ok=True)  # noqa: PTH103, PTH120
            os.symlink(target, link)  # noqa: PTH211
        except FileExistsError:
            os.unlink(link)  # noqa: PTH108
            os.symlink(target, link)  # noqa: PTH211

    def remove_tree(self, path: str | Path) -> None:
        """Remove a folder with all that is in it, nothing where there is none: a host path, or a Path of this machine."""
        import shutil

        shutil.rmtree(path if isinstance(path, Path) else self.rooted(path), ignore_errors=True)

    # -- the running system ------------------------------------------------------------------------------
    @property
    def running(self) -> dict[str, Any]:
        """kernel.json: what the running kernel knows; empty when the host is off. To change it, see `changing_running`."""
        if self._changed is not None:
            return self._changed
        path = self.state / "kernel.json"
        if not path.exists():
            return {}
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return data

    @contextlib.contextmanager
    def changing_running(self) -> Iterator[dict[str, Any]]:
        """Change kernel.json alone: read anew, changed by the caller, written, while no other program does the same.

        Empty when the host is off; who empties it switches the host off. Inside of such a change it is that change.
        """
        if self._changed is not None:
            yield self._changed
            return
        with (self.state / ".kernel.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            data = self.running
            before = json.dumps(data, sort_keys=True)
            self._changed = data
            try:
                yield data
            finally:
                self._changed = None
                self._write_running(before, data)

    def save_running(self, data: dict[str, Any]) -> None:
        """Write the kernel.json of a kernel that was just started."""
        with self.changing_running() as running:
            if running is not data:
                running.clear()
                running.update(data)

    def _write_running(self, before: str, data: dict[str, Any]) -> None:
        path, text = self.state / "kernel.json", json.dumps(data, sort_keys=True)
        if not data:
            path.unlink(missing_ok=True)
        elif text != before:
            write_atomically(path, text + "\n")

    def kernels(self) -> list[str]:
        """Kernel versions with an image in /boot, oldest first (the order of `sort -V`)."""
        boot = self.root / "boot"
        names = [p.name.removeprefix("vmlinuz-") for p in boot.glob("vmlinuz-*")] if boot.exists() else []
        return sorted(names, key=version_key)

    def cmdline(self) -> str:
        """The running kernel's command line, without the newline."""
        return self.read("/proc/cmdline", "").rstrip("\n")

    # -- logs --------------------------------------------------------------------------------------------
    def log_program(self, program: str, args: list[str], exit_code: int, note: str | None = None) -> None:
        """Record a run of a program that changes something, or that was asked for what it doesn't know."""
        entry: dict[str, Any] = {
            "program": program,
            "args": [self.unrooted(a) for a in args],
            "exit": exit_code,
            "at": round(time.time(), 3),
        }
        if note is not None:
            entry["note"] = note
        self.log.mkdir(parents=True, exist_ok=True)
        append_line(self.log / "programs.jsonl", json.dumps(entry, sort_keys=True))

    def kernel_message(self, text: str, seconds: float | None = None) -> None:
        """Add a line to the kernel's ring buffer (what dmesg prints)."""
        self.drain_kmsg()
        with (self.state / "dmesg").open("a", encoding="utf-8") as ring:
            ring.write(f"{self.uptime() if seconds is None else seconds:.6f} {text}\n")

    def drain_kmsg(self) -> None:
        """Move what programs wrote to /dev/kmsg into the ring buffer, as the kernel would at once."""
        kmsg = self.root / "dev/kmsg"
        if not kmsg.exists() or kmsg.stat().st_size == 0:
            return
        text = kmsg.read_text(encoding="utf-8", errors="replace")
        kmsg.write_text("", encoding="utf-8")
        with (self.state / "dmesg").open("a", encoding="utf-8") as ring:
            for line in text.splitlines():
                body = line.partition(">")[2] if line.startswith("<") else line
                ring.write(f"{self.uptime():.6f} {body}\n")

    def clock(self) -> int:
        """What its clock says, in seconds since 1970; it can be wrong, and be set, and what has passed since a start isn't changed by it."""
        return int(time.time() + float(self.fault("clock-ahead") or 0))

    def uptime(self) -> float:
        """Seconds since the running kernel was started; 0 while the host is off."""
        started = self.running.get("started_at")
        return max(0.0, time.time() - float(started)) if started is not None else 0.0


#: What the program calls a system's tree; what version 2.0.0 has left there knows it as ROOT.
ROOTS = ("HOMELAB_ROOT", "ROOT")
#: The end of a host's PATH: this machine's own programs.
OF_MACHINE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def of_command_server() -> dict[str, str]:
    """The variable by which a simulated command finds the command server (command_server.py); nothing where none runs."""
    return {name: os.environ[name] for name in (COMMANDS,) if name in os.environ}


def of_root(root: Path) -> dict[str, str]:
    """The variables by which the program finds a system's tree."""
    return dict.fromkeys(ROOTS, str(root))


def of_packages(state: Path) -> dict[str, str]:
    """The variables by which this machine's apt and dpkg work on a lab's system."""
    return {
        "APT_CONFIG": f"{state}/bin/{APT_CONFIG}",
        "DPKG_ROOT": f"{state}/root",
        "DPKG_FORCE": "security-mac,downgrade,not-root,script-chrootless,unsafe-io",
    }


def host_environment(state: Path) -> dict[str, str]:
    """The environment in which commands and scripts run on a host; nothing of the caller's is in it."""
    return {
        **of_root(state / "root"),
        "LAB_STATE": str(state),
        **of_command_server(),
        **of_packages(state),
        "HOME": str(state / "root/root"),
        "PATH": f"{own_path(state / 'root')}:{state}/bin:{OF_MACHINE}",
        "LC_ALL": "C.UTF-8",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "BASH_ENV": str(state / SHELL_FILE),
    }


def own_path(root: Path) -> str:
    """The part of PATH that leads to a system's own programs, in its tree."""
    return ":".join(f"{root}/{folder}" for folder in ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin"))


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key for kernel versions, numbers compared as numbers (`sort -V`)."""
    parts = re.split(r"(\d+)", version)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


def kernel_release(version: str) -> tuple[int, int]:
    """(6, 8) of `6.8.12-9-pve`."""
    major, minor = version.split("-")[0].split(".")[:2]
    return int(major), int(minor)
