"""The host on which a container of the settings is, for commands that ask the container itself."""

from __future__ import annotations

import asyncio

from homelab.doctor.stack import StackFile
from homelab.errors import HomelabError, UnreachableError
from homelab.remote import ssh
from homelab.settings import Container, Host, Settings


def host_of(file: StackFile, settings: Settings, container: Container, identity: str | None) -> Host:
    """The host that the container names; of a cluster, the one that it is on now: each is read, one after the other.

    :param identity: as of `StackFile.host`.
    :raises HomelabError: it is on none of them; where one of them can't be read, that it can't.
    """
    if container.host in settings.hosts:
        return file.host(container.host, identity)[1]
    nodes = [file.host(name, identity)[1] for name in settings.of_cluster(container.host)]
    silent: HomelabError | None = None
    for host in nodes:
        try:
            if asyncio.run(ssh.read(host, guests=True)).guests.config(container.ctid) is not None:
                return host
        except UnreachableError as error:  # it may be on another one
            silent = silent or error
    if silent is not None:
        raise silent
    raise HomelabError(
        wanted=f"container {container.ctid} on a host of the cluster {container.host}",
        found="it is on none of those that the settings have",
        why="what is in a container is asked for through the node that it is on",
        next="see where it is (`pvesh get /cluster/resources`), and describe that node under hosts",
    )
