"""Reads the systems in which something is installed for cards: for a preview, a refresh and the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from homelab.container.libraries import WITH_APT
from homelab.errors import HomelabError, UnreachableError
from homelab.facts.host import HostFacts
from homelab.remote import ssh
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.both.read_system import Wanted
from remote_scripts.tools.plain import of_plain


def asked(ask: Callable[..., Any], wanted: Wanted | None = None, **where: int) -> SystemReading:
    """A reading of one system.

    :param ask: as `Session.ask`, which `where` is for.
    """
    return of_plain(SystemReading, ask("read", "read_system", wanted or Wanted(), **where), "reading")


def read(session: ssh.Session, facts: HostFacts, systems: Iterable[str]) -> HostFacts:
    """Reads a host and its containers, of these the ones that run and that nothing else works on now.

    :param facts: the host's, with its guests.
    :param systems: `host`, and containers' ids.
    :returns: the facts, with what was read.
    :raises UnreachableError: the host's connection was lost.
    """
    found = dict[str, object]()
    for system in systems:
        ctid = 0 if system == "host" else int(system)
        try:
            if not ctid or _is_read(facts, ctid):
                found[system] = asked(session.ask, ctid=ctid)
        except UnreachableError:
            raise
        except HomelabError as error:
            # It may have stopped since the host was read.
            if not ctid or _is_read(session.read(guests=True), ctid):
                found[system] = error
    return replace(facts, systems={**facts.systems, **found})


def _is_read(facts: HostFacts, ctid: int) -> bool:
    """What nobody knows counts as running. In a system of another kind nothing is installed, which its configuration
    decides.
    """
    config = facts.guests.config(ctid)
    runs = config is not None and (bool(facts.guests.unlisted) or ctid in facts.guests.running)
    values = {"lock": ""} if config is None or config.kind != "lxc" else config.values
    return runs and "lock" not in values and values.get("ostype", "unmanaged") in WITH_APT
