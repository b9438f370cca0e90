"""VmRecord: what a VM had before, and what it is to have for its cards. It owns those keys, and no others.

`create` and `update` read the VM and the host, pass every check or fail before anything is changed, and put the record into the
state *before* VmChange acts on it: a run that is killed in between loses nothing. The same record is noted on the host (homelab/remote/ledger.py):
`create` with a state that was lost goes on from there. `read` (``pulumi refresh``) finds drift, and a VM that is gone. `delete` gives
back every key that still is as we set it, with a shutdown and a start if the VM runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from homelab.resources.api import ApiProvider, policy
from homelab.resources.base import stopped_by_us
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.settings import Host
    from homelab.vm.config import Record, Wish

OUTPUTS = ("record", "restore", "running", "generation", "drift", "guest_name")


class VmRecordProvider(ApiProvider):
    """See the module. Inputs: host, node, vm, vmid, cards, machine, display, shared_onboot, power, shutdown, instance, boot."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(int(props["vmid"])), {**props, **asyncio.run(self._planned(props, None))})

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult({**news, **asyncio.run(self._planned(news, olds))})

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
        from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
        from homelab.vm.config import drift, strings

        vmid = int(props["vmid"])
        path = f"nodes/{props['node']}/qemu/{vmid}"
        try:
            config = strings(self.reading(props, f"{path}/config", f"to read the configuration of VM {vmid}"))
        except NotThereError:
            return [f"VM {vmid} is gone"]
        except ElsewhereError as error:
            return [error.found]
        found = drift(config, props["record"])
        if props["power"] != "keep":
            status = self.reading(props, f"{path}/status/current", f"to see whether VM {vmid} runs")["status"]
            found += [] if status == props["power"] else [f"VM {vmid} is {status} instead of {props['power']}"]
        return found

    async def _planned(self, props: dict[str, Any], olds: dict[str, Any] | None) -> dict[str, Any]:
        """The outputs. ``olds``: as the state has the resource; None: it doesn't, and what is noted on the host counts."""
        from homelab.errors import raise_all
        from homelab.properties import same
        from homelab.remote import ledger, ssh
        from homelab.vm.config import check, identity, recorded

        vmid = int(props["vmid"])
        config = self.machine(props).config()
        host = self.host(props)
        async with ssh.connect(host) as session:
            facts = await session.read(guests=True)
            guests = facts.guests
            record, restore, generation = _before(props, config, olds, ledger.found(facts.ledger, ledger.of_vm(vmid)))
            wish = wish_of(props, may_replace_raw=bool(host.api and host.api.is_root))
            users = {card.gpu: guests.users_of(card.slot, props["node"]) for card in wish.cards}
            errors, notes = check(config, wish, users)
            raise_all(errors)
            made, given_back = recorded(config, wish, record)
            # What an earlier update was to give back, and was interrupted, still is; what is no longer ours has been.
            left = {
                key: entry
                for key, entry in {**restore, **given_back}.items()
                if key not in made and same(key, config.get(key), entry["ours"])
            }
            if made or left:
                about = {"record": made, "restore": left, "identity": identity(config)}
                await ledger.note(session, ledger.of_vm(vmid), about)
            elif ledger.of_vm(vmid) in facts.ledger:
                await ledger.forget(session, ledger.of_vm(vmid))
        for note in notes if made != record else []:
            tell(f"{props['vm']}: {note}")
        running = vmid in guests.running_vms
        return {
            "record": made,
            "restore": left,
            "running": running or stopped_by_us(vmid, props["boot"], olds and olds.get("boot")),
            "generation": generation,
            "drift": [],
            "guest_name": config.get("name", props["vm"]),
        }

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        from homelab.remote.proxmox.errors import NotThereError
        from homelab.vm.config import undo

        owned = {**props["restore"], **props["record"]}
        if not owned:
            return
        if not props.get("goes_away"):  # else the VM itself is deleted next
            try:
                self.machine(props).converge(lambda config: undo(config, owned), sorted(owned), policy(props), "keep")
            except NotThereError:
                tell(f"{props['vm']}: VM {int(props['vmid'])} is gone: there is nothing to give back")
        asyncio.run(_forget(self.host(props), int(props["vmid"])))


async def _forget(host: Host, vmid: int) -> None:
    from homelab.remote import ledger, ssh

    async with ssh.connect(host) as session:
        await ledger.forget(session, ledger.of_vm(vmid))


def _before(
    props: dict[str, Any], config: dict[str, str], olds: dict[str, Any] | None, noted: dict[str, Any] | None
) -> tuple[Record, Record, int]:
    """What was recorded of the VM, what of that is still to be given back, and the generation of the new record."""
    from homelab.vm.config import noted_of

    if olds is not None:
        same = olds.get("instance") == props.get("instance")
        record, restore = (olds["record"], olds["restore"]) if same else ({}, {})
        return record, restore, int(olds["generation"]) + 1
    record, restore = noted_of(config, noted)
    if record or restore:
        tell(
            f"{props['vm']}: VM {int(props['vmid'])} was given {', '.join(sorted({**record, **restore}))} by this program before, and "
            "this stack's state doesn't know it: taken over from what is noted on the host"
        )
    return record, restore, 0


def wish_of(props: dict[str, Any], *, may_replace_raw: bool) -> Wish:
    """The inputs as what `vm_config` takes."""
    from homelab.vm.config import Card, Wish

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
