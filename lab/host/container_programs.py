"""Programs that open device nodes, those that become another user, id, getent: all of them inside a container; dd and setpriv on
the host and in VMs as well.

A node of a driver is opened and no more: what NVIDIA's say to read(2) is EINVAL, and so it is here.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import container, nvidia
from .container import Identity
from .node_programs import is_at_nodes, real
from .nodes import read_node
from .program import Failure, UsageError
from .state import HostState

# What can be read from and written to is this machine's own node.
_SAME_EVERYWHERE = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))


def main(system: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    work: dict[str, Callable[[HostState, list[str]], int]] = {
        "cat": _cat, "head": _head, "dd": _dd, "setpriv": _setpriv, "getent": _getent,
    }  # fmt: skip
    return work[name](system, arguments)


# -- opening ---------------------------------------------------------------------------------------------------
class Opened:
    """What open(2) makes of a path: `error` is its errno or 0, `node` whether a driver's node is behind it."""

    def __init__(self, system: HostState, path: str, wanted: str) -> None:
        self.path = path
        if "container" not in system.machine:
            self._open_outside(system, wanted)
            return
        inside = container.name_inside(system, path)
        self.node = inside in container.nodes(system) and inside not in _SAME_EVERYWHERE
        self.error = container.opening(system, inside, wanted, Identity.current()) if inside.startswith("/dev/") else 0
        self.place = inside if inside in _SAME_EVERYWHERE else str(system.rooted(inside))

    def _open_outside(self, system: HostState, wanted: str) -> None:
        """On the host or in a VM: the node's mode counts, and whether one of NVIDIA's has its driver behind it."""
        place = system.rooted(self.path) if self.path.startswith("/") else Path.cwd() / self.path
        same = system.unrooted(place) in _SAME_EVERYWHERE
        found, who = None if same else read_node(place), Identity.current()
        self.place, self.node, self.error = system.unrooted(place) if same else str(place), found is not None, 0
        if found is None and not same and not place.exists():
            self.error = errno.ENOENT
        elif found is not None and not found.permits(wanted, who.uid, who.gids):
            self.error = errno.EACCES
        elif found is not None and not nvidia.behind(system, found):
            self.error = errno.ENXIO

    @property
    def text(self) -> str:
        """The error as strerror(3) has it."""
        return os.strerror(self.error)


def _cat(system: HostState, arguments: list[str]) -> int:
    return _read_files(system, "cat", arguments, "{name}: {path}: {error}", "{name}: {path}: {error}")


def _head(system: HostState, arguments: list[str]) -> int:
    return _read_files(
        system,
        "head",
        arguments,
        "{name}: cannot open '{path}' for reading: {error}",
        "{name}: error reading '{path}': {error}",
    )


def _read_files(system: HostState, name: str, arguments: list[str], refused: str, unreadable: str) -> int:
    """A program that reads files: this machine's own, with devices left out and reported."""
    kept, status, takes_value = [], 0, False
    for word in arguments:
        if takes_value or (word.startswith("-") and word != "-") or word == "-":
            takes_value = not takes_value and name == "head" and word in ("-n", "-c")
            kept.append(word)
            continue
        opened = Opened(system, word, "r")
        if opened.error or opened.node:
            text = opened.text if opened.error else os.strerror(errno.EINVAL)
            form = refused if opened.error else unreadable
            print(form.format(name=name, path=word, error=text), file=sys.stderr)
            status = 1
            continue
        kept.append(opened.place)
    if status and not any(not word.startswith("-") for word in kept):
        return status
    return real(name, kept) or status


def _dd(system: HostState, arguments: list[str]) -> int:
    """dd: its two openings, in its order, then nothing is copied from or to a driver's node."""
    if not is_at_nodes(system, arguments):
        return real("dd", arguments)
    operands = dict(word.partition("=")[::2] for word in arguments)
    flags = operands.get("conv", "").split(",")
    opened = [
        (key, Opened(system, operands[key], "r" if key == "if" else "w")) for key in ("if", "of") if key in operands
    ]
    for key, file in opened:
        missing = file.error == errno.ENOENT
        if file.error and not (missing and key == "of" and "nocreat" not in flags):
            raise Failure(f"dd: failed to open '{file.path}': {file.text}")
    quiet = operands.get("status") in ("none", "noxfer")
    if not any(file.node for _, file in opened):
        places = {key: file.place for key, file in opened}
        return real("dd", [f"{k}={places[k]}" if k in places else w for w in arguments for k in [w.partition("=")[0]]])
    counts = "0+0 records in\n0+0 records out\n0 bytes copied, 0 s, 0.0 kB/s"
    if operands.get("count") == "0":
        if not quiet:
            print(counts, file=sys.stderr)
        return 0
    reading, file = opened[0]
    verb = "reading" if reading == "if" and file.node else "writing"
    raise Failure(f"dd: error {verb} '{file.path}': {os.strerror(errno.EINVAL)}" + ("" if quiet else f"\n{counts}"))


# -- becoming another user -------------------------------------------------------------------------------------
def _become(system: HostState, who: Identity, command: list[str]) -> int:
    """Run a command as somebody else; paths of a container's tree in it become those of that user's view."""
    if "container" not in system.machine:
        import subprocess

        gids = ",".join(str(gid) for gid in sorted(who.gids))
        where = {**os.environ, "LAB_UID": str(who.uid), "LAB_GIDS": gids}
        done = subprocess.run(command, env=where, check=False)
        return done.returncode if done.returncode >= 0 else 128 - done.returncode
    old, new = os.environ["HOMELAB_ROOT"], str(container.view_of(system, who))
    return container.run(system, [word.replace(old, new) for word in command], who)


def _setpriv(system: HostState, arguments: list[str]) -> int:
    current = Identity.current()
    uid, gid, groups = current.uid, min(current.gids), set(current.gids)
    queue = list(arguments)
    while queue and queue[0].startswith("--"):
        key, equals, value = queue.pop(0).partition("=")
        if key == "--":
            break
        if key in ("--clear-groups", "--keep-groups", "--init-groups", "--no-new-privs", "--reset-env"):
            groups = set() if key == "--clear-groups" else groups
            continue
        value = value if equals else queue.pop(0) if queue else ""
        if key in ("--reuid", "--ruid", "--euid"):
            uid = int(value)
        elif key in ("--regid", "--rgid", "--egid"):
            gid = int(value)
        elif key == "--groups":
            groups = {int(group) for group in value.split(",")}
        elif key not in ("--inh-caps", "--ambient-caps", "--bounding-set"):
            raise UsageError(f"unrecognized option '{key}'")
    if current.uid != 0 and (uid != current.uid or gid not in current.gids):
        raise Failure("setpriv: setresuid failed: Operation not permitted")
    if not queue:
        raise Failure("setpriv: No program specified")
    return _become(system, Identity(uid, frozenset(groups | {gid})), queue)


def _getent(system: HostState, arguments: list[str]) -> int:
    """Lines of the group or the password file: those that are asked for by name or number, or all."""
    if arguments[:1] not in (["group"], ["passwd"]):
        raise UsageError("getent: the lab's knows group and passwd")
    lines = system.read(f"/etc/{arguments[0]}", "").splitlines()
    found = [next((one for one in lines if key in one.split(":")[:3:2]), None) for key in arguments[1:]]
    for line in found if arguments[1:] else lines:
        if line is not None:
            print(line)
    return 2 if None in found else 0
