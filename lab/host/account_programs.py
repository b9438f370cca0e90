"""sudo of a lab's guest: who a command runs as.

Everything on a lab's systems runs as the one who started the lab; USER says whom it stands for, as sshd and sudo set it.
Without USER (`env -i`) it is root.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple, NoReturn

from .program import Failure, UsageError
from .state import COMMANDS, ROOTS, HostState

# What sudo keeps of the caller's environment here: with it gone the lab's commands wouldn't be found.
_KEPT = (*ROOTS, "LAB_STATE", COMMANDS, "APT_CONFIG", "DPKG_ROOT", "DPKG_FORCE", "PATH", "LC_ALL", "BASH_ENV")


class Account(NamedTuple):
    """One line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


def accounts(system: HostState) -> dict[str, Account]:
    """The accounts in a system's /etc/passwd, by name."""
    found = {}
    for line in system.read("/etc/passwd", "").splitlines():
        name, _, uid, gid, _, home, _ = line.split(":")
        found[name] = Account(name, int(uid), int(gid), home)
    return found


def current_user() -> str:
    """Who the command runs as."""
    return os.environ.get("USER") or "root"


def main(host: HostState, name: str, arguments: list[str]) -> NoReturn:
    """`sudo -n COMMAND...`, as root."""
    if arguments[:1] != ["-n"] or not arguments[1:] or arguments[1].startswith("-"):
        raise UsageError(f"the lab's sudo has -n and a command, not {arguments!r}")
    caller, known = current_user(), accounts(host)
    if caller != "root" and not _may_without_password(host, caller):
        raise Failure("sudo: a password is required")
    _become(arguments[1:], _environment(host, arguments[1:], known["root"], known.get(caller)))


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Run the command in place of sudo, which so passes on its streams and its end."""
    import shutil

    from .state import HOST_PYTHON

    if command[0] == HOST_PYTHON:
        command[0] = "lab-python"
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise Failure(f"sudo: {command[0]}: command not found")
    os.execve(program, command, environment)


def _may_without_password(host: HostState, user: str) -> bool:
    """Whether a line of the sudoers files lets the user run everything without a password."""
    files = [host.rooted("/etc/sudoers"), *sorted(host.rooted("/etc/sudoers.d").glob("*"))]
    rule = re.compile(rf"(?:{re.escape(user)}|ALL)\s+ALL\s*=\s*\(ALL(?:\s*:\s*ALL)?\)\s*NOPASSWD:\s*ALL\s*")
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    return any(rule.fullmatch(line) for text in texts for line in text.splitlines())


def _environment(host: HostState, command: list[str], target: Account, caller: Account | None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
        "HOME": str(host.rooted(target.home)),
        "USER": target.name,
        "LOGNAME": target.name,
        "SHELL": "/bin/bash",
        "SUDO_COMMAND": " ".join(command),
        "SUDO_USER": caller.name if caller else "root",
        "SUDO_UID": str(caller.uid if caller else 0),
        "SUDO_GID": str(caller.gid if caller else 0),
    }
    kept.setdefault("PATH", f"{host.state}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return kept
