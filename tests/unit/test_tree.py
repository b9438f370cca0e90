"""The tree of what is judged of a host (homelab/judged/tree.py): what counts as a refusal of what `up` does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.host.plan import PlannedReboot
from homelab.judged.tree import Settings, Tree
from homelab.nvidia.settings import Nvidia
from homelab.reading import planning
from homelab.remote import ssh
from homelab.settings import Container, Vm
from remote_scripts.both.reboot import Reason
from remote_scripts.nvidia import driver, engine_conf
from remote_scripts.reading.answer import Managed
from tests.rows import rows
from tests.unit.hosts import conf, tree, vm_note
from tests.unit.test_cards import two_in_one_group, vm

LINES = "machine: q35\nname: one\nhostpci0: mapping=one,pcie=1"


def judged(lines: str = LINES, *names: str, second: str = "", ha: str = "", mapping: str = "") -> Tree:
    """VM 103, which has its card, and VM 104, which is to get another one of the same group, in this order."""
    entry = "id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00,subsystem-id=1043:88e2"
    configs = [conf("vm", 103, lines), *([conf("vm", 104, second)] if second else [])]
    about: dict[str, Any] = {"cluster": {"ha": {"resources": ha}}, "ledger": vm_note(103, LINES, "hostpci0")}
    facts, host = two_in_one_group(*configs, mappings=f"one\n\tmap {entry}\n{mapping}", **about)
    vms = {"one": vm(103, "one"), "two": vm(104, "two")}
    host = host.model_copy(update={"node": "pve"})
    return tree(facts, host, {name: vms[name] for name in names or ("one",)}, stack="p/s")


@pytest.mark.parametrize("names", [("one", "two"), ("two", "one")])
def test_a_card_of_a_group_that_another_vm_has_is_refused_whoever_comes_first(names: tuple[str, str]) -> None:
    found = judged(LINES, *names, second="machine: q35\nname: two")
    assert found.vms["one"][1].steps == [] and found.vms["two"][1].steps
    assert any("both cards are in one IOMMU group" in error.found for error in found.parts_refused)


RESTART = PlannedReboot(reboot="yes", boot_id="1", reasons=(Reason(said="iommu=pt is not there"),))


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({"lines": LINES.replace("q35", "pc")}, "machine: pc"),
        ({"mapping": "\tmap id=144d:a80c,node=pve,path=0000:05:00\n"}, "there is one of that name, for another device"),
    ],
)
def test_what_stands_against_a_guest_is_refused_with_the_steps_of_any_other_part(
    about: dict[str, str], found: str
) -> None:
    """It is a person's turn where nothing changes."""
    changing = judged(**about)
    assert changing.host.steps and any(found in error.found for error in changing.parts_refused)
    still = replace(changing, host=replace(changing.host, steps=[]), mappings={}, systems={})
    mapping = replace(changing.mappings["one"], steps=[])
    still = replace(still, mappings={"one": mapping})
    assert still.parts_refused == []
    assert any(found in line for part in still.parts() for line in part.met)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lock: backup", "it is locked (backup)"),
        ("hostpci1: mapping=old", "there is no mapping old"),  # it runs, and wouldn't start again
    ],
)
def test_what_holds_a_guest_for_now_is_refused_where_it_changes_or_the_host_restarts(line: str, found: str) -> None:
    held = judged(f"{LINES}\n{line}")
    assert held.host.steps and held.vms["one"][1].steps == [] and held.parts_refused == []
    restarting = replace(held, reboot=RESTART)
    assert [found in error.found for error in restarting.parts_refused] == [True]
    assert replace(held, reboot=replace(RESTART, reboot="no")).parts_refused == []


def test_a_locked_guest_that_leaves_the_settings_is_refused_with_its_change() -> None:
    tree = judged(f"{LINES}\nlock: backup", "two", second="machine: q35\nname: two")
    assert tree.leaving["vms.sandbox"].steps
    assert "it is locked (backup)" in [error.found for error in tree.parts_refused]


HOST = two_in_one_group()[1].model_copy(update={"node": "pve"})
MARK, DISK = "#Created by Pulumi%3A p/s/", {"scsi0": "local-lvm:8"}
OURS = f"{MARK}sandbox 0123456789abcdef\n{LINES}"
MADE = {"host": "pve", "ctid": 103, "gpus": [], "create": {"ostemplate": "a", "rootfs": "local-lvm:8"}}
BOX = {"box": Container.model_validate(MADE)}


def a_vm(**more: Any) -> dict[str, Vm]:
    return {"sandbox": Vm.model_validate({"host": "pve", "vmid": 103, "gpus": [], **more})}


def undone(monkeypatch: pytest.MonkeyPatch, wanted: Settings, lines: str, kind: str = "vm", **more: Any) -> str:
    """What `homelab show --undo` says, of a host with guest 103, which runs; its layers change no file."""
    facts = replace(two_in_one_group(conf(kind, 103, lines))[0], **more)
    session = SimpleNamespace(read=lambda **_: facts, plan=lambda questions: [{"files": []} for _ in questions])
    monkeypatch.setattr(ssh, "Session", lambda *_: session)
    return planning.undone(wanted)


DELETED = "VM 103 (one) is deleted with its disks"
GIVEN_BACK = "vms.sandbox is undone: the VM has back what it was before"


