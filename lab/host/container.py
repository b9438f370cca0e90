"""The inside of a running container, as its programs see it: who is who, what may be opened, how a command is run.

machine.json of a container has a section `container`: the host that it runs on, its nodes by path, the rules of its control
group. In its tree each node is a file that opens just as the node would: a regular one where reading and writing are
allowed, a folder where only reading is, a socket where nothing is (open(2) refuses a socket to everybody, root too).
Another user than root gets a view of the tree, in which /dev is as that user finds it.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import nvidia
from .nodes import Node, Rule, parse_rule, refusal
from .state import HostState, of_command_server, of_packages, of_root, own_path, stamp

#: What the kernel shows for an owner that a user namespace doesn't know (/proc/sys/kernel/overflowuid).
NOBODY = 65534
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELLS = frozenset({"sh", "bash", "dash", "env"})


class Identity(NamedTuple):
    """A user inside a container."""

    uid: int
    gids: frozenset[int]

    @classmethod
    def current(cls) -> Identity:
        """Who the running program is."""
        gids = os.environ.get("LAB_GIDS", "0")
        return cls(int(os.environ.get("LAB_UID", "0")), frozenset(int(gid) for gid in gids.split(",")))


def outer(system: HostState) -> HostState:
    """The host that a container runs on."""
    return HostState(Path(system.machine["container"]["host"]))


def nodes(system: HostState) -> dict[str, Node]:
    """The nodes inside, by path."""
    return {path: Node(**data) for path, data in system.machine["container"]["nodes"].items()}


def rules(system: HostState) -> list[Rule]:
    """What the control group allows."""
    return [rule for text in system.machine["container"]["rules"] if (rule := parse_rule(text))]


def opening(system: HostState, path: str, wanted: str, who: Identity) -> int:
    """What open(2) of a path in /dev answers: 0, or the errno.

    Args:
        wanted: `r`, `w` or `rw`.
    """
    return Openings(system).answer(path, wanted, who)


class Openings:
    """What open(2) answers inside, for questions about many paths.

    Args:
        system: the container; what it may open is read once.
    """

    def __init__(self, system: HostState) -> None:
        self._system = system
        self._nodes = nodes(system)
        self._rules = rules(system)
        self._drivers: nvidia.Answering | None = None

    def answer(self, path: str, wanted: str, who: Identity) -> int:
        """See `opening`."""
        node = self._nodes.get(path)
        if node is None:
            return 0 if os.path.lexists(self._system.rooted(path)) else errno.ENOENT
        if refused := refusal(node, wanted, self._rules, who.uid, who.gids):
            return refused
        # The kernel's own nodes have no line in the lab's /proc/devices beyond their majors.
        return 0 if node.major in (1, 5, 10, 136) or self._has_driver(node) else errno.ENXIO

    def _has_driver(self, node: Node) -> bool:
        if self._drivers is None:
            self._drivers = nvidia.Answering(outer(self._system))
        return self._drivers.has(node)


def name_inside(system: HostState, path: str) -> str:
    """A path as it is called inside, whether it was given so or below the tree; links in /dev are followed."""
    path = path if path.startswith("/") else str(Path.cwd() / path)
    for base in (system.root, *_views(system)):
        if f"{path}/".startswith(f"{base}/"):
            path = path[len(str(base)) :] or "/"
            break
    path = os.path.normpath(path)
    place = system.rooted(path)
    if path.startswith("/dev/") and place.is_symlink() and not str(place.readlink()).startswith("/proc/"):
        return system.unrooted(os.path.realpath(place))
    return path


def _views(system: HostState) -> list[Path]:
    folder = system.state / "users"
    return sorted(folder.iterdir()) if folder.is_dir() else []


# -- what stands for a node in a tree --------------------------------------------------------------------------
def materialise(system: HostState) -> None:
    """Bring /dev of the tree, and of every view, to what may be opened now."""
    _materialise(system, system.root, Identity(0, frozenset({0})))
    for view in _views(system):
        uid, _, gids = view.name.partition("-")
        _materialise(system, view, Identity(int(uid), frozenset(int(g) for g in gids.split(","))))


def _materialise(system: HostState, tree: Path, who: Identity) -> None:
    host = system.machine["container"]["host"]
    read = (f"{system.state}/machine.json", f"{host}/kernel.json", f"{host}/root/proc/devices")
    for place, kind in _kinds(system.state, tree, who, tuple(map(stamp, read))).items():
        _put(place, kind)


@functools.lru_cache(maxsize=8)
def _kinds(state: Path, tree: Path, who: Identity, _stamps: tuple[tuple[int, ...], ...]) -> dict[Path, int]:
    """What kind of file stands for each node: worked out once for what it depends on, by its stamps."""
    system = HostState(state)
    openings, kinds = Openings(system), {"rw": stat.S_IFREG, "r": stat.S_IFDIR}
    return {
        tree / path[1:]: kinds.get(
            "".join(letter for letter in "rw" if openings.answer(path, letter, who) == 0), stat.S_IFSOCK
        )
        for path in nodes(system)
    }


def _put(place: Path, wanted: int) -> None:
    try:
        found = stat.S_IFMT(place.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is not None:
        if found == wanted:
            return
        import shutil

        shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    if wanted == stat.S_IFDIR:
        place.mkdir()
    else:
        os.mknod(place, wanted | 0o600)


def add_node(system: HostState, path: str, node: Node) -> None:
    """A node that mknod made inside."""
    with system.changing() as machine:
        machine["container"]["nodes"][path] = node._asdict()
    materialise(system)


def remove_missing_nodes(system: HostState) -> None:
    """Forget nodes that were removed from the tree (`rm`) since they were put there."""
    missing = [path for path in system.machine["container"]["nodes"] if not os.path.lexists(f"{system.root}{path}")]
    if missing:
        with system.changing() as machine:
            for path in missing:
                del machine["container"]["nodes"][path]


def view_of(system: HostState, who: Identity) -> Path:
    """The tree as a user sees it: root's own, or one whose /dev is that user's and the rest root's."""
    if who.uid == 0:
        return system.root
    view = system.state / "users" / f"{who.uid}-{','.join(str(gid) for gid in sorted(who.gids))}"
    (view / "dev").mkdir(parents=True, exist_ok=True)
    for entry in system.root.iterdir():
        if entry.name != "dev" and not os.path.lexists(view / entry.name):
            (view / entry.name).symlink_to(entry)
    _materialise(system, view, who)
    return view


