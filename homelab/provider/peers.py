"""What was noted on a host, forgotten."""

from __future__ import annotations

from collections.abc import Iterable

from homelab.remote import ledger, ssh
from homelab.settings import Host


def forget_notes(host: Host, names: Iterable[str]) -> None:
    """Takes notes out of a host's ledger: what they are about has been given back.

    :raises HomelabError: it can't be asked.
    """
    session = ssh.Session(host)
    for name in names:
        ledger.forget(session, name)
