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
    from homelab.settings import Download


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

    made: pulumi.Output[bool]

    @classmethod
    def of(cls, host_name: str, node: str, name: str, download: Download, opts: pulumi.ResourceOptions) -> StorageFile:
        """The file of a download of the settings."""
        return cls(f"{host_name}-{name}", dataclasses.asdict(cls.inputs_of(host_name, node, name, download)), opts)

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
