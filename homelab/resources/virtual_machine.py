"""VirtualMachine: a VM that this program makes, and removes with the stack unless it is protected.

Its description carries a mark, by which an interrupted run finds its own VM again, and without which none is ever removed. What can
be changed in place is; a disk or its source can't, and a change there is refused, as making the VM anew would lose what is on it.
"""

from __future__ import annotations

import secrets
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from homelab.resources.api import ApiProvider, policy, stays
from homelab.text import tell
from homelab.vm.creation import SYSTEM_DISK

OUTPUTS = ("instance", "drift")
# Of `config`, what is read back on a refresh. Disks and network cards come back with what Proxmox VE added to them.
MOVED = "node"  # of drift: it is on another node of the cluster
COMPARED = ("name", "cores", "memory", "balloon", "cpu", "machine", "bios", "ostype", "agent", "onboot")


class VirtualMachineProvider(ApiProvider):
    """See the module. Inputs: host, node, vm, vmid, config, disk, image, template, shutdown, protect, mark, secret_config."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        instance = secrets.token_hex(8)
        self._made(props, instance)
        return CreateResult(str(int(props["vmid"])), {**props, "instance": instance, "drift": []})

    def _made(self, props: dict[str, Any], instance: str) -> None:
        api, machine, vmid = self.api(props), self.machine(props), int(props["vmid"])
        limit = api.host.timeouts.create
        wanted = f"{machine.label} created"
        config = {**props["config"], **props["secret_config"], "description": f"{props['mark']} {instance}"}
        if machine.exists():
            self._finish(props, config)
        elif props.get("template") is None:
            machine.say("creating")
            path = f"nodes/{api.node}/qemu"
            api.carry_out("post", path, wanted, limit, machine.say, kinds=("qmcreate",), vmid=vmid, **config)
        else:
            source = f"nodes/{api.node}/qemu/{int(props['template'])}/clone"
            machine.say(f"cloning {int(props['template'])}")
            # The mark travels with the clone: the VM is known as ours from its first moment.
            about = {"newid": vmid, "full": 1, "name": config["name"], "description": config["description"]}
            about["storage"] = props["disk"]["storage"]
            api.carry_out("post", source, wanted, limit, machine.say, kinds=("qmclone",), **about)
            path = f"nodes/{api.node}/qemu/{vmid}/config"
            api.put(path, wanted, digest=api.get(path, wanted)["digest"], **config)
        if props.get("template") is not None or props.get("image") is not None:
            self._resize(props)

    def _resize(self, props: dict[str, Any]) -> None:
        """The disk as large as wanted, if it is smaller: that of an image or a template seldom is."""
        api, machine = self.api(props), self.machine(props)
        wanted = f"the disk of {machine.label} {int(props['disk']['size'])} GiB large"
        path = f"nodes/{api.node}/qemu/{int(props['vmid'])}/resize"
        about = {"disk": SYSTEM_DISK, "size": f"{int(props['disk']['size'])}G"}
        api.carry_out("put", path, wanted, api.host.timeouts.api_task, machine.say, kinds=("resize",), **about)

    def _finish(self, props: dict[str, Any], wanted: dict[str, str]) -> None:
        """An existing VM of that id is our own, from an interrupted run, and is finished; or nothing is done."""
        from homelab.errors import HomelabError
        from homelab.properties import same
        from homelab.vm.config import Change

        machine = self.machine(props)
        config = machine.config()
        if props["mark"] in config.get("description", "") and "lock" not in config:
            machine.say("it was made by an earlier run that was interrupted: finishing it")

            def target(have: dict[str, str]) -> Change:
                values = {
                    key: value
                    for key, value in wanted.items()
                    if key not in have or (key in (*COMPARED, "description") and not same(key, have[key], value))
                }
                return Change(values)

            machine.converge(target, sorted(wanted), policy(props), "keep")
            return
        raise HomelabError(
            wanted=f"{machine.label} created",
            found=f"there is a VM {machine.vmid} already: {config.get('name', 'without a name')}"
            + (f", locked ({config['lock']})" if "lock" in config else ""),
            why="it is not this program's, or not finished; nothing was changed",
            next=f"choose another vmid, or leave `create` out of vms.{props['vm']} to adopt that VM as it is",
        )

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        from homelab.properties import same
        from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
        from homelab.vm.config import strings

        if "config" not in props:
            return ReadResult(id_, props)
        path = f"nodes/{props['node']}/qemu/{int(props['vmid'])}/config"
        try:
            config = strings(self.reading(props, path, f"to read the configuration of VM {int(props['vmid'])}"))
        except NotThereError:
            tell(f"{props['vm']}: drift: VM {int(props['vmid'])} is gone")
            return ReadResult("", {})
        except ElsewhereError as error:
            tell(f"{props['vm']}: drift: {error.found}")
            return ReadResult(id_, {**props, "drift": [MOVED]})
        drift = [
            key for key in COMPARED if key in props["config"] and not same(key, config.get(key), props["config"][key])
        ]
        for key in drift:
            tell(f"{props['vm']}: drift: {key} is {config.get(key, 'not there')} instead of {props['config'][key]}")
        return ReadResult(id_, {**props, "drift": drift})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        changed = bool(olds.get("drift")) or any(olds.get(key) != news.get(key) for key in news if key not in OUTPUTS)
        replaces = [key for key in ("host", "node", "vmid") if olds.get(key) != news.get(key)]
        return DiffResult(changes=changed, replaces=replaces, stables=[], delete_before_replace=False)

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        from homelab.vm.config import Change

        _require_same_disk(olds, news)
        if MOVED in olds.get("drift", []):
            self.machine(news).config()  # refused, unless it is back
        both = {**news["config"], **news["secret_config"]}
        had = {**olds["config"], **olds["secret_config"]}
        again = [key for key, value in both.items() if had.get(key) != value or key in olds.get("drift", [])]
        gone = [key for key in had if key not in both]

        def target(config: dict[str, str]) -> Change:
            return Change({key: both[key] for key in again}, [key for key in gone if key in config])

        if again or gone:
            self.machine(news).converge(target, [*again, *gone], policy(news), "keep")
        if news["disk"]["size"] != olds["disk"]["size"]:
            self._resize(news)
        return UpdateResult({**news, "instance": olds["instance"], "drift": []})

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        from homelab.remote.proxmox.errors import NotThereError

        machine = self.machine(props)
        try:
            config = machine.config()
        except NotThereError:
            return
        same = [name for name, vm in self.vms(props).items() if vm.vmid == machine.vmid and vm.create is None]
        if why := stays(props, config, "VM", [f"vms.{name}" for name in same]):
            tell(f"{props['vm']}: VM {machine.vmid} stays: {why}")
            return
        if machine.running():
            machine.shut_down(policy(props))
        machine.destroy()


def _require_same_disk(olds: dict[str, Any], news: dict[str, Any]) -> None:
    from homelab.errors import HomelabError

    size, before = float(news["disk"]["size"]), float(olds["disk"]["size"])
    for what, old, new, changed in (
        (
            "disk.storage",
            olds["disk"]["storage"],
            news["disk"]["storage"],
            olds["disk"]["storage"] != news["disk"]["storage"],
        ),
        ("disk.size", f"{before:g} GiB", f"{size:g} GiB", size < before),
        ("image", olds.get("image"), news.get("image"), olds.get("image") != news.get("image")),
        ("template", olds.get("template"), news.get("template"), olds.get("template") != news.get("template")),
    ):
        if changed:
            raise HomelabError(
                wanted=f"vms.{news['vm']}.create.{what}: {new}",
                found=f"the VM was made with {old}",
                why="that can only be had by making the VM anew, and what is on its disk would be lost",
                next=f"put it back; or take vms.{news['vm']} out, run `pulumi up`, and create it again",
            )


class VirtualMachine(Resource, module="homelab", name="VirtualMachine"):
    """The dynamic resource. Output ``instance``: what tells this VM from a later one of the same id."""

    instance: pulumi.Output[str]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(VirtualMachineProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)
