"""Guest: a VM or a container that this program makes, by Proxmox VE's own options. Its disks and what they are made of
are never changed in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pulumi

from homelab.properties import mark_of
from homelab.resources.base import NodeInputs, Owned
from homelab.shapes import ShutdownInputs
from remote_scripts.pve.guest_kinds import CONTAINER, VM, Kind

if TYPE_CHECKING:
    from homelab.settings import Container, Vm


class Guest(Owned):
    """A guest that this program makes, and removes with the stack unless it is protected.

    Its description carries a mark, by which an interrupted run finds its own guest again, and without which none is
    ever removed. What can be changed in place is; a change that would need another disk is refused, as making the guest
    anew would lose what is on it.
    """

    kind = "guest:Guest"
    replaced_by = frozenset(("host", "node", "vmid", "guest_kind"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`guest`: its name in the settings; `config`: option -> value, as the API takes them; `secret_config`: the
        same, secret; `clone`: of which VM it is a clone, None: of none; `size`: of the system disk in GiB, None: as it
        comes; `mark`: in its description.
        """

        guest: str
        guest_kind: Literal["qemu", "lxc"]
        vmid: int
        config: dict[str, str]
        secret_config: dict[str, str] = field(default_factory=dict)
        clone: int | None = None
        size: int | None = None
        protect: bool
        mark: str
        shutdown: ShutdownInputs

        @property
        def kind(self) -> Kind:
            return VM if self.guest_kind == "qemu" else CONTAINER

        @property
        def label(self) -> str:
            """For messages."""
            return f"{self.kind.label} {self.vmid}"

        @property
        def section(self) -> str:
            """The part of the settings that it is in."""
            return "vms" if self.kind is VM else "containers"

        @property
        def place(self) -> str:
            """Its place in the settings."""
            return f"{self.section}.{self.guest}"

        @property
        def path(self) -> str:
            """Its path in the API."""
            return f"nodes/{self.node}/{self.guest_kind}/{self.vmid}"

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`instance`: what tells this guest from a later one of the same id; `written`: its options as they were read
        after they were set; `drift`: those that differ from that."""

        instance: str
        written: dict[str, str] = field(default_factory=dict)
        drift: list[str] = field(default_factory=list)

    instance: pulumi.Output[str]

    @classmethod
    def of(cls, guest: Vm | Container, *, node: str, opts: pulumi.ResourceOptions) -> Guest | None:
        """The guest of the settings; None: it is adopted.

        :param node: its host's name in Proxmox VE.
        """
        new = guest.create
        if new is None:
            return None
        name, secret = guest.name, new.secret_options
        return cls(
            f"{name}-{'vm' if new.kind == 'qemu' else 'ct'}",
            host=guest.host,
            node=node,
            guest=name,
            guest_kind=new.kind,
            vmid=guest.guest_id,
            config=new.configuration(name),
            secret_config=pulumi.Output.secret(secret) if secret else {},
            **new.model_dump(include={"clone", "size"}),
            protect=new.protect,
            mark=mark_of(f"{pulumi.get_project()}/{pulumi.get_stack()}", name),
            shutdown=guest.shutdown.model_dump(mode="json"),
            opts=opts,
        )
