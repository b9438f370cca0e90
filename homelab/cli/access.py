"""How `homelab init` gets into a host: its key confirmed, then a login by a key, the SSH agent, or a password once."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypedDict

from homelab.cli.output import Declined, Output
from homelab.cli.pulumi import PASSWORD
from homelab.cli.questions import Questions
from homelab.doctor.stack import path_of
from homelab.errors import HomelabError, LoginRefusedError
from homelab.init.proposal import OPEN, Existing
from homelab.remote import first_contact
from homelab.remote.first_contact import HostKey
from homelab.settings import Host
from homelab.settings.parsing import load_host
from homelab.settings.paths import resolved

# Tries of a password that is typed.
_TRIES = 3
CONNECT_SECONDS = 15.0


class Login(TypedDict, total=False):
    """`ssh` of a host under the keys of a settings file. Which of them go together is checked by homelab.settings."""

    user: str
    port: int
    hostKey: str
    privateKeyFile: str
    password: str
    agent: bool


@dataclass
class Access:
    """A login that works. `host`: by which this run logs in; `ssh`: for the settings; `key`: the host's; `name`: the
    host's in the settings, empty where it is new; `install`: the private key's file whose public key is put onto the
    host first, empty for none; `password`: for the settings, encrypted, empty for none.
    """

    host: Host
    ssh: Login
    key: HostKey
    name: str = ""
    install: str = ""
    password: str = ""


def host_at(address: str, login: Login, host_key: str) -> Host:
    """The host as the settings would have it.

    :param host_key: type and base64, as in `HostKey.line`.
    :raises HomelabError: the port, the user's name or the password isn't valid.
    """
    return load_host({"host": {"address": address, "ssh": {**login, "hostKey": host_key}}}, "host")


def settings_path(path: PurePath, home: PurePath | None = None) -> str:
    """A path for the settings: with ~ in place of the user's home folder, and with slashes on Windows, too.

    :param home: the home folder; None: this user's.
    """
    home = home or Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else path.as_posix()


def access_to(arguments: argparse.Namespace, before: Existing, output: Output, ask: Questions) -> Access:
    """Confirms the host's key and finds a login that works.

    :raises HomelabError: it can't be reached, another key answers, no login works.
    :raises Declined: the key isn't the host's.
    """
    configured = _configured_host(arguments, before)
    name, entry = configured if configured else ("", None)
    address = arguments.address or (entry.address if entry else "")
    if not address:
        raise HomelabError(
            wanted="the host's address",
            found=f"none, and {path_of(arguments.stack).name} has no host either",
            why="everything starts with the host's address",
            next="give it: homelab init 192.168.0.202",
        )
    port = arguments.port or (entry.ssh.port if entry else 22)
    user = arguments.user or (entry.ssh.user if entry else "root")
    if entry is not None:
        key = first_contact.of_line(entry.ssh.pinned_host_key)
        if arguments.host_key is not None and not _is_key(arguments.host_key, key):
            raise HomelabError(
                wanted=f"the host key {arguments.host_key.strip()} for {address}:{port} (--host-key)",
                found=f"{key.fingerprint} in {path_of(arguments.stack).name}, as hosts.{name}.ssh.hostKey",
                why="the program accepts only the key in the settings, and you gave another one",
                next="compare both with what the host's console shows; if the host has a new key, correct the "
                "settings; else leave --host-key out",
            )
        output.say(f"{address}: the host key {key.fingerprint} is pinned in the settings.")
    else:
        key = first_contact.host_key(address, port, CONNECT_SECONDS)
        confirm_key(arguments.host_key, "--host-key", address, port, key, output, ask)
        _refuse_duplicate(address, port, key, before)
    login = login_as(user, port)
    access = _login(arguments, address, login, key, entry, output, ask)
    access.name = name
    return access


def _configured_host(arguments: argparse.Namespace, before: Existing) -> tuple[str, Host] | None:
    matching = [
        (name, host)
        for name, host in before.hosts.items()
        if arguments.address in (None, host.address, name) and arguments.port in (None, host.ssh.port)
    ]
    if arguments.address is None and len(matching) > 1:
        raise HomelabError(
            wanted="one host",
            found=f"{len(matching)} in the settings: {', '.join(name for name, _ in matching)}",
            why="one host is set up at a time",
            next=f"say which: homelab init {matching[0][1].address}",
        )
    return matching[0] if matching else None


def _refuse_duplicate(address: str, port: int, key: HostKey, before: Existing) -> None:
    """:raises HomelabError: the settings have this host, under another address."""
    for name, host in before.hosts.items():
        if first_contact.of_line(host.ssh.pinned_host_key) == key:
            raise HomelabError(
                wanted=f"a host at {address}:{port} that the settings don't have",
                found=f"the host key of {name}, which they have at {host.address}:{host.ssh.port}",
                why="both entries would change the same host",
                next=f"homelab init {host.address}; if its address has changed, correct it in the settings first",
            )


def _is_key(text: str, key: HostKey) -> bool:
    """Whether the text is the key's fingerprint or its line."""
    return text.strip() == key.fingerprint or text.split()[:2] == key.line.split()


