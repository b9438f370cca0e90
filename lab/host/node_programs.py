"""stat, mknod and, in a container, test where device nodes are concerned, on a lab host and in its containers.

Every other file is left to this machine's own programs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from . import container
from .nodes import Node, read_node, write_node
from .program import Failure, Options, UsageError
from .state import HostState

#: Where the lab's device nodes are, by the working directory and the arguments of a command.
_AT_NODES = re.compile(r"/dev| dev|/proc/.*/fd", re.DOTALL)
#: Where this machine has its own programs.
REAL_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_KINDS = {"c": "character special file", "b": "block special file"}


_NAMES = {0: "root", container.NOBODY: "nobody"}
_GROUP_NAMES = {0: "root", 5: "tty", 44: "video", 104: "render", container.NOBODY: "nogroup"}


class Tree:
    """A host's tree, in which a node is a file with a line in it."""

    def __init__(self, host: HostState) -> None:
        self._host = host

    def node(self, path: str) -> Node | None:
        """The node at a path, links followed."""
        return read_node(self.place(path))

    def place(self, path: str) -> Path:
        """Where a path lies: a host path, one that begins with HOMELAB_ROOT, or a relative one."""
        return self._host.rooted(path) if path.startswith("/") else Path.cwd() / path

    def owner(self, node: Node) -> tuple[str, str]:
        """The names of a node's owner and group."""
        return _NAMES.get(node.uid, str(node.uid)), _GROUP_NAMES.get(node.gid, str(node.gid))

    def make(self, path: str, node: Node) -> None:
        """mknod(2).

        Raises:
            PermissionError: not allowed here.
        """
        write_node(self.place(path), node)


class ContainerTree(Tree):
    """A container's tree, whose nodes are those of its machine.json."""

    def node(self, path: str) -> Node | None:
        """The node at a path, links followed."""
        return container.nodes(self._host).get(self._inside(path))

    def place(self, path: str) -> Path:
        """Where a path lies."""
        return self._host.rooted(self._inside(path))

    def _inside(self, path: str) -> str:
        return container.name_inside(self._host, path)

    def make(self, path: str, node: Node) -> None:
        """mknod(2): never in a user namespace, else as the control group allows."""
        inside = self._host.machine["container"]
        allowed = any(rule.covers(node, "m") for rule in container.rules(self._host))
        if inside["unprivileged"] or container.Identity.current().uid != 0 or not allowed:
            raise PermissionError
        container.add_node(self._host, self._inside(path), node)


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    if not is_at_nodes(host, arguments):
        return real(name, arguments)
    tree = ContainerTree(host) if "container" in host.machine else Tree(host)
    work: dict[str, Callable[[Tree, list[str]], int]] = {"stat": _stat, "test": _test, "mknod": _mknod}
    return work[name](tree, arguments)


def is_at_nodes(host: HostState, arguments: list[str]) -> bool:
    """Whether a command may be about device nodes: in a container always, elsewhere where it names a path in /dev."""
    return "container" in host.machine or _AT_NODES.search(" ".join([os.getcwd(), *arguments])) is not None  # noqa: PTH109


def real(name: str, arguments: list[str]) -> int:
    """Let this machine's own program do it.

    Raises:
        Failure: it has none.
    """
    import shutil
    import subprocess

    if (path := shutil.which(name, path=REAL_PATH)) is None:
        raise Failure(f"{name}: not found on this machine", 127)
    sys.stdout.flush()
    done = subprocess.run([path, *arguments], check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _without(arguments: list[str], operands: list[str]) -> list[str]:
    """A command's options alone."""
    return [word for word in arguments if word not in operands and word != "--"]


# -- stat ------------------------------------------------------------------------------------------------------
def _stat(tree: Tree, arguments: list[str]) -> int:
    options = Options(arguments, "Lc:ft", ("dereference", "format=", "printf=", "file-system", "terse", "cached="))
    form, status = options.value("c", "format"), 0
    printf = options.value("printf")
    for path in options.rest:
        node = None if tree.place(path).is_symlink() and not options.has("L", "dereference") else tree.node(path)
        if node is None:
            status = real("stat", [*_without(arguments, options.rest), "--", str(tree.place(path))]) or status
        else:
            text = format_node(tree, path, node, form if form is not None else printf or "")
            print(text) if form is not None else print(text.replace("\\n", "\n"), end="")
    return status


def format_node(tree: Tree, path: str, node: Node, form: str) -> str:
    """A node in a format of stat(1)."""
    user, group = tree.owner(node)
    values = {
        "F": _KINDS[node.kind], "t": f"{node.major:x}", "T": f"{node.minor:x}", "a": f"{node.mode:o}", "h": "1",
        "A": _permissions(node), "u": str(node.uid), "g": str(node.gid), "U": user, "G": group, "n": path, "s": "0",
        "f": f"{(0o020000 if node.kind == 'c' else 0o060000) | node.mode:x}", "Hr": str(node.major),
        "Lr": str(node.minor), "r": str(os.makedev(node.major, node.minor)), "N": f"'{path}'", "%": "%",
        "Y": str(int(tree.place(path).lstat().st_mtime)), "i": str(tree.place(path).lstat().st_ino),
    }  # fmt: skip
    text, rest = "", form
    while rest:
        head, percent, rest = rest.partition("%")
        text += head
        if not percent:
            break
        key = next((k for k in ("Hr", "Lr", rest[:1]) if rest.startswith(k) and k in values), None)
        if key is None:
            raise UsageError(f"stat: the lab's has no %{rest[:1]} for a device node")
        text, rest = text + values[key], rest[len(key) :]
    return text


def _permissions(node: Node) -> str:
    return node.kind + "".join(
        letter if node.mode >> (8 - index) & 1 else "-" for index, letter in enumerate("rwxrwxrwx")
    )


# -- test and mknod --------------------------------------------------------------------------------------------
def _test(tree: Tree, arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("-b", "-c", "-d", "-e", "-f", "-h", "-L", "-s"):
        return real("test", arguments)
    verb, path = arguments
    node = tree.node(path)
    if node is None or verb in ("-h", "-L"):
        return real("test", [verb, str(tree.place(path))])
    return int(verb not in ("-e", f"-{node.kind}"))


def _mknod(tree: Tree, arguments: list[str]) -> int:
    options = Options(arguments, "m:Z", ("mode=",))
    mode = int(options.value("m", "mode") or "0644", 8)
    if len(options.rest) != 4 or options.rest[1] not in ("c", "u", "b"):
        raise Failure("mknod: missing operand\nTry 'mknod --help' for more information.")
    path, kind, major, minor = options.rest
    if os.path.lexists(tree.place(path)):
        raise Failure(f"mknod: {path}: File exists")
    if not tree.place(path).parent.is_dir():
        raise Failure(f"mknod: {path}: No such file or directory")
    try:
        tree.make(path, Node("b" if kind == "b" else "c", int(major), int(minor), mode))
    except PermissionError:
        raise Failure(f"mknod: {path}: Operation not permitted") from None
    return 0
