"""What apt says of the NVIDIA stacks of a host and its guests, before anything is changed: preview and `up` ask the
same. The host comes first: its containers must have its driver's version, to the last digit, and one that can't would
be without its card.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from homelab.errors import HomelabError, UnreachableError
from homelab.nvidia.plan import index, wanted
from homelab.nvidia.preview import Stack
from homelab.remote import ssh
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
    if stack.reading and stack.is_done:
        return replace(stack, said=Said(chosen=0, version=stack.reading.libraries))
    if stack.errors or not (stack.reading or stack.is_new):
        return stack
    proxy = stack.settings.proxy_address
    try:
        if stack.is_new:
            return _asked_of_index(session, stack)
        answer = session.ask("read", "nvidia_packages", wanted(stack), _SECONDS, ctid=stack.ctid, proxy=proxy)
    except HomelabError as error:
        if isinstance(error, UnreachableError) and stack.target != "vm":
            raise
        told = error if stack.name in error.wanted else error.retold(wanted=f"{stack.name}: {error.wanted}")
        return replace(stack, against=(told,))
    return replace(stack, said=of_plain(Said, answer))


def _asked_of_index(session: ssh.Session, stack: Stack) -> Stack:
    of_nvidia = index(stack)
    if not (of_nvidia.names and stack.distribution):
        return stack
    proxy = stack.settings.proxy_address
    against = session.ask("read", "nvidia_index", of_nvidia, _SECONDS, proxy=proxy)["against"]
    lacking = replace(stack, said=Said(chosen=None, against=tuple(against)))
    return replace(stack, against=tuple(lacking.errors)) if against else stack


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
        f"a container's libraries must be of its host's version, and {host.name} would get "
        f"{host.said.version} in place of {host.said.was}"
    )
    for number, one in enumerate(stacks):
        if one.ctid:
            told = tuple(error.retold(why=f"{error.why}; {follows}") for error in one.errors)
            stacks[number] = replace(one, against=told)
    return stacks
