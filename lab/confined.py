"""A command on the lab's host that can't touch this machine: for `python -m lab run`, where a person breaks things on purpose.

In namespaces of its own (user_namespaces(7), mount_namespaces(7), pid_namespaces(7)): everything is read-only but the lab's folder, the
lab's own folders stand where a host has them (`cat /etc/hostname` is the lab's), and so does what the lab has of /proc, processes included; /dev
has no device of this machine, its processes can't be seen, and root there has no right to undo any of that. Programs are this machine's, as always in
a lab, and so is what else is in /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from lab.state import LabError

# Flags of mount(2), unshare(2) and prctl(2), from the kernel's headers.
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_NEWNS, _NEWUSER, _NEWPID = 0x20000, 0x10000000, 0x20000000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 0x1
# What root may still do, of capabilities(7): own, read and write files, become a user. Nothing about mounts, devices, the kernel.
_KEPT_CAPABILITIES = {0, 1, 2, 3, 4, 6, 7}
_LAST_CAPABILITY = 63
# Folders of a lab's host that stand in this machine's place. Its programs are needed; of /proc and /dev below.
_OF_THE_LAB = ("boot", "etc", "home", "mnt", "opt", "root", "run", "sys", "tmp", "var")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_ALTERNATIVES = "/etc/alternatives"
# Where the kernel's /proc is, and the lab's; the one that is seen has links to both.
_PROC_OF_THE_KERNEL, _PROC_OF_THE_LAB = Path("/dev/.kernel-proc"), Path("/dev/.lab-proc")
# Of whoever asks: the kernel's alone.
_OF_THE_ASKER = ("self", "thread-self")
# What the process that sets all this up ends with, where it can't be had.
_IMPOSSIBLE = 225


def run(text: str, state: Path, environment: dict[str, str], control: str) -> int:
    """Runs bash text on the host; returns its exit status.

    Args:
        state: the lab's folder, all that can be written.
        control: its daemon's socket.

    Raises:
        LabError: this machine has no such namespaces; nothing was run.
    """
    needed = [str(state), control, sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[1])]
    specification = json.dumps({"text": text, "state": str(state), "needed": [one for one in needed if one]})
    child = environment | _libraries() | {"TMPDIR": str(state / "root/tmp")}
    # -I -S: it starts at once, and nothing of the caller's environment leads it.
    command = [sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).resolve().parents[1]), specification]
    read, write = os.pipe()
    try:
        done = subprocess.run([*command, str(write)], env=child, pass_fds=[write], check=False)
    finally:
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            why = pipe.read()
    if done.returncode == _IMPOSSIBLE and why:
        raise LabError(
            f"Unable to keep a command away from this machine: wanted namespaces of its own (mounts, processes), found: {why}. Without "
            "them a path without $HOMELAB_ROOT before it, or an rm of too much, would be this machine's, so nothing was run. Run it as root, "
            "or let users have namespaces (Debian: `sysctl kernel.unprivileged_userns_clone=1`; Ubuntu: "
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`); or use --unprotected, if you know what the command does."
        )
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


# The module's imports need no package but the lab's own.
_START = (
    "import sys; sys.path.append(sys.argv[1]); from lab.confined import inside; inside(sys.argv[2], int(sys.argv[3]))"
)


def _libraries() -> dict[str, str]:
    """Where this Python's own library is, if only this machine's /etc/ld.so.cache says so: the lab's /etc stands in its place."""
    folder = str(sysconfig.get_config_var("LIBDIR") or "")
    shared = bool(sysconfig.get_config_var("Py_ENABLE_SHARED"))
    return {"LD_LIBRARY_PATH": folder} if shared and folder and not folder.startswith(("/usr/lib", "/lib")) else {}


