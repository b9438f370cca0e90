"""How `homelab init` gets into a host: its key confirmed, then a login by a key, the SSH agent, or a password once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath
from typing import Any

from homelab.cli.pulumi import PASSWORD
from homelab.errors import Declined, HomelabError, Mistake
from homelab.init.ask import Ask, helps, say
from homelab.remote import first_contact, logins
from homelab.remote.first_contact import HostKey
from homelab.settings import Host
from homelab.settings.parsing import load_host

_TRIES = 3


@dataclass(frozen=True)
class Access:
    """A login that works. `host`: by which this run logs in; `login`: `address` and `ssh` for the settings; `name`: the
    host's in the settings, empty where it is new; `install`: the private key whose public half is put onto the host."""

    host: Host
    login: dict[str, Any]
    name: str = ""
    install: Path | None = None


def parse_address(text: str) -> tuple[str, str, int]:
    """User, host and port of `[USER@]HOST[:PORT]`.

    :raises Mistake: it isn't of that form.
    """
    match = re.fullmatch(r"(?:([\w.-]+)@)?(?:\[([\da-fA-F:]+)\]|([^:@\s]+)|([\da-fA-F:]{3,}))(?::(\d{1,5}))?", text)
    if match is None or not 0 < int(match[5] or 22) < 65536:
        raise Mistake(f"{text or 'nothing'} isn't [USER@]HOST[:PORT], such as 192.168.0.202.")
    return match[1] or "root", match[2] or match[3] or match[4], int(match[5] or 22)


def access_to(address: str, host_key: str | None, identity: str | None, before: Mapping[str, Host], ask: Ask) -> Access:
    """Confirms the host's key and finds a login that works.

    :param before: the settings' hosts.
    :param host_key: `--host-key`.
    :param identity: `--identity`.
    :raises HomelabError: it can't be reached, another key answers, no login works.
    :raises Declined: the key isn't the host's.
    """
    for name, host in before.items():
        if address in (name, host.address, f"{host.address}:{host.ssh.port}", f"{host.ssh.user}@{host.address}"):
            if error := first_contact.refusal(host):
                raise error
            return Access(host, {}, name)
    user, where, port = parse_address(address)
    key = first_contact.host_key(where, port)
    _confirm(host_key, where, port, key, ask)
    for name, host in before.items():
        if first_contact.of_line(host.ssh.pinned_host_key) == key:
            at = f"{host.address}:{host.ssh.port}"
            raise Mistake(
                f"This is {name}, which the settings have at {at}: homelab init {name}, or correct them first."
            )
    ssh, chosen = _ssh(user, port, key), _chosen(identity)
    if entry := _by_key(where, ssh, identity):
        return entry
    path = chosen[0] if chosen else Path.home() / ".ssh" / "homelab_ed25519"
    say(f"{where} doesn't accept {'this key' if identity else 'any of your SSH keys'} yet.")
    for locked in [] if identity else first_contact.usual_keys(Path.home() / ".ssh", locked=True):
        say(f"{settings_path(locked)} has a passphrase: to log in with it, give it to an agent first (`ssh-add`).")
    host = _by_password(where, ssh, ask)
    return Access(host, {"address": where, "ssh": {**ssh, "privateKeyFile": settings_path(path)}}, install=path)


def of_guest(address: str, identity: str | None) -> dict[str, object]:
    """`address` and `ssh` of a VM's guest, for the settings. The host key that it shows first is taken for its own,
    which is said. No password is sent there.

    :param address: `none`: it is to have no software from here.
    :raises Mistake: it can't be reached, your known_hosts has another key of it, or none of your keys logs in.
    """
    if address.lower() == "none":
        return {}
    user, where, port = parse_address(address)
    try:
        key = first_contact.host_key(where, port)
    except HomelabError as error:
        raise Mistake(str(error)) from None
    standing = first_contact.standing(where, port, key, Path.home() / ".ssh" / "known_hosts")
    say(f"{where} shows the host key {key.fingerprint}, which counts as this guest's from now on.")
    if standing in ("another", "revoked"):
        raise Mistake(f"Your known_hosts has another key of {where}, or has this one as revoked: correct it first.")
    if entry := _by_key(where, _ssh(user, port, key), identity):
        return entry.login
    raise Mistake(f"{user} there takes none of your keys: `ssh-copy-id {user}@{where}`, or give another USER@.")


def _ssh(user: str, port: int, key: HostKey) -> dict[str, object]:
    return {"user": user, **({"port": port} if port != 22 else {}), "hostKey": key.line}


def _chosen(identity: str | None) -> list[Path]:
    return [Path(identity).expanduser().absolute()] if identity else first_contact.usual_keys(Path.home() / ".ssh")


