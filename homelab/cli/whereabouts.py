"""The host on which a container of the settings is, for commands that ask the container itself."""

from __future__ import annotations

import asyncio

from homelab.doctor.stack import StackFile
from homelab.errors import HomelabError, UnreachableError
from homelab.remote import ssh
from homelab.settings import Container, Host, Settings


def host_of(file: StackFile, settings: Settings, container: Container, identity: str | None) -> Host:
    """The host that a container names; of a cluster, the node that the container is on now, for which each is read.

    :param identity: the private key to log in with instead of the settings' login.
    :raises HomelabError: the container is on none of them, or one of them can't be read.
    """
    if container.host in settings.hosts:
        return file.host(container.host, identity)[1]
    nodes = [file.host(name, identity)[1] for name in settings.of_cluster(container.host)]
    unreachable: HomelabError | None = None
    for host in nodes:
        try:
            if asyncio.run(ssh.read(host, guests=True)).guests.config(container.ctid) is not None:
                return host
        except UnreachableError as error:  # it may be on another one
            unreachable = unreachable or error
    if unreachable is not None:
        raise unreachable
    raise HomelabError(
        wanted=f"container {container.ctid} on a host of the cluster {container.host}",
        found="it is on none of those that the settings have",
        why="what is in a container is asked for through the node that it is on",
        next="see where it is (`pvesh get /cluster/resources`), and describe that node under hosts",
    )