# -- running commands ------------------------------------------------------------------------------------------
def environment(system: HostState, who: Identity, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command inside: nothing of the host's but its terminal, and what is given."""
    tree = view_of(system, who)
    home, name = _account(system, who.uid)
    kept: dict[str, Any] = {key: os.environ[key] for key in ("TERM", "LANG") if key in os.environ}
    return kept | {
        "LC_ALL": "C.UTF-8",
        **given,
        **of_root(tree),
        "LAB_STATE": str(system.state),
        **of_command_server(),
        **of_packages(system.state),
        "LAB_UID": str(who.uid),
        "LAB_GIDS": ",".join(str(gid) for gid in sorted(who.gids)),
        "HOME": str(tree / home.lstrip("/")),
        "PATH": f"{own_path(tree)}:{system.state}/bin:{given.get('PATH', _SYSTEM_PATH)}",
        "USER": name,
        "LOGNAME": name,
        "container": "lxc",
    }


def _account(system: HostState, uid: int) -> tuple[str, str]:
    for line in system.read("/etc/passwd", "").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2] == str(uid):
            return fields[5], fields[0]
    return "/", str(uid)


def run(system: HostState, command: list[str], who: Identity, given: Mapping[str, str] | None = None) -> int:
    """Run a command inside and return its exit status, with lxc-attach's words when there is no such command.

    Args:
        given: what lxc-attach adds to its environment, where that runs it: then it goes on though lxc-attach is killed.
    """
    import subprocess

    where = environment(system, who, given or {})
    program = find_program(system, command[0], where["PATH"])
    if program is None:
        identifier = system.machine["container"]["id"]
        print(
            f"lxc-attach: {identifier}: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - "
            f'Failed to exec "{command[0]}"',
            file=sys.stderr,
        )
        return 127
    tree = Path(where["HOMELAB_ROOT"])
    words = [program, *arguments_inside(tree, command)]
    done = subprocess.run(words, env=where, cwd=tree, check=False, start_new_session=given is not None)
    remove_missing_nodes(system)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def find_program(system: HostState, name: str, path: str) -> str | None:
    """Where a command lies: in the container's tree, among the lab's programs, or on this machine."""
    if "/" in name:
        inside = system.rooted(name_inside(system, name))
        if inside.is_file():
            return str(inside) if os.access(inside, os.X_OK) else None
    import shutil

    return shutil.which(name.rpartition("/")[2], path=path) or shutil.which(name, path=path)


def arguments_inside(tree: Path, command: list[str]) -> list[str]:
    """A command's arguments with absolute paths as paths of the tree, for programs of this machine.

    A shell's text is left as it is (it says `${HOMELAB_ROOT:-}/etc/...`), and the lab's own programs know what is meant.
    """
    from .run import CONTAINER_PROGRAMS

    name = command[0].rpartition("/")[2]
    if name in _SHELLS or name in CONTAINER_PROGRAMS:
        return command[1:]
    return [in_tree(tree, word) for word in command[1:]]


def in_tree(tree: Path, word: str) -> str:
    """`/etc/x` and `--file=/etc/x` as paths of a tree; other words, and those that are in it already, as they are."""
    option, equals, value = word.partition("=")
    if equals and value.startswith("/") and not option.startswith("/"):
        return f"{option}={in_tree(tree, value)}"
    if not word.startswith("/") or word == str(tree) or word.startswith((f"{tree}/", "/proc/self/")):
        return word
    return f"{tree}{word}"