def _by_key(where: str, ssh: dict[str, object], identity: str | None) -> Access | None:
    """A login by one of the person's keys, or by the agent; None: all are refused."""
    for way in ways(_chosen(identity), identity):
        host = host_at(where, {**ssh, **way})
        if first_contact.refusal(host) is None:
            say(f"Logged in as {ssh['user']} with {way.get('privateKeyFile') or 'the SSH agent'}.")
            return Access(host, {"address": where, "ssh": {**ssh, **way}})
    return None


def of_address(address: str, identity: str | None) -> Access:
    """A login at a host that no settings have. Nobody is asked.

    :param identity: `--identity`.
    :raises HomelabError: it can't be reached, isn't known here, or no key logs in.
    """
    said = StringIO()
    try:
        with redirect_stdout(said):
            return access_to(address, None, identity, {}, Ask(yes=True))
    except (Mistake, Declined) as error:
        raise HomelabError(
            wanted=f"to log in to {address}, which no settings here name",
            found=" ".join(said.getvalue().split()) or str(error),
            why="without settings your own known_hosts and SSH keys say how",
            next="log in there by ssh once, or give a key with --identity FILE; then run this again",
        ) from None


def ways(keys: Sequence[Path], identity: str | None) -> list[dict[str, Any]]:
    """Ways to log in, as the settings have them: by these keys, then by the agent, unless one key is asked for.

    :param identity: `--identity`.
    """
    # On Windows no step of `pulumi up` could use an agent (homelab/resources/command.py).
    has_agent = not identity and os.environ.get("SSH_AUTH_SOCK") and os.name != "nt"
    return [*({"privateKeyFile": settings_path(path)} for path in keys), *([{"agent": True}] if has_agent else [])]


def host_at(address: str, ssh: dict[str, Any]) -> Host:
    """The host as the settings would have it.

    :raises HomelabError: the port, the user's name or the password isn't valid.
    """
    return load_host({"host": {"address": address, "ssh": ssh}}, "host")


def settings_path(path: PurePath, home: PurePath | None = None) -> str:
    """A path for the settings: with ~ in place of the user's home folder, and with slashes on Windows, too.

    :param home: the home folder; None: this user's.
    """
    home = home or Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else path.as_posix()


def public_key(access: Access) -> str:
    """The public key that is let in there, for new guests, too; empty: none is known, as a password logs in."""
    if access.install:
        return first_contact.public_line(access.install)
    ssh = access.host.ssh
    return logins.ask_the_agent() if ssh.agent else logins.public_half(ssh.key)


def installed(access: Access) -> None:
    """Puts the public key onto the host, and logs in with it.

    :raises HomelabError: the host refuses the key.
    """
    assert access.install is not None
    first_contact.authorize(access.host, access.install)
    host = host_at(access.login["address"], access.login["ssh"])
    if error := first_contact.refusal(host):
        raise error


def _confirm(expected: str | None, address: str, port: int, key: HostKey, ask: Ask) -> None:
    kind = key.line.split()[0].removeprefix("ssh-").partition("-")[0]
    file = Path.home() / ".ssh" / "known_hosts"
    standing = first_contact.standing(address, port, key, file)
    if standing == "revoked" or (expected is not None and not key.is_named(expected)):
        raise HomelabError(
            wanted=f"the host key {expected or 'of ' + address}",
            found=f"{key.fingerprint}{', which ' + str(file) + ' marks as @revoked' if standing == 'revoked' else ''}",
            why="this may be another machine, or one in between: root's commands would go to it",
            next=f"compare with what `ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub` shows on the host's console",
        )
    if expected is not None or standing == "known":
        say(f"{address} has the host key {'of --host-key' if expected else 'that your known_hosts has'}.")
        return
    say(
        f"{address} shows the host key {key.fingerprint}. On the host's own console, this shows it:",
        f"  ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub",
    )
    if standing == "another":
        say("Your known_hosts has another key of it: the host was reinstalled, or this is another machine.")
    if not ask.confirm("Is it the same?", helps("host key", address=address)):
        raise Declined("Nothing was done: root's commands might go to another machine. --host-key answers in advance.")


def _by_password(address: str, ssh: dict[str, Any], ask: Ask) -> Host:
    given = os.environ.get(PASSWORD, "")
    for _ in range(1 if given else _TRIES):
        question = f"{ssh['user']}'s password there (used once, never stored)"
        password = given or ask.secret(question, helps("password"))
        host = host_at(address, {**ssh, "password": password}) if password else None
        if host and first_contact.refusal(host) is None:
            return host
        say("The host refuses this password.")
    raise Mistake(
        "See whether its sshd takes passwords (PermitRootLogin, PasswordAuthentication), or --identity a key."
    )
