"""VmRecord: what a VM had before, and what it is to have for its cards. It owns those keys, and no others.

`create` and `update` read the VM and the host, pass every check or fail before anything is changed, and put the record into the
state *before* VmChange acts on it: a run that is killed in between loses nothing. `read` (``pulumi refresh``) finds drift, and a VM
that is gone. `delete` gives back every key that still is as we set it, with a shutdown and a start if the VM runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from components.provider import stopped_by_us
from host.text import tell
from proxmox.provider import ApiProvider, policy

if TYPE_CHECKING:
    from proxmox.vm_config import Record, Wish

OUTPUTS = ("record", "restore", "running", "generation", "drift", "guest_name")


class VmRecordProvider(ApiProvider):
    """See the module. Inputs: host, node, vm, vmid, cards, machine, display, shared_onboot, power, shutdown, instance, boot."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(int(props["vmid"])), {**props, **self._planned(props, {}, {}, 0)})

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        same = olds.get("instance") == news.get("instance")
        record, restore = (olds["record"], olds["restore"]) if same else ({}, {})
        return UpdateResult({**news, **self._planned(news, record, restore, int(olds["generation"]) + 1, olds)})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        inputs = [key for key in news if key not in OUTPUTS]
        changed = bool(olds.get("drift")) or any(olds.get(key) != news.get(key) for key in inputs)
        # Another VM: the old one is given back what it had, and it is another one's turn.
        replaces = [key for key in ("host", "node", "vmid") if olds.get(key) != news.get(key)]
        return DiffResult(changes=changed, replaces=replaces, stables=[], delete_before_replace=True)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        if "record" not in props:  # `pulumi import` has nothing to compare with; adopting takes no import
            return ReadResult(id_, props)
        drift = self._drift(props)
        for line in drift:
            tell(f"{props['vm']}: drift: {line}")
        return ReadResult(id_, {**props, "drift": drift})

    def _drift(self, props: dict[str, Any]) -> list[str]:
        from proxmox.api import NotThereError
        from proxmox.vm_config import drift, strings

        vmid = int(props["vmid"])
        path = f"nodes/{props['node']}/qemu/{vmid}"
        try:
            config = strings(self.reading(props, f"{path}/config", f"to read the configuration of VM {vmid}"))
        except NotThereError:
            return [f"VM {vmid} is gone"]
        found = drift(config, props["record"])
        if props["power"] != "keep":
            status = self.reading(props, f"{path}/status/current", f"to see whether VM {vmid} runs")["status"]
            found += [] if status == props["power"] else [f"VM {vmid} is {status} instead of {props['power']}"]
        return found

    def _planned(
        self,
        props: dict[str, Any],
        record: Record,
        restore: Record,
        generation: int,
        olds: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        from host import ssh
        from host.errors import raise_all
        from host.properties import same
        from proxmox.vm_config import check, recorded

        machine = self.machine(props)
        config = machine.config()
        host = self.host(props)
        guests = asyncio.run(ssh.read(host, guests=True)).guests
        wish = wish_of(props, may_replace_raw=bool(host.api and host.api.is_root))
        users = {card.gpu: guests.users_of(card.slot, props["node"]) for card in wish.cards}
        errors, notes = check(config, wish, users)
        raise_all(errors)
        made, given_back = recorded(config, wish, record)
        for note in notes if made != record else []:
            tell(f"{props['vm']}: {note}")
        running = int(props["vmid"]) in guests.running_vms
        return {
            "record": made,
            # What an earlier update was to give back, and was interrupted, still is; what is no longer ours has been.
            "restore": {
                key: entry
                for key, entry in {**restore, **given_back}.items()
                if key not in made and same(key, config.get(key), entry["ours"])
            },
            "running": running or stopped_by_us(int(props["vmid"]), props["boot"], olds and olds.get("boot")),
            "generation": generation,
            "drift": [],
            "guest_name": config.get("name", props["vm"]),
        }

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        from proxmox.api import NotThereError
        from proxmox.vm_config import undo

        if props.get("goes_away"):
            return  # the VM itself is deleted next
        owned = {**props["restore"], **props["record"]}
        if not owned:
            return
        try:
            self.machine(props).converge(lambda config: undo(config, owned), sorted(owned), policy(props), "keep")
        except NotThereError:
            tell(f"{props['vm']}: VM {int(props['vmid'])} is gone: there is nothing to give back")


def wish_of(props: dict[str, Any], *, may_replace_raw: bool) -> Wish:
    """The inputs as what `vm_config` takes."""
    from proxmox.vm_config import Card, Wish

    return Wish(
        props["vm"],
        int(props["vmid"]),
        [Card(**card) for card in props["cards"]],
        props.get("machine"),
        props["display"],
        props["shared_onboot"],
        may_replace_raw,
    )


class VmRecord(Resource, module="homelab", name="VmRecord"):
    """The dynamic resource. Outputs: ``record``, ``restore`` (key -> ours, before), ``running`` (is it to run again?),
    ``generation`` (raised by each update), ``guest_name``.
    """

    record: pulumi.Output[dict[str, Any]]
    restore: pulumi.Output[dict[str, Any]]
    running: pulumi.Output[bool]
    generation: pulumi.Output[int]
    guest_name: pulumi.Output[str]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(VmRecordProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)
