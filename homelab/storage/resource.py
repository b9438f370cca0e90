"""StorageFile: a file that Proxmox VE downloads onto a storage of a node, for guests to be made of.

One that is there already is used as it is, and never removed. One that was downloaded here is removed with the
resource, unless a guest names it. That it is this program's is noted on the host before the
download begins (homelab/remote/ledger.py): a run that is killed in between, or a state that is lost, leaves nothing
behind that the next run doesn't know.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pulumi

from homelab.resources.base import NodeInputs, Owned

if TYPE_CHECKING:
    from homelab.settings import Container, Download, Host, Vm


class StorageFile(Owned):
    """A file that Proxmox VE downloads onto a storage."""

    kind = "storage:File"
    replaced_by = frozenset(("host", "node", "volume"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`download`: its name in the settings; `checksum`: as `Download.checksum`."""

        download: str
        volume: str
        url: str
        checksum: str | None = None

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`made`: was it downloaded here?; `drift`: is it gone?"""

        made: bool
        drift: list[str] = field(default_factory=list)

    @classmethod
    def inputs_of(cls, host_name: str, node: str, name: str, download: Download) -> StorageFile.Inputs:
        """The inputs for a download of the settings."""
        return cls.Inputs(
            host=host_name,
            node=node,
            download=name,
            volume=download.volume(name),
            url=download.url,
            checksum=download.checksum,
        )


class Downloads:
    """The downloads of a host, as StorageFiles."""

    def __init__(self, host: Host, *, opts: pulumi.ResourceOptions) -> None:
        self._by_volume: dict[str, StorageFile] = {}
        for name, download in host.downloads.items():
            inputs = StorageFile.inputs_of(host.name, host.node_name, name, download)
            file = StorageFile(f"{host.name}-{name}", **dataclasses.asdict(inputs), opts=opts)
            self._by_volume[inputs.volume] = file

    def of(self, guest: Vm | Container) -> list[StorageFile]:
        """Those of which a guest is created."""
        return [self._by_volume[volume] for volume in guest.volumes if volume in self._by_volume]
