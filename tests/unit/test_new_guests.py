"""What becomes of a guest that this program has made: it is changed, and removed, only while it is certainly that one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from inline_snapshot import snapshot

from homelab.errors import ElsewhereError, GoneError, HomelabError, NotThereError
from homelab.guest.mark import id_in_use
from homelab.guest.resource import Guest
from homelab.guest.settings import find_host_devices
from homelab.guest.work import GuestWork
from homelab.reading import planning
from homelab.settings import Vm
from homelab.shapes import ShutdownInputs
from remote_scripts.both import judge_guests
from remote_scripts.pve.guest_kinds import VM
from tests.rows import rows
from tests.unit.hosts import conf, desktop
from tests.unit.test_created_vms import texts

MARK, MADE, OTHER = "Created by Pulumi: p/s/a", "0" * 16, "f" * 16
WANTED: dict[str, Any] = {"host": "pve1", "node": "pve1", "guest": "a", "vmid": 103, "mark": MARK, "protect": False}
INPUTS = Guest.Inputs(
    **WANTED,
    guest_kind="qemu",
    config={"memory": "512", "cores": "2"},
    shutdown=ShutdownInputs(timeout=5, otherwise="fail"),
)
OUTPUTS = Guest.Outputs(instance=MADE, written={"memory": "512", "cores": "2"})
OURS = {"description": f"{MARK} {MADE}", "memory": "512", "cores": "2", "net0": "virtio"}


def error_of(kind: type[Any]) -> Any:
    return kind(wanted="", found="it is there", why="", next="", status=500, reason="")


class Guests(GuestWork):
    """Over guests in memory: node -> the configuration of guest 103 there."""

    def __init__(self, by_node: dict[str, dict[str, str]], vms: dict[str, Any] | None = None, owner: str = "") -> None:
        super().__init__(texts(vms or {}, {}).texts, "urn:pulumi:s::p::homelab:guest:Guest::a")
        self.by_node = by_node
        #: Whose the VM is by its host's note of it.
        self.owner = owner
        self.done: list[str] = []

    def api(self, inputs: Guest.Inputs) -> Any:
        return self

    def get(self, path: str, _wanted: str) -> dict[str, str]:
        node = path.split("/")[1]
        if node in self.by_node:
            return {**self.by_node[node], "digest": "d"}
        if not self.by_node:
            raise error_of(NotThereError)
        error = error_of(ElsewhereError)
        error.node = next(iter(self.by_node))
        raise error

    def _transaction(self, inputs: Guest.Inputs) -> Any:
        return SimpleNamespace(read=lambda _wanted: SimpleNamespace(owner=self.owner))

    def make(self, inputs: Any, instance: str) -> None:
        self.done.append(instance)

    def require_same_disks(self, inputs: Any, before: Any) -> None:
        self.done.append("disk")

    def change(self, inputs: Any, before: Any, drift: Any) -> list[str]:
        self.done.append(f"changed on {inputs.node}: {' '.join(drift)}")
        return list(drift)

    def remove(self, inputs: Any) -> None:
        self.done.append(f"removed from {inputs.node}")

    def forget(self, inputs: Any) -> None:
        pass


def described(text: str) -> dict[str, str]:
    return {**OURS, "description": text}


ADOPTED = {"b": {"host": "pve1", "vmid": 103, "gpus": ["card"]}}
CREATED = {"a": {**ADOPTED["b"], "create": {"scsi0": "local:8"}}}


@rows(
    ("by_node", "changes", "vms", "removed_from"),
    [
        ({"pve1": OURS}, {}, {}, "pve1"),
        ({"pve1": OURS}, {}, CREATED, "pve1"),
        ({"pve1": OURS}, {}, ADOPTED, ""),
        ({"pve1": OURS}, {"protect": True}, {}, ""),
        ({"pve1": described("")}, {}, {}, ""),
        ({"pve1": described(f"{MARK}b {MADE}")}, {}, {}, ""),
        ({"pve1": described(f"{MARK} {OTHER}")}, {}, {}, ""),
        ({"pve1": described(MARK)}, {}, {}, "pve1"),
        ({"pve2": OURS}, {}, {"b": {**ADOPTED["b"], "host": "pve2"}}, ""),
        ({}, {}, {}, ""),
    ],
)
def test_only_itself_is_removed(
    by_node: dict[str, dict[str, str]], changes: dict[str, Any], vms: dict[str, Any], removed_from: str
) -> None:
    work = Guests(by_node, vms)
    work.delete(dataclasses.replace(INPUTS, **changes), OUTPUTS)
    assert work.done == [f"removed from {removed_from}"] * bool(removed_from)


REWRITTEN = described("mine\n")


@pytest.mark.parametrize(
    "act",
    [
        lambda work: work.delete(INPUTS, OUTPUTS),
        lambda work: GuestWork.change(work, INPUTS, INPUTS, ["memory"]),
        lambda work: GuestWork.make(work, INPUTS, MADE),
    ],
    ids=["delete", "change", "make"],
)
def test_a_vm_whose_notes_were_rewritten_is_named_with_what_it_lacks(act: Callable[[Guests], object]) -> None:
    with pytest.raises(HomelabError) as raised:
        act(Guests({"pve1": REWRITTEN}, owner="p/s/a"))
    assert "by homelab's own note it is vms.a" in raised.value.found and raised.value.next == snapshot(
        "if homelab hasn't created it, leave `create` out of vms.a to adopt that VM as it is. If it has, write this line into its Notes again, then run the same again: Created by Pulumi: p/s/a"
    )


def test_a_refresh_says_what_a_vm_lacks_whose_notes_were_rewritten(capsys: pytest.CaptureFixture[str]) -> None:
    work = Guests({"pve1": REWRITTEN}, owner="p/s/a")
    assert work.read(INPUTS, OUTPUTS).drift == ["description"]
    assert f"then run the same again: {MARK}" in capsys.readouterr().out


@rows(
    ("config", "changes", "vms", "owner"),
    [
        (REWRITTEN, {}, {}, "p/s/other"),
        (REWRITTEN, {}, {}, "p/s2/a"),
        (REWRITTEN, {}, ADOPTED, "p/s/a"),
        (REWRITTEN, {"protect": True}, {}, "p/s/a"),
        (REWRITTEN, {"guest_kind": "lxc"}, {}, "p/s/a"),
    ],
)
def test_one_that_isnt_surely_this_one_stays(
    config: dict[str, str], changes: dict[str, Any], vms: dict[str, Any], owner: str
) -> None:
    work = Guests({"pve1": config}, vms, owner)
    work.delete(dataclasses.replace(INPUTS, **changes), OUTPUTS)
    assert work.done == []


def test_one_that_an_older_state_made_is_removed() -> None:
    work = Guests({"pve1": OURS})
    work.delete(INPUTS, Guest.Outputs(instance=""))
    assert work.done == ["removed from pve1"]


def test_one_that_has_moved_is_not_removed() -> None:
    work = Guests({"pve2": OURS})
    with pytest.raises(ElsewhereError):
        work.delete(INPUTS, OUTPUTS)
    assert work.done == []


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"description": f"Created by Pulumi: p/s/b {MADE}"}, "this stack has created VM 103 as vms.b"),
        ({**OURS, "lock": "clone"}, "there is a VM 103 already: without a name, locked (clone)"),
        ({"description": "Created by Pulumi: p/other/b", "name": "x"}, "there is a VM 103 already: x"),
        ({}, "there is a VM 103 already: without a name"),
    ],
)
def test_whose_the_guest_of_its_id_is_is_said(config: dict[str, str], found: str) -> None:
    assert id_in_use(VM, 103, MARK, config).found == found
    if MARK in config.get("description", ""):
        assert id_in_use(VM, 103, MARK, config, "p/s/a").found == found, "its Notes are as they were"


def test_somebody_elses_that_has_taken_its_id_since_is_not_changed() -> None:
    with pytest.raises(HomelabError, match="there is a VM 103 already: theirs"):
        GuestWork.change(Guests({"pve1": {"name": "theirs"}}), INPUTS, INPUTS, ["memory"])


def test_each_making_of_it_has_a_name_of_its_own() -> None:
    work = Guests({})
    work.by_node = {"pve1": OURS}
    first, second = work.create(INPUTS), work.create(INPUTS)
    assert work.done == [first.instance, second.instance] and first.instance != second.instance


def test_drift_that_is_put_right_is_drift_no_more() -> None:
    work = Guests({"pve1": OURS})
    assert work.update(INPUTS, INPUTS, dataclasses.replace(OUTPUTS, drift=["memory"])) == OUTPUTS
    assert work.done == ["disk", "changed on pve1: memory"]


def test_one_that_was_elsewhere_is_changed_once_it_is_back() -> None:
    moved = dataclasses.replace(OUTPUTS, drift=["node"])
    with pytest.raises(ElsewhereError):
        Guests({"pve2": OURS}).update(INPUTS, INPUTS, moved)
    assert Guests({"pve1": OURS}).update(INPUTS, INPUTS, moved) == OUTPUTS


@rows(
    ("by_node", "drift"),
    [
        ({"pve1": OURS}, []),
        ({"pve1": {**OURS, "memory": "1024"}}, ["memory"]),
        ({"pve1": {key: value for key, value in OURS.items() if key != "cores"}}, ["cores"]),
        ({"pve1": {**OURS, "description": "mine"}}, ["description"]),
        ({"pve2": OURS}, ["node"]),
        ({}, None),
    ],
)
def test_a_refresh_says_what_differs_and_what_is_gone(
    by_node: dict[str, dict[str, str]], drift: list[str] | None
) -> None:
    work = Guests(by_node)
    if drift is None:
        with pytest.raises(GoneError):
            work.read(INPUTS, OUTPUTS)
    else:
        assert work.read(INPUTS, OUTPUTS).drift == drift


@rows(
    ("option", "value", "device"),
    [
        ("scsi1", "/dev/disk/by-id/ata-X,size=1G", "/dev/disk/by-id/ata-X"),
        ("scsi1", "discard=on,file=/dev/sdb", "/dev/sdb"),
        ("mp0", "/srv/data,mp=/data", "/srv/data"),
        ("mp0", "/net/,mp=/net", "/net"),
        ("mp0", "local:8,mp=/", None),
        ("usb0", "host=1-4.2,usb3=1", "/1-4.2/"),
        ("usb0", "usb3=1,host=0x0BDA:0x8153", "PRODUCT=bda/8153/"),
        ("usb0", "1-4", "/1-4/"),
        ("usb0", "spice", None),
        ("usb0", "mapping=stick", None),
        ("net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0", None),
        ("scsi0", "local-lvm:32", None),
        ("cores", "1-4", None),
    ],
)
def test_a_device_of_the_host_is_found_in_an_option(option: str, value: str, device: str | None) -> None:
    assert find_host_devices({option: value}) == ({} if device is None else {option: device})


def test_a_device_is_asked_for_that_a_guest_doesnt_have_yet_and_none_that_it_has() -> None:
    asked: list[judge_guests.Wanted] = []

    class Host:
        def ask(self, _verb: str, _layer: str, wanted: judge_guests.Wanted) -> dict[str, Any]:
            asked.append(wanted)
            return {"mistakes": {"made": {"usb0": "the host uses it"}}, "unjudged": ""}

    options = {"scsi1": "/dev/disk/by-id/ata-X", "usb0": "host=1-4", "args": "-x"}
    about = {"host": "pve", "create": options}
    guests = {"new": Vm.model_validate({**about, "vmid": 300}), "made": Vm.model_validate({**about, "vmid": 301})}
    config = conf("vm", 301, "scsi1: /dev/disk/by-id/ata-X,size=1G\nusb0: host=1-5")
    facts = desktop(guests={"configs": [config]})
    errors, _ = planning._of_new_guests(cast(Any, Host()), facts, guests)
    (wanted,) = asked
    of_new = (("new", "scsi1", "/dev/disk/by-id/ata-X"), ("new", "usb0", "/1-4/"))
    assert wanted.devices == (*of_new, ("made", "usb0", "/1-4/")) and [*wanted.vms] == ["new"]
    assert [error.wanted for error in errors] == [
        "vms.new.create without args",
        "made, made as its settings say (create)",
    ]
