"""SafetyCopy: a snapshot or a backup of an adopted guest, made before this program changes it for the first time.

It is the owner's from then on: nothing here removes it or makes it anew; the resource's deletion says how to go back to it, and how to be rid of
it. Its name is noted on the host before it is begun (homelab/remote/ledger.py), so that a run that was killed, or a state that was lost, makes
no second one; and what changes the guest depends on this resource, so that none goes on without it. A note is of one guest: another one of the same
id gets a copy of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi

from homelab.resources.base import NodeInputs, Resource, Values, moved_within_cluster

if TYPE_CHECKING:
    from homelab.settings import Container, Vm


class SafetyCopy(Resource):
    """See the module; outputs as of `Outputs`."""

    kind = "guest:SafetyCopy"
    replaced_by = frozenset(("host", "node", "guest_kind", "vmid"))
    ignored = frozenset(("guest",))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`guest`: its name in the settings; `guest_kind`: qemu or lxc; `safety`: snapshot or backup; `storage`: a backup's;
        `identity`: tells the guest from another one of the same id (vm.safety.identity_of); empty: it isn't known."""

        guest: str
        guest_kind: str
        vmid: int
        safety: str
        storage: str = ""
        identity: str = ""
        cluster: str = ""

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`copy`: the snapshot's name, or the backup's volume."""

        copy: str

    copy: pulumi.Output[str]

    @classmethod
    def says_nothing(cls, key: str, new: Any) -> bool:
        """An identity that a preview doesn't know yet, in all but rare cases the same as before, or that a state of before doesn't have."""
        return key == "identity" and not (isinstance(new, str) and new)

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        """It goes with its guest to another node of the cluster."""
        return super().replacing(state, changed) - moved_within_cluster(state, changed)

    @classmethod
    def of(
        cls,
        name: str,
        guest: tuple[str, str, int],
        node: str,
        settings: Vm | Container,
        identity: pulumi.Input[str],
        opts: pulumi.ResourceOptions,
        cluster: str | None = None,
    ) -> SafetyCopy:
        """The one of a guest.

        :param name: the resource's.
        :param guest: its name in the settings, qemu or lxc, its id.
        :param cluster: of its host.
        """
        called, guest_kind, vmid = guest
        about: dict[str, object] = {"host": settings.host, "node": node, "guest": called, "guest_kind": guest_kind}
        about |= {"vmid": vmid, "safety": settings.safety, "storage": settings.backup_storage or ""}
        about |= {"cluster": cluster} if cluster else {}
        return cls(name, {**about, "identity": identity}, opts)
