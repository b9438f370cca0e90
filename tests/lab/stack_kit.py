"""A lab that runs, as the program has it: in the settings of a stack, in the inputs of its resources, and by the client of its API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from homelab.guest.resource import Guest
from homelab.host.resource import HostProbe
from homelab.remote.proxmox.api import Api
from homelab.settings import Host
from homelab.shapes import BootSeen, ShutdownInputs
from homelab.vm.cards import VmCard
from homelab.vm.resource import VmCards
from lab import Lab
from tests.conftest import PROJECT

NODE, VM = "pve", 103
#: A guest that is made.
ID = 300
TEMPLATE = "debian-12-standard_12.7-1_amd64.tar.zst"
CARD = VmCard("rtx5090", "rtx5090", "0000:01:00")
CARDS_URN = "urn:pulumi:s::p::homelab:vm:Cards::sandbox"
#: Of a host that gives nothing away.
PROBED = HostProbe.Outputs(iommu_words="", vfio_words="", functions={}, by_hand=[], gpus={}, generation={}, stale=False)


class Quick:
    """Time that passes by being waited for; ``then`` is what happens meanwhile: after so many waits, do that."""

    def __init__(self, then: dict[int, Callable[[], object]] | None = None) -> None:
        self.at, self.waits, self._then = 0.0, 0, then or {}

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self.waits += 1
        self._then.get(self.waits, lambda: None)()
        time.sleep(0.005)  # the lab's tasks take real time


def host_of(lab: Lab, timeouts: dict[str, int] | None = None, **ssh: Any) -> Host:
    about = {key: lab.connection[key] for key in ("hostKey", "privateKeyFile", "port")}
    cards = {"rtx5090": {"match": "10de:2b85"}}
    reached = {"address": lab.connection["host"], "ssh": {**about, **ssh}}
    return Host.model_validate({**reached, "gpus": cards, "timeouts": timeouts or {}})


def host_settings(lab: Lab) -> dict[str, Any]:
    """How a lab's host is reached, and its node's name."""
    ssh = lab.connection
    return {
        "address": ssh["host"],
        "node": lab.api["node"],
        "ssh": {"port": ssh["port"], "hostKey": ssh["hostKey"], "privateKeyFile": ssh["privateKeyFile"]},
        "timeouts": {"connect": 10, "reboot": 60, "rollback": 60},
    }


def reached(lab: Lab, vmid: int = 103, *, sudo: bool = False) -> dict[str, Any]:
    """A VM's settings by which its guest is reached: as root, or as the user that its image has, with sudo."""
    guest = lab.guest(vmid)
    ssh = {name: guest[name] for name in ("port", "hostKey", "privateKeyFile")}
    if sudo:
        ssh["user"] = guest["user"]
    return {"address": guest["host"], "ssh": ssh}


def shell(lab: Lab, vmid: int) -> list[str]:
    """What runs a command in a VM, as root, over SSH."""
    guest = lab.guest(vmid)
    options = [f"-oUserKnownHostsFile={guest['hostKeyFile']}", "-oStrictHostKeyChecking=no", "-oLogLevel=ERROR"]
    where = ["-i", guest["privateKeyFile"], "-p", str(guest["port"]), f"root@{guest['host']}"]
    return ["ssh", "-F", "none", *options, *where]


def gpus_of(scenario: str | Path) -> dict[str, Any]:
    """The cards that the scenario's own stack names, as `make up SCENARIO=…` uses it."""
    gpus: dict[str, Any] = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{scenario}.yaml").read_text())["gpus"]
    return gpus


def as_text(host: Host) -> dict[str, Any]:
    """As the stack's configuration has it."""
    return host.model_dump(mode="json", by_alias=True)


def stack_of(lab: Lab, node: str = NODE, **guests: dict[str, Any]) -> dict[str, str]:
    """The configuration of a stack with this host, and `vms` and `containers` where they are given."""
    return {"hosts": json.dumps({node: as_text(host_of(lab))}), **{key: json.dumps(guests[key]) for key in guests}}


def client(lab: Lab, clock: Quick | None = None, user: str = "root") -> Api:
    return Api(host_of(lab, user=user), NODE, clock=clock or Quick())


def map_card(lab: Lab) -> None:
    entry = "node=pve,path=0000:01:00,id=10de:2b85,iommugroup=14,subsystem-id=1043:89e3"
    client(lab).post("cluster/mapping/pci", "a mapping", id="rtx5090", map=entry)


def put_template(lab: Lab) -> None:
    """TEMPLATE is on the storage `local`."""
    lab.run(
        f"mkdir -p $HOMELAB_ROOT/var/lib/vz/template/cache; touch $HOMELAB_ROOT/var/lib/vz/template/cache/{TEMPLATE}"
    )


def given_card(node: str = NODE, **more: Any) -> VmCards.Inputs:
    """VM 103 has its card, and may be shut down for that."""
    about: dict[str, Any] = {"vm": "sandbox", "vmid": VM, "cards": [CARD], "display": "keep", "power": "keep"}
    about |= {"instance": "", "goes_away": False, "boot": BootSeen(id="b", stopped=[], at=0)}
    about |= {"shutdown": ShutdownInputs(timeout=5, otherwise="stop")}
    return VmCards.Inputs(host=node, node=node, **{**about, **more})


def made_guest(kind: Literal["qemu", "lxc"], name: str, config: dict[str, str], **more: Any) -> Guest.Inputs:
    """A guest that the program makes, of this configuration."""
    about: dict[str, Any] = {"host": NODE, "node": NODE, "mark": f"Created by Pulumi: project/stack/{name}"}
    about |= {"shutdown": ShutdownInputs(timeout=5, otherwise="stop"), "protect": False, "vmid": ID}
    return Guest.Inputs(guest=name, guest_kind=kind, config=config, **{**about, **more})