def confirm_key(
    expected: str | None, option: str, address: str, port: int, key: HostKey, output: Output, ask: Questions
) -> None:
    """Confirms that a key is the host's: by the option, or by a question.

    :param expected: the key's fingerprint or line, from the option; None: it wasn't used.
    :raises HomelabError: the key is revoked, or isn't the expected one.
    :raises Declined: the user says that it is another.
    """
    kind = key.line.split()[0].removeprefix("ssh-").partition("-")[0]
    output.say(
        f"{address} shows the host key  {key.fingerprint}  ({kind})",
        "On its own console, this command shows it:",
        f"  ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub",
    )
    file = Path.home() / ".ssh" / "known_hosts"
    standing = first_contact.standing(address, port, key, file)
    if standing == "revoked":
        raise HomelabError(
            wanted=f"a host key of {address}:{port} that isn't revoked",
            found=f"{key.fingerprint}, which {file} marks as @revoked",
            why="a key is revoked when it may have leaked: another machine may have it",
            next="make a new one on the host (rm /etc/ssh/ssh_host_*; ssh-keygen -A; systemctl restart ssh); or "
            "take that line out, if it is wrong",
        )
    if expected is not None:
        if not _is_key(expected, key):
            raise HomelabError(
                wanted=f"the host key {expected.strip()} at {address}:{port}",
                found=f"{key.fingerprint} ({key.line})",
                why="this may be another machine, or one in between: root's commands would go to it",
                next=f"compare with what its console shows, and correct {option} or the address",
            )
        return
    is_known = standing == "known"
    if is_known:
        output.say("It is the key that your known_hosts has for this address.")
    if standing == "another":
        output.say(
            "Your known_hosts has another key for this address: the host was reinstalled, or this is another machine."
        )
    if not ask.confirm("Is it the same?", default=is_known):
        raise Declined(
            "Nothing was done: without the right host key, root's commands might go to another machine. To answer "
            f"without a question, give the fingerprint that the console shows with {option}."
        )


def login_as(user: str, port: int) -> Login:
    """`user` and `port` of a login; port 22 is left out."""
    return {"user": user, "port": port} if port != 22 else {"user": user}


def login_methods() -> list[Login]:
    """This user's logins without a password, in the order in which they are tried: the usual keys, then the agent. On
    Windows no step of `pulumi up` could use one (homelab/resources/command.py).
    """
    methods: list[Login] = [
        {"privateKeyFile": settings_path(path)} for path in first_contact.usual_keys(Path.home() / ".ssh")
    ]
    return [*methods, {"agent": True}] if os.environ.get("SSH_AUTH_SOCK") and os.name != "nt" else methods


def _login(
    arguments: argparse.Namespace,
    address: str,
    login: Login,
    key: HostKey,
    entry: Host | None,
    output: Output,
    ask: Questions,
) -> Access:
    folder = Path.home() / ".ssh"
    usual = first_contact.usual_keys(folder)
    methods: list[Login] = []
    if arguments.identity:
        methods = [{"privateKeyFile": settings_path(Path(arguments.identity).expanduser().absolute())}]
    elif arguments.agent:
        methods = [{"agent": True}]
    else:
        if entry is not None and (entry.ssh.private_key_file or entry.ssh.agent):
            file = entry.ssh.private_key_file
            exists = file is None or resolved(file).is_file()
            methods += [{"privateKeyFile": file} if file else {"agent": True}] if exists else []
        methods += login_methods()
    refused = None
    for method in methods:
        host = host_at(address, {**login, **method}, key.line)
        refused = first_contact.refusal(host, is_first=refused is None)
        if refused is None:
            output.say(f"Logged in as {host.ssh.user} with {method.get('privateKeyFile') or 'the SSH agent'}.")
            return Access(host, {**login, "hostKey": key.line, **method}, key)
    if arguments.identity or arguments.agent:
        raise LoginRefusedError(
            wanted=f"to log in to {address} as {login['user']} with {arguments.identity or 'the SSH agent'}",
            found=refused.found if refused is not None else "refused",
            why="nothing on the host can be read without it",
            next="take another key, or leave --identity and --agent out to log in with a password once"
            + (f"; {refused.next}" if arguments.agent and refused is not None else ""),
        )
    output.say(f"None of your SSH keys is accepted by {address} yet.")
    if refused is not None and methods[-1].get("agent"):
        output.say(f"The SSH agent: {refused.found}.")
    host, password = _by_password(address, login, key, ask, output)
    if entry is not None:
        # How the settings log in is the person's. A password that an ended run was to put there is put there now.
        configured = entry.ssh.password
        is_open = configured is not None and configured.get_secret_value() == OPEN
        return Access(host, {}, key, password=password if is_open else "")
    if arguments.install_key is False:
        return Access(host, {**login, "hostKey": key.line, "password": OPEN}, key, password=password)
    path = usual[0] if usual else folder / "homelab_ed25519"
    return Access(
        host, {**login, "hostKey": key.line, "privateKeyFile": settings_path(path)}, key, install=str(path), password=""
    )


def _by_password(address: str, login: Login, key: HostKey, ask: Questions, output: Output) -> tuple[Host, str]:
    for number in range(_TRIES):
        from_environment = os.environ.get(PASSWORD)
        password = from_environment or ask.secret(f"{login['user']}'s password on {address} (used once, never stored)")
        if password:
            host = host_at(address, {**login, "password": password}, key.line)
            if first_contact.refusal(host, is_first=False) is None:
                return host, password
        output.say("The host refuses this password.")
        if from_environment or number == _TRIES - 1:
            break
    raise LoginRefusedError(
        wanted=f"to log in to {address} as {login['user']} with a password",
        found="refused",
        why="nothing on the host can be read without it",
        next="see whether the password is right, and whether the host's sshd takes passwords (PermitRootLogin, "
        "PasswordAuthentication)",
    )
