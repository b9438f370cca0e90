"""Reads a host for `homelab doctor`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from homelab.doctor.reading import Extra, Reading
from homelab.reading import systems
from homelab.remote import ssh
from homelab.settings import Host
from remote_scripts.both.diagnose import Wanted as Diagnose
from remote_scripts.tools.plain import of_plain


def read(host: Host, containers: Sequence[int] = (), inside: Collection[str] = (), vm: int = 0) -> Reading:
    """Reads a host; changes nothing there.

    :param containers: ids of containers to read from inside; one that isn't there is left out.
    :param inside: `host` and ids of containers: where they run, what is installed in them for cards is read as well.
    :param vm: the id of the VM of which a start is asked about; 0: none.
    :raises UnreachableError: the host doesn't answer.
    :raises HomelabError: the login is refused, the host shows another key, or a layer failed.
    """
    session = ssh.Session(host)
    facts = session.read(guests=True, kernel_log=True)
    extra = session.ask("read", "diagnose", Diagnose(containers=tuple(containers), vm=vm))
    # As a refresh, which compares nothing of it while a shared card is away.
    if not facts.handover.away:
        asked = [one for one in dict.fromkeys(inside) if one != "host" or host.nvidia or facts.nvidia.version]
        facts = systems.read(session, facts, asked)
    return Reading(facts, of_plain(Extra, extra, "diagnosis"))
