"""The groups render and video of a container. A dev[n] entry's gid is one of the container's: the host's number means
another group there, or none (ADR 23).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from remote_scripts.shared import pmxcfs
from remote_scripts.shared.container_conf import ConfText, parse
from remote_scripts.shared.time_limit import within_limit
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

# What is read of a container's groups, in bytes; the rest is left out.
_GROUP_BYTES = 65536
_GROUPS = 'getent group render video || { cd /etc && cat group; }; echo "#"'
_GROUP_ID = re.compile(r"0*[0-9]{1,5}")
# Kind (g: groups, b: both), first number inside, first number of the host, how many.
_ID_MAP = re.compile(r"[gb]\s+([0-9]{1,10})\s+\S+\s+([0-9]{1,10})(?:\s|$)")


def groups_of(
    system: System,
    ctid: int,
    conf: ConfText,
    noted: Mapping[str, int] | None,
    mark: Callable[[bool], None],
    *,
    is_up: bool,
) -> dict[str, int]:
    """The groups' numbers by their names; one that isn't there has none.

    :param noted: as an earlier run has found them; None: none has looked.
    :param mark: notes, before it is done, that a container that is off is mounted, and after it that it isn't.
    :raises Failure: a container that runs doesn't tell them.
    """
    text = b""
    if is_up:
        done = system.run.ask("pct", "exec", str(ctid), "--", "sh", "-c", _GROUPS, seconds=60, limit=_GROUP_BYTES)
        text = done.output
        if done.status != 0 or not text.endswith(b"#\n"):  # half of an answer would be no such groups
            raise Failure(
                f"to know the groups render and video of container {ctid}",
                f"`pct exec {ctid}` didn't list them all (exit status {done.status})",
                "a card's nodes are for the members of these groups; its configuration is unchanged",
                f"try `pct enter {ctid}`, then run `pulumi up` again",
            )
    elif noted is not None:
        return dict(noted)  # it has been looked into
    elif "lock" not in conf.conf.options and not conf.conf.is_template:
        text = _groups_while_off(system, ctid, mark)
        if not text.strip(b"\0\n"):
            system.log.say(
                f"note: the groups of container {ctid}, which is off, can't be read: its nodes are for everybody in it"
            )
    return groups_in(text, conf)


def unmount(system: System, ctid: int, mark: Callable[[bool], None]) -> None:
    """What a look into a container that is off has left mounted, maybe by a run that was cut short."""
    if parse(pmxcfs.text_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf")).options.get("lock") == "mounted":
        done = system.run.ask("pct", "unmount", str(ctid), seconds=60)
        if done.status != 0:
            # It stays noted as ours: the next run tries that again.
            message = (done.error or done.output).decode("utf-8", "replace").strip()
            system.log.say(f"note: pct unmount {ctid} failed: {message or f'status {done.status}'}")
            return
    mark(False)


def groups_in(content: bytes, conf: ConfText) -> dict[str, int]:
    """The numbers of the groups render and video; one that isn't there has none.

    :param content: lines of a group file; it is the container's own, and may say anything.
    """
    gids: dict[str, int] = {}
    for line in content.replace(b"\0", b"").decode("utf-8", "replace").split("\n"):
        name, _, number = [*line.split(":"), "", ""][:3]
        if name not in ("render", "video") or name in gids or not _GROUP_ID.fullmatch(number):
            continue
        if 0 < int(number) < 65535 and _is_mapped(int(number), conf):
            gids[name] = int(number)
    return gids


def _is_mapped(group: int, conf: ConfText) -> bool:
    """Whether that group of the container has a number on the host. Proxmox VE doesn't start a container with one that
    hasn't.
    """
    maps = [_ID_MAP.match(value) for key, value in conf.raw if key == "lxc.idmap"]
    ranges = [(int(match[1]), int(match[2])) for match in maps if match]
    return not ranges or any(first <= group < first + count for first, count in ranges)


def _groups_while_off(system: System, ctid: int, mark: Callable[[bool], None]) -> bytes:
    """The group file of a container that is off. Its file system is its root's: nothing in it is followed, and what
    isn't a plain file isn't read.
    """
    mark(True)
    content = b""
    # As work, which keeps the lock to its end where this run is killed: the next run sees what it has mounted.
    if system.run.do("pct", "mount", str(ctid), seconds=60).status == 0:
        place = system.files.at(f"/var/lib/lxc/{ctid}/rootfs")
        try:
            content = within_limit(lambda: _group_file(place))
        except OSError as error:
            system.log.say(f"/etc/group of container {ctid}: {error.strerror or error}")
    unmount(system, ctid, mark)
    return content


def _group_file(place: Path) -> bytes:
    """The beginning of a root's etc/group, by no link.

    :raises OSError: it isn't there, or can't be read.
    """
    opened: list[int] = []

    def step(path: str | Path, flags: int) -> int:
        opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=opened[-1] if opened else None))
        return opened[-1]

    try:
        step(place, os.O_DIRECTORY)
        step("etc", os.O_DIRECTORY | os.O_NOFOLLOW)
        # Before it is opened: that of a device may do something.
        if not stat.S_ISREG(os.stat("group", dir_fd=opened[-1], follow_symlinks=False).st_mode):
            raise OSError(errno.EINVAL, "no plain file")
        return os.read(step("group", os.O_NOFOLLOW | os.O_NONBLOCK), _GROUP_BYTES)
    finally:
        for descriptor in opened:
            os.close(descriptor)
