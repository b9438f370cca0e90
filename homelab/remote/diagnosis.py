"""Reads a host for `homelab doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from homelab.doctor.reading import Extra, Reading
from homelab.remote import ssh
from homelab.settings import Host
from remote_scripts.layers.diagnose import Wanted as Diagnose
from remote_scripts.tools.plain import of_plain


def read(host: Host, containers: Sequence[int] = ()) -> Reading:
    """Reads a host; changes nothing there.

    :param containers: ids of containers to read from inside; one that isn't there is left out.
    :raises UnreachableError: the host doesn't answer.
    :raises HomelabError: the login is refused, the host shows another key, or a layer failed.
    """
    session = ssh.Session(host)
    facts = session.read(guests=True, lspci=True, kernel_log=True)
    extra = session.ask("read", "diagnose", Diagnose(containers=tuple(containers)))
    return Reading(facts, of_plain(Extra, extra, "diagnosis"))