def inside(specification: str, report: int) -> None:
    """In the process of its own: sets it up and becomes bash. What can't be had goes to the file descriptor `report`."""
    wanted = json.loads(specification)
    try:
        state = Path(wanted["state"])
        _unshare()
        if child := os.fork():
            # The terminal's signals reach the command by themselves.
            for number in (signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            os.close(report)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        _mounts(state, wanted["needed"])
        _give_up_rights()
        os.chdir(_home(state, wanted["needed"]))
        os.set_inheritable(report, False)
        os.execvp("bash", ["bash", "-c", wanted["text"]])
    except OSError as error:
        os.write(report, str(error).encode())
        os._exit(_IMPOSSIBLE)


def _home(state: Path, needed: Iterable[str]) -> str:
    return "/root" if _is_free("/root", needed) else str(state / "root/root")


def _unshare() -> None:
    """New namespaces; one of users first, where this isn't root or a root that may not (in a container)."""
    user, group = os.getuid(), os.getgid()
    if user == 0:
        with contextlib.suppress(PermissionError):
            return _call("unshare", _NEWNS | _NEWPID)
    _call("unshare", _NEWUSER | _NEWNS | _NEWPID)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return None


def _mounts(state: Path, needed: list[str]) -> None:
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", 0)
    _bind(str(state), str(state))
    written = [str(state)]
    _devices()
    _proc(state / "root/proc")
    # Some of this machine's programs (awk, vi) are links to there.
    alternatives = os.open(_ALTERNATIVES, os.O_PATH) if Path(_ALTERNATIVES).is_dir() else None
    for name in _OF_THE_LAB:
        here = f"/{name}"
        if (state / "root" / name).is_dir() and Path(here).is_dir() and _is_free(here, needed):
            _bind(str(state / "root" / name), here)
            written.append(here)
    if alternatives is not None:
        if "/etc" in written and Path(_ALTERNATIVES).is_dir():
            _bind(f"/proc/self/fd/{alternatives}", _ALTERNATIVES)
        os.close(alternatives)
    _read_only("/", _AT_RECURSIVE, on=True)
    for path in written:
        _read_only(path, 0, on=False)
    _mount("tmpfs", "/dev/shm", "tmpfs", 0)


def _is_free(path: str, needed: Iterable[str]) -> bool:
    """Whether nothing that is needed lies below a path; links followed, as the mount would."""
    there = os.path.realpath(path)
    return not any(os.path.realpath(one) == there or os.path.realpath(one).startswith(f"{there}/") for one in needed)


def _devices() -> None:
    """A /dev with the few that programs need, and no disk, memory or card of this machine."""
    handles = {name: os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES if Path("/dev", name).exists()}
    terminals = os.open("/dev/pts", os.O_PATH) if Path("/dev/pts").is_dir() else None
    _mount("tmpfs", "/dev", "tmpfs", 0)
    for name, handle in handles.items():
        Path("/dev", name).touch()
        _bind(f"/proc/self/fd/{handle}", f"/dev/{name}")
        os.close(handle)
    Path("/dev/shm").mkdir()
    Path("/dev/pts").mkdir()
    if terminals is not None:
        _bind(f"/proc/self/fd/{terminals}", "/dev/pts")
        os.close(terminals)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        Path("/dev", name).symlink_to(target)


def _proc(lab: Path) -> None:
    """A /proc of links, since nothing can be made in the kernel's: to what the lab has, as it is by then, and for the rest to the kernel's."""
    for folder, source in ((_PROC_OF_THE_KERNEL, "/proc"), (_PROC_OF_THE_LAB, str(lab))):
        folder.mkdir()
        _bind(source, str(folder))
    _mount("tmpfs", "/proc", "tmpfs", 0)
    _link(Path("/proc"), _PROC_OF_THE_LAB, _PROC_OF_THE_KERNEL)


def _link(here: Path, lab: Path, kernel: Path) -> None:
    ours = {one.name for one in lab.iterdir() if one.name not in _OF_THE_ASKER}
    # The command's own processes have no number there: the lab's have theirs.
    for name in sorted(ours | {one.name for one in kernel.iterdir() if not one.name.isdigit()}):
        of_the_lab, of_the_kernel = lab / name, kernel / name
        if name not in ours:
            (here / name).symlink_to(of_the_kernel)
        elif of_the_lab.is_dir() and of_the_kernel.is_dir() and not of_the_kernel.is_symlink():
            (here / name).mkdir()
            _link(here / name, of_the_lab, of_the_kernel)
        else:
            (here / name).symlink_to(of_the_lab)


def _give_up_rights() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_LAST_CAPABILITY + 1):
        if capability not in _KEPT_CAPABILITIES:
            # EINVAL: the kernel has no such one.
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")


def _bind(source: str, target: str) -> None:
    _mount(source, target, None, _MS_BIND | _MS_REC)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _call("mount", *words, ctypes.c_ulong(flags), None, what=f"mount of {source or kind} on {target}")


class _Attributes(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _read_only(path: str, flags: int, *, on: bool) -> None:
    """With `_AT_RECURSIVE` all that is mounted below, too; other options of each mount stay."""
    attributes = _Attributes(_MOUNT_ATTR_RDONLY if on else 0, 0 if on else _MOUNT_ATTR_RDONLY, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    number, folder = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD)
    _call(
        "syscall",
        number,
        folder,
        path.encode(),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        size,
        what=f"mount_setattr of {path}",
    )


def _call(name: str, *arguments: object, what: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({what or name})")
