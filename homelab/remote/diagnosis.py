"""Reads a host for `homelab doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from homelab.doctor.reading import Extra, Reading
from homelab.remote import ssh
from homelab.settings import Host
from remote_scripts.layers.diagnose import Wanted as Diagnose
from remote_scripts.tools.plain import of_plain


async def read(host: Host, containers: Sequence[int] = ()) -> Reading:
    """Reads a host over one connection; changes nothing there.

    :param containers: ids of containers to read from inside; one that isn't there is left out.
    :raises UnreachableError: the host doesn't answer.
    :raises HomelabError: the login is refused, the host shows another key, or a layer failed.
    """
    async with ssh.connect(host) as session:
        facts = await session.read(guests=True, lspci=True, kernel_log=True)
        extra = await session.ask("read", "diagnose", Diagnose(containers=tuple(containers)))
        return Reading(facts, of_plain(Extra, extra, "diagnosis"))
