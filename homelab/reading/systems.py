"""Reads the systems in which something is installed for cards: for a preview, a refresh and the doctor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from homelab.container.libraries import WITH_APT
from homelab.errors import HomelabError, UnreachableError
from homelab.facts.host import HostFacts
from homelab.nvidia import reading
from homelab.remote import ssh
from remote_scripts.both import read_system


def read(session: ssh.Session, facts: HostFacts, systems: Iterable[str]) -> HostFacts:
    """Reads a host and its containers, of these the ones that run and that nothing else works on now.

    :param facts: the host's, with its guests.
    :param systems: `host`, and containers' ids.
    :returns: the facts, with what was read.
    :raises UnreachableError: the host's connection was lost.
    """
    found, wanted = dict[str, object](), read_system.Wanted()
    for system in systems:
        ctid = 0 if system == "host" else int(system)
        try:
            if not ctid or _is_read(facts, ctid):
                found[system] = reading.parse(session.ask("read", "read_system", wanted, ctid=ctid))
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
