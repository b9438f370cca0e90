"""What apt says of the NVIDIA stacks of a host and its guests, before anything is changed: preview and `up` ask the
same. The host comes first: its containers must have its driver's version, to the last digit, and one that can't would
be without its card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from homelab.errors import HomelabError, UnreachableError
from homelab.nvidia import reading
from homelab.nvidia.plan import index, wanted
from homelab.nvidia.preview import Stack
from homelab.remote import ssh
from homelab.settings import Container
from homelab.text import tell
from remote_scripts.both import read_system
from remote_scripts.both.nvidia_packages import Said
from remote_scripts.tools.plain import of_plain

# Lists are fetched over the owner's line.
_SECONDS = 900.0


def asked(session: ssh.Session, stack: Stack) -> Stack:
    """The stack with what apt says on its system, where that is to be asked; for a guest that isn't there yet, with
    what NVIDIA's repositories lack, by its host's.

    :param session: of the system; of a container, or a guest that isn't there yet, its host's.
    :raises UnreachableError: the connection to the host was lost.
    """
    if stack.errors or stack.is_done or not (stack.reading or stack.is_new):
        return stack
    name, proxy = stack.request.name, stack.request.settings.proxy_address
    try:
        if stack.is_new:
            return _asked_of_index(session, stack)
        answer = session.ask("read", "nvidia_packages", wanted(stack.request), _SECONDS, ctid=stack.ctid, proxy=proxy)
    except HomelabError as error:
        if isinstance(error, UnreachableError) and stack.request.target != "vm":
            raise
        told = error if name in error.wanted else error.retold(wanted=f"{name}: {error.wanted}")
        return dataclasses.replace(stack, errors=[told])
    return stack.answered(of_plain(Said, answer))


def _asked_of_index(session: ssh.Session, stack: Stack) -> Stack:
    of_nvidia = index(stack.request)
    if not (of_nvidia.names and stack.request.distribution):
        return stack
    proxy = stack.request.settings.proxy_address
    against = session.ask("read", "nvidia_index", of_nvidia, _SECONDS, proxy=proxy)["against"]
    if not against:
        return stack
    return dataclasses.replace(stack.answered(Said(chosen=None, against=tuple(against))), said=None)


def asked_after(host: Stack | None, guests: Sequence[tuple[ssh.Session, Stack]]) -> list[Stack]:
    """A host's guests, asked at the same time. What refuses a container says which driver the host would get.

    :param host: its stack, if it has one, with what apt says there.
    :param guests: each with the session of `asked`.
    :raises UnreachableError: a connection was lost.
    """
    if not guests or (host is not None and host.errors):
        return [stack for _, stack in guests]
    with ThreadPoolExecutor(len(guests)) as threads:
        stacks = list(threads.map(lambda guest: asked(*guest), guests))
    if host is None or host.said is None or not host.is_replaced:
        return stacks
    follows = (
        f"a container's libraries must be of its host's version, and {host.request.name} would get "
        f"{host.said.version} in place of {host.said.was}"
    )
    return [
        dataclasses.replace(one, errors=[error.retold(why=f"{error.why}; {follows}") for error in one.errors])
        if one.ctid
        else one
        for one in stacks
    ]


def refused_by_containers(session: ssh.Session, host: Stack, containers: Mapping[str, Container]) -> list[HomelabError]:
    """Where a host's driver is to be replaced, what each of its containers says that can't have the one that comes.

    :param host: its stack, with what apt says there.
    :param containers: the host's, by their names in the settings.
    :raises UnreachableError: the connection was lost.
    """
    if host.said is None or not host.is_replaced:
        return []
    followers = (_follower(session, name, one, host.said.version) for name, one in containers.items())
    stacks = asked_after(host, [(session, follower) for follower in followers if follower])
    return [error for stack in stacks for error in stack.errors]


def _follower(session: ssh.Session, name: str, container: Container, version: str) -> Stack | None:
    """The stack that a container is to have beside that driver of its host; None: none, or it can't be read."""
    if container.nvidia is None:
        return None
    try:
        inside = reading.parse(session.ask("read", "read_system", read_system.Wanted(), ctid=container.ctid))
    except UnreachableError:
        raise
    except HomelabError:  # it is off, or has no shell, say; its own stack fails by that
        tell(f"containers.{name} was not asked whether it can have the driver {version}: it could not be read")
        return None
    # Its cards may come in this very run, or be seen only once the host's module is loaded.
    known = {"host_driver": version, "cards": None}
    return Stack.of("lxc", container.nvidia, f"containers.{name}", inside, container.ctid, **known)
