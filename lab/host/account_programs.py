"""sudo and id of a lab's guest: who a command runs as.

Everything on a lab's systems runs as the one who started the lab; USER says whom it stands for, as sshd and sudo set it.
Without USER (`env -i`) it is root.
"""

from __future__ import annotations

import os
import re
import sys
from typing import NamedTuple, NoReturn

from .program import Failure, Options, UsageError
from .state import COMMANDS, HostState

# What sudo keeps of the caller's environment here: with it gone the lab's commands wouldn't be found.
_KEPT = ("ROOT", "LAB_STATE", COMMANDS, "APT_CONFIG", "DPKG_ROOT", "DPKG_FORCE", "PATH", "LC_ALL", "BASH_ENV")
_LONG = {
    "--non-interactive": "-n",
    "--preserve-env": "-E",
    "--set-home": "-H",
    "--reset-timestamp": "-k",
    "--stdin": "-S",
    "--validate": "-v",
    "--user": "-u",
}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


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


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the commands about accounts."""
    return (_sudo if name == "sudo" else _id)(host, arguments)


def _id(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "ugGnr", ("user", "group", "groups", "name", "real"))
    name = options.rest[0] if options.rest else current_user()
    account = accounts(host).get(name)
    if account is None:
        raise Failure(f"id: ‘{name}’: no such user")
    by_name = options.has("n", "name")
    if options.has("u", "user"):
        print(name if by_name else account.uid)
    elif options.has("g", "group", "G", "groups"):
        print(name if by_name else account.gid)
    else:
        print(f"uid={account.uid}({name}) gid={account.gid}({name}) groups={account.gid}({name})")
    return 0


# -- sudo ------------------------------------------------------------------------------------------------------
class _Asked:
    """What sudo was asked for."""

    def __init__(self) -> None:
        self.user = "root"
        self.ask = True
        self.keep = False
        self.validate = False
        self.variables: dict[str, str] = {}
        self.command: list[str] = []


def _sudo(host: HostState, arguments: list[str]) -> int:
    asked = _parsed(arguments)
    caller, known = current_user(), accounts(host)
    if asked.user not in known:
        raise Failure(f"sudo: unknown user {asked.user}\nsudo: error initializing audit plugin sudoers_audit")
    if caller != "root" and not _may_without_password(host, caller):
        if asked.ask:
            print(
                "sudo: a terminal is required to read the password; either use the -S option to read from standard "
                "input or configure an askpass helper",
                file=sys.stderr,
            )
        raise Failure("sudo: a password is required")
    if asked.command:
        _become(asked.command, _environment(host, asked, known[asked.user], known.get(caller)))
    return 0


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


def _parsed(arguments: list[str]) -> _Asked:
    """Options up to the command's name, `VARIABLE=value` before it."""
    asked, queue = _Asked(), list(arguments)
    while queue and queue[0].startswith("-"):
        word = queue.pop(0)
        if word == "--":
            break
        if word in _LONG:
            word = _LONG[word]
        if word.startswith("--user="):
            asked.user = word.removeprefix("--user=")
        elif match := re.fullmatch(r"-([nEHkSv]*)(?:(u)(.*))?", word):
            for letter in match[1]:
                _switch(asked, letter)
            if match[2]:
                asked.user = match[3] or (queue.pop(0) if queue else "")
        else:
            raise UsageError(f"the lab's sudo has -n, -E, -H, -k, -S, -v and -u USER, not {word!r}")
    while queue and _ASSIGNMENT.fullmatch(queue[0]):
        name, _, value = queue.pop(0).partition("=")
        asked.variables[name] = value
    asked.command = queue
    if not queue and not asked.validate:
        raise UsageError("the lab's sudo needs a command")
    return asked


def _switch(asked: _Asked, letter: str) -> None:
    if letter == "n":
        asked.ask = False
    elif letter == "E":
        asked.keep = True
    elif letter == "v":
        asked.validate = True


def _may_without_password(host: HostState, user: str) -> bool:
    """Whether a line of the sudoers files lets the user run everything without a password."""
    files = [host.rooted("/etc/sudoers"), *sorted(host.rooted("/etc/sudoers.d").glob("*"))]
    rule = re.compile(rf"(?:{re.escape(user)}|ALL)\s+ALL\s*=\s*\(ALL(?:\s*:\s*ALL)?\)\s*NOPASSWD:\s*ALL\s*")
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    return any(rule.fullmatch(line) for text in texts for line in text.splitlines())


def _environment(host: HostState, asked: _Asked, target: Account, caller: Account | None) -> dict[str, str]:
    kept = dict(os.environ) if asked.keep else {name: os.environ[name] for name in _KEPT if name in os.environ}
    kept |= asked.variables
    kept |= {
        "HOME": str(host.rooted(target.home)),
        "USER": target.name,
        "LOGNAME": target.name,
        "SHELL": "/bin/bash",
        "SUDO_COMMAND": " ".join(asked.command),
        "SUDO_USER": caller.name if caller else "root",
        "SUDO_UID": str(caller.uid if caller else 0),
        "SUDO_GID": str(caller.gid if caller else 0),
    }
    kept.setdefault("PATH", f"{host.state}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    return kept
