"""Which stacks may run side by side: those that have no host in common. The rest run one after the other, in the order in which they are named.

The host itself lets only one run at a time change it, whoever starts it (homelab/remote/guard.py). What is decided here keeps two stacks of
one command from being refused by that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence

from homelab.all_stacks.members import Member
from homelab.errors import HomelabError
from homelab.settings import Host


def same_host(one: Host, other: Host) -> bool:
    """Are they one machine, as far as settings can tell? In doubt they are."""
    keys = [_key(host) for host in (one, other)]
    if keys[0] is not None and keys[0] == keys[1]:
        return True
    prints = [host.api.fingerprint.upper() if host.api and host.api.fingerprint else None for host in (one, other)]
    if prints[0] is not None and prints[0] == prints[1]:
        return True
    if _address(one) != _address(other):
        return False
    # Behind one address there are several machines where another port shows another key of the same kind.
    kinds = [key.split()[0] if key else None for key in keys]
    several = one.ssh.port != other.ssh.port and None not in kinds and kinds[0] == kinds[1]
    return not several


def _key(host: Host) -> str | None:
    try:
        return host.ssh.pinned_host_key
    except HomelabError:
        return None  # of a file that isn't there: the preview says so


def _address(host: Host) -> str:
    text = host.address.strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


def shared(members: Sequence[Member]) -> dict[str, set[str]]:
    """Stack -> the other stacks that have a host in common with it."""
    found: dict[str, set[str]] = {member.name: set() for member in members}
    for number, one in enumerate(members):
        for other in members[number + 1 :]:
            if any(same_host(a, b) for a in one.hosts.values() for b in other.hosts.values()):
                found[one.name].add(other.name)
                found[other.name].add(one.name)
    return found


def startable(
    waiting: Sequence[str], running: Collection[str], having_shared: Mapping[str, set[str]], most: int
) -> list[str]:
    """Those of `waiting` that may start now, beside `running`; a stack waits for each one before it that has a host in common with it.

    :param most: how many may run at the same time.
    """
    found: list[str] = []
    for number, name in enumerate(waiting):
        if len(running) + len(found) >= most:
            break
        if not having_shared[name] & {*running, *waiting[:number]}:
            found.append(name)
    return found


def said(members: Sequence[Member]) -> list[str]:
    """For each host that several stacks have, a sentence about their order."""
    machines: list[tuple[Host, list[str]]] = []
    for member in members:
        for host in member.hosts.values():
            mine = next((names for known, names in machines if same_host(known, host)), None)
            if mine is None:
                machines.append((host, [member.name]))
            elif member.name not in mine:
                mine.append(member.name)
    return [
        f"{host.address}: {', then '.join(names)}; one after the other, since they change the same host"
        for host, names in machines
        if len(names) > 1
    ]
