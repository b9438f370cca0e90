"""Device nodes in a lab's trees: what stands for one, who may open it.

A real node needs CAP_MKNOD, and opening one needs a driver behind it. A lab runs as an ordinary user, so a node is a
regular file with a line in it: kind, numbers, owner. Its mode is the file's own, so that `chmod` works on it. The
programs that tell a device from a file (`stat`, `mknod`; `test` in a container) are the lab's own where a path in /dev is
named, on the host and in containers; `node_programs` has them.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
from pathlib import Path
from typing import Literal, NamedTuple

_LINE = re.compile(r"device ([cb]) (\d+):(\d+) owner (\d+):(\d+)\n")
_LONGEST = 80
READ, WRITE, MKNOD = "r", "w", "m"


class Node(NamedTuple):
    """A character (`c`) or block (`b`) device; `mode` are the permission bits.

    `mapped` is False for one whose owner the user namespace that looks at it doesn't know: nobody there owns it, and not
    even root may pass over its mode (capable_wrt_inode_uidgid in fs/inode.c).
    """

    kind: Literal["c", "b"]
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    mapped: bool = True

    @property
    def numbers(self) -> str:
        """`195:0`."""
        return f"{self.major}:{self.minor}"

    def permits(self, wanted: str, uid: int, gids: frozenset[int]) -> bool:
        """Whether its mode lets a user do all of `wanted` (`r`, `w`)."""
        if uid == 0 and self.mapped:
            return True
        shift = 0 if not self.mapped else 6 if uid == self.uid else 3 if self.gid in gids else 0
        return all(self.mode >> shift & (4 if letter == READ else 2) for letter in wanted)


def write_node(path: Path, node: Node) -> None:
    """Put a node into a tree, whole, in place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, f"device {node.kind} {node.numbers} owner {node.uid}:{node.gid}\n".encode())
        os.fchmod(descriptor, node.mode)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def read_node(path: Path) -> Node | None:
    """The node at a path, links followed; None when nothing is there, or something else."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= _LONGEST:
        return None
    match = _LINE.fullmatch(_text(path, found.st_mode))
    if match is None:
        return None
    major, minor, uid, gid = (int(match[number]) for number in range(2, 6))
    return Node("c" if match[1] == "c" else "b", major, minor, stat.S_IMODE(found.st_mode), uid, gid)


def _text(path: Path, mode: int) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except PermissionError:
        # A node that nobody may read (mode 0200): only the lab reads what it is.
        path.chmod(stat.S_IMODE(mode) | stat.S_IRUSR)
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        finally:
            path.chmod(stat.S_IMODE(mode))


class Rule(NamedTuple):
    """A device rule of a control group: `c 195:* rwm`; None stands for `*`."""

    kind: str
    major: int | None
    minor: int | None
    access: str

    def covers(self, node: Node, letter: str) -> bool:
        """Whether it is about this node and this access."""
        return (
            self.kind in ("a", node.kind)
            and self.major in (None, node.major)
            and self.minor in (None, node.minor)
            and letter in self.access
        )


# lxc: device_cgroup_rule_parse.
_RULE = re.compile(r"a|([abc])\s(\d+|\*):(\d+|\*)\s([rwm]{1,2}|[rwm]{3}.*)")


@functools.cache
def parse_rule(text: str) -> Rule | None:
    """A rule as lxc.container.conf has it; None for one that lxc doesn't understand."""
    match = _RULE.fullmatch(text.strip())
    if match is None:
        return None
    major, minor = (None if match[n] in (None, "*") else int(match[n]) for n in (2, 3))
    return Rule(match[1] or "a", major, minor, (match[4] or "rwm")[:3])


def refusal(node: Node, wanted: str, rules: list[Rule], uid: int, gids: frozenset[int]) -> int:
    """Why a user of a container may not open a node: 0, EACCES or EPERM, asked in the kernel's order.

    Args:
        wanted: `r`, `w` or `rw`.
        rules: what the container's control group allows; nothing else is.
    """
    if not node.permits(wanted, uid, gids):
        return errno.EACCES
    if not all(any(rule.covers(node, letter) for rule in rules) for letter in wanted):
        return errno.EPERM
    return 0
