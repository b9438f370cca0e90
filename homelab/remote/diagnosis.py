"""A host looked through, for the doctor."""

from __future__ import annotations

from collections.abc import Sequence

from homelab.doctor.reading import Reading, parse
from homelab.remote import scripts, ssh
from homelab.settings import Host


async def read(host: Host, containers: Sequence[int] = ()) -> Reading:
    """Reads a host over one connection; changes nothing there.

    :param containers: those to look into; a container that isn't there is left out.
    :raises UnreachableError: nobody answers.
    :raises HomelabError: the login is refused, another host key, a script failed.
    """
    async with ssh.connect(host) as session:
        facts = await session.read(guests=True, lspci=True, kernel_log=True)
        return parse(facts, await session.run("diagnose", scripts.diagnose(containers)))