@rows(
    ("vms", "lines", "is_given", "said"),
    [
        (a_vm(create=DISK), OURS, True, [DELETED]),
        (a_vm(create=DISK), OURS, False, [DELETED]),  # it has no card
        (a_vm(create=DISK), f"#mine\n#so: {OURS[1:]}", False, [DELETED]),
        ({}, OURS, True, [f"{DELETED}, unless it was protected"]),
        (a_vm(create=DISK | {"protect": True}), OURS, True, ["it stays, as it is protected", GIVEN_BACK]),
        (a_vm(create=DISK | {"protect": True}), OURS, False, ["it stays, as it is protected", "running: no change"]),
        (a_vm(), OURS, True, ["it is shut down and started again", GIVEN_BACK]),
        (a_vm(create=DISK), LINES, True, ["it is shut down and started again", GIVEN_BACK]),
        (a_vm(create=DISK), OURS.replace("p/s/", "p/s2/"), False, []),
    ],
)
def test_a_guest_that_was_made_here_is_deleted_by_a_destroy_unless_it_is_protected(
    monkeypatch: pytest.MonkeyPatch, vms: dict[str, Vm], lines: str, is_given: bool, said: list[str]
) -> None:
    ledger = vm_note(103, LINES, "hostpci0") if is_given else {}
    text = undone(monkeypatch, Settings("pve", HOST, vms, stack="p/s"), lines, ledger=ledger)
    assert all(one in text for one in said), text
    assert ("deleted" in text) is any("deleted" in one for one in said) and ("103" in text) is bool(said)
    if said == [DELETED]:
        assert f"\n  {DELETED}\n" in text and "vms.sandbox" not in text and "shut down" not in text


def test_a_container_that_was_made_here_is_deleted_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    text = undone(monkeypatch, Settings("pve", HOST, {}, BOX, "p/s"), f"{MARK}box\nhostname: box\n", "lxc")
    assert "\n  container 103 (box) is deleted with its disks\n" in text and "containers.box" not in text


@pytest.mark.parametrize("on_destroy", ["keep", "purge"])
def test_what_else_a_destroy_removes_is_listed(monkeypatch: pytest.MonkeyPatch, on_destroy: str) -> None:
    layers = {driver.LAYER: "/etc/apt/a", engine_conf.LAYER: "/etc/docker/daemon.json", "vfio": "/etc/v"}
    managed = [Managed(layer, path, "ok") for layer, path in layers.items()]
    mapping = '{"gpu": "g", "path": "0000:01:00", "had_flag": false, "before": '
    ledger = {
        "mapping/pve/one": f"{mapping}null}}",
        "mapping/pve/two": f'{mapping}"node=pve"}}',
        "mapping/other/three": f"{mapping}null}}",
        "file/pve/local:import+noble.qcow2": "{}",
    }
    host = HOST.model_copy(update={"nvidia": Nvidia.model_validate({"onDestroy": on_destroy})})
    lines = undone(monkeypatch, Settings("pve", host, stack="p/s"), LINES, managed=managed, ledger=ledger).splitlines()
    kept = ("keeps", " (nvidia.onDestroy: keep)") if on_destroy == "keep" else ("removes", "")
    assert [line for line in lines if line.startswith(("  keeps", "  removes", "  gives back"))] == [
        f"  {kept[0]} /etc/apt/a{kept[1]}",
        f"  {kept[0]} /etc/docker/daemon.json{kept[1]}",
        "  removes /etc/v",
        "  removes the PCI mapping one, unless a VM has it that isn't this stack's",
        "  gives back the PCI mapping two, unless a VM has it that isn't this stack's",
        "  removes local:import/noble.qcow2, which was downloaded, unless a guest uses it",
    ]


@rows(
    ("lines", "stack", "found"),
    [
        (LINES, "p/s", "there is a VM 103 already: one"),
        (OURS.replace("p/s/", "p/s2/"), "p/s", "there is a VM 103 already: one"),
        (OURS.replace("sandbox", "old"), "p/s", "this stack has created VM 103 as vms.old"),
        (OURS, "p/s", ""),
        (LINES, "", ""),
    ],
)
def test_a_guest_of_somebody_elses_that_has_the_id_of_one_to_be_made_is_refused(
    lines: str, stack: str, found: str
) -> None:
    facts, host = two_in_one_group(conf("vm", 103, lines))
    vms = a_vm(create=DISK, gpus=["one"])
    refused = tree(facts, host, vms, stack=stack).vms["sandbox"][1].refusals
    assert [error.found for error in refused][:1] == [found] * bool(found) or not found
    assert any("already" in error.found or "has created" in error.found for error in refused) is bool(found)


IDENTITY = "smbios1: uuid=11111111-0000-4000-8000-00000000000"


@rows(
    ("owner", "noted", "is_known"),
    [("p/s/sandbox", "1", True), ("p/s/sandbox", "2", False), ("p/s/other", "1", False), ("p/s2/sandbox", "1", False)],
)
def test_a_vm_whose_notes_were_rewritten_is_known_by_homelabs_own_note(owner: str, noted: str, is_known: bool) -> None:
    lines = f"#mine\n{LINES}\n{IDENTITY}"
    facts, host = two_in_one_group(conf("vm", 103, f"{lines}1"))
    facts = replace(facts, ledger=vm_note(103, f"{lines}{noted}", "hostpci0", owner=owner))
    (error, *_) = tree(facts, host, a_vm(create=DISK, gpus=["one"]), stack="p/s").vms["sandbox"][1].refusals
    assert ("were rewritten, and lack that line" in error.found) is is_known
    assert error.next.endswith("then run the same again: Created by Pulumi: p/s/sandbox") is is_known


@pytest.mark.parametrize("lines", ["hostname: theirs", f"{MARK}box\nhostname: box"])
def test_a_container_of_somebody_elses_is_refused_likewise(lines: str) -> None:
    facts, host = two_in_one_group(conf("lxc", 103, lines))
    found = [error.found for error in tree(facts, host, {}, BOX, "p/s").containers["box"][1].refusals]
    assert found == ["there is a container 103 already: theirs"] * ("theirs" in lines)
