"""homelab/show: who has which card, as it is, and what the next `up` changes of that; drawn for a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.cli import show as command
from homelab.facts.host import HostFacts
from homelab.findings import Turn
from homelab.host.judge import judge_host
from homelab.judged.tree import Settings
from homelab.reading import systems
from homelab.remote import ssh
from homelab.settings import Container, Vm, parse
from homelab.show import reading, result, terminal, tree
from homelab.show.cards import ShownCard, ShownGuest, of_outputs
from remote_scripts.notes.container_note import Cards
from tests.conftest import PROJECT
from tests.unit.hosts import (
    KEY,
    NODES,
    cmdline,
    conf,
    container_note,
    desktop,
    device,
    device_nodes,
    driven,
    one_in_vm,
    settings,
    vm_note,
)
from tests.unit.test_options import NEW, split

VM: dict[str, Any] = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}
LXC = {"rtx5090": {"match": "10de:2b85", "use": "lxc"}}
PHOENIX: dict[str, Any] = {"host": "pve", "ctid": 901, "gpus": ["rtx5090"]}
SHARED = conf("lxc", 950, "hostname: old\ndev0: /dev/nvidia0,mode=0666")
OFF = conf("vm", 103, "name: sandbox\nmachine: q35")
WITHOUT_CARD = conf("lxc", 901, "hostname: p")
GUESTS = {"running": [], "configs": [OFF, WITHOUT_CARD]}
DRIVER: dict[str, Any] = {
    "nvidia_minors": {"0000:01:00.0": 0},
    "nvidia": {"version": "580.95.05", "trouble": ["", ""]},
    "nodes": device_nodes({name: NODES[name] for name in ("nvidia0", "nvidiactl", "nvidia-uvm")}),
}
GIVEN = Cards(minors=(0,), functions=("0000:01:00.0",))


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tree.TreeNode]:
    """`homelab show` of a host with a reading and these settings; its layers and its API have nothing against them."""

    def shown(
        facts: HostFacts, vms: Any = None, containers: Any = None, gpus: Any = None, **host: Any
    ) -> tree.TreeNode:
        found = parse({"hosts": {"pve": settings(gpus, **host)}, "vms": vms or {}, "containers": containers or {}})
        reboot = {"reboot": "no", "boot_id": "1"}
        session = SimpleNamespace(read=lambda **_: facts, plan=lambda of: [{"files": []}] * len(of[1:]) + [reboot])
        session.ask = lambda *_: {"mistakes": {}}
        monkeypatch.setattr(ssh, "Session", lambda *_: session)
        monkeypatch.setattr("homelab.remote.proxmox.probe.check", lambda *_: [])
        monkeypatch.setattr(systems, "read", lambda _, facts, *__: facts)
        return command.of_host(Settings("pve", found.hosts["pve"], found.vms, found.containers, "p/s"))

    return shown


def lines(node: tree.TreeNode) -> list[str]:
    return [f"{one.kind}: {one.line}" for one in node.walk()]


def signs(node: tree.TreeNode) -> list[str]:
    """The guests that something is done with."""
    return [one.line for one in node.walk() if one.mark != "stays" and one.kind == "guest"]


def of_card(node: tree.TreeNode) -> list[str]:
    """All below the host's card."""
    (card,) = [one for one in node.walk() if one.kind == "card"]
    return lines(card)


def test_host_group_card_and_guest_with_what_changes(show: Any) -> None:
    shown = lines(show(desktop(guests=GUESTS), {"sandbox": VM}))
    assert shown[1] == "setting: ~ amd_iommu=on iommu=pt is not on the configured kernel command line"
    assert shown[shown.index("group: IOMMU group 16") + 1 :] == [
        "card: ~ RTX 5090 [10de:2b85] at 0000:01:00, nouveau → vfio-pci",
        "setting: ~ the PCI mapping rtx5090: not there -> id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00,subsystem-id=1043:88e2",
        "guest: + VM 103 (sandbox)",
        "setting: ~ hostpci0: not there -> mapping=rtx5090,pcie=1",
    ]


@pytest.mark.parametrize("nvidia", [{}, {"nvidia": {"driver": "580"}}], ids=["loaded", "of the settings"])
def test_what_a_destroy_undoes_is_listed_while_a_vm_has_a_card(
    nvidia: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No card is wanted any more then, so that no gate of a card is asked."""
    facts = one_in_vm(managed=[{"layer": "vfio", "path": "/etc/initramfs-tools/a", "state": "ok"}])
    facts = replace(facts, ledger=vm_note(103, facts.guests.configs[0].lines, "hostpci0"))
    asked: dict[str, Any] = {}

    def planned(layers: list[tuple[str, Any]]) -> list[dict[str, Any]]:
        asked.update({getattr(wanted, "name", layer): wanted for layer, wanted in layers})
        return [{"files": [{"how": "given back", "what": "/etc/default/grub"}]} for _ in layers]

    monkeypatch.setattr(ssh, "Session", lambda *_: SimpleNamespace(read=lambda **_: facts, plan=planned))
    host = {"address": "192.0.2.1", "ssh": {"hostKey": KEY, "agent": True}, "gpus": {"rtx5090": {"match": "10de:2b85"}}}
    found = parse({"hosts": {"pve": host | nvidia}, "vms": {"sandbox": VM}})
    monkeypatch.setattr(command, "_hosts", lambda _: [Settings("pve", found.hosts["pve"], found.vms, {}, "p/s")])
    assert command.main(["--undo"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pve (192.0.2.1), with `pulumi destroy`:",
        "  VM 103 (gaming), running: it is shut down and started again",
        "    hostpci0: mapping=rtx5090,pcie=1 -> not there",
        "    vms.sandbox is undone: the VM has back what it was before",
        "  removes /etc/initramfs-tools/a",
        "  gives back /etc/default/grub",
        "  what stays: docs/undo.md; the running kernel keeps what it has until the next boot",
    ]
    assert asked["iommu"].words == asked["vfio"].words == "" and not asked["initramfs"].needed
    assert not asked["handover"].cards and not asked["card_values"].values


def keys(value: Any) -> Iterator[str]:
    """Of a JSON value, at any depth, but for names of hosts."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    yield from (
        key for key in (value if isinstance(value, dict) else ()) if key != "pve" or isinstance(value[key], str)
    )
    for one in inner:
        yield from keys(one)


def test_a_program_gets_the_tree_by_the_outputs_names(
    show: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link: dict[str, Any] = {"lanes": (8, 16), "speeds": ("2.5 GT/s PCIe", "32.0 GT/s PCIe")}
    devices = [asdict(one) | (link if one.is_nvidia else {}) for one in desktop().devices]

    def said(facts: HostFacts, **wanted: Any) -> Any:
        shown = show(facts, {"sandbox": VM}, **wanted)
        monkeypatch.setattr(command, "trees", lambda _: [shown])
        assert command.main(["--json"]) == 0
        whole = json.loads(capsys.readouterr().out)
        page = (
            (PROJECT / "docs" / "outputs.md").read_text(encoding="utf-8").partition("## The JSON of `homelab show`")[2]
        )
        assert {*keys(whole)} <= {*re.findall(r"`(?:hosts\.)?(\w+)`", page.partition("\n## ")[0]), "hosts"}
        assert whole["version"] == 1 and {*whole["hosts"]} == {"pve"}
        return whole["hosts"]["pve"]

    host = said(desktop(guests=GUESTS, devices=devices))
    (card,) = host["cards"]
    assert (host["node"], host["mark"], host["reboot"], host["refusals"]) == ("pve", "changes", "no", [])
    assert host["steps"][0] == "amd_iommu=on iommu=pt is not on the configured kernel command line"
    names = ("gpu", "slot", "name", "use", "iommuGroup", "driver", "nextDriver", "mark")
    assert [card[name] for name in names] == [
        "rtx5090", "0000:01:00", "RTX 5090", "vm", 16, "nouveau", "vfio-pci", "changes",
    ]  # fmt: skip
    assert card["link"] == {"width": 8, "maxWidth": 16, "speed": "2.5 GT/s PCIe", "maxSpeed": "32.0 GT/s PCIe"}
    assert card["steps"][0].startswith("the PCI mapping rtx5090: not there -> ")
    steps = ["hostpci0: not there -> mapping=rtx5090,pcie=1"]
    assert card["guests"] == [{"mark": "new", "kind": "vm", "vmid": 103, "name": "sandbox", "steps": steps}]
    # What is refused isn't marked; and of a link that the kernel doesn't know nothing is said.
    host = said(desktop(guests=GUESTS, pve="7.4"))
    assert [one["wanted"] for one in host["refusals"]] and (host["reboot"], host["steps"]) == ("no", [])
    (card,) = host["cards"]
    assert (host["mark"], card["mark"], card["guests"]) == ("stays", "stays", [])
    assert card.keys().isdisjoint({"link", "nextDriver"})


BEFORE = ShownCard("0000:01:00", "RTX 5090 [10de:2b85] at 0000:01:00", "IOMMU group 16", (), "nouveau")
DRAWN = tree.of_host("pve", [BEFORE], [replace(BEFORE, driver="vfio-pci", guests=(ShownGuest("VM", 103, "sandbox"),))])


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_guest_that_is_owed_a_start_is_named_by_show_and_doctor(show: Any, is_lost: bool) -> None:
    """One that the host starts by itself is no fault; one that it can't start is its owner's turn."""
    said = "VM 103 (Sandbox) was switched off by homelab, and isn't started yet: it is locked, backup"
    facts = desktop(guests=GUESTS, owed=[{"said": said, "is_lost": is_lost}])
    assert any(said in line for line in lines(show(facts, {"sandbox": VM})) if line.startswith("other: "))
    judged = judge_host(facts, parse({"hosts": {"pve": settings()}}).hosts["pve"])
    found = [(one.found, one.turn) for one in judged.findings if one.found == said]
    assert found == [(said, Turn.PERSON)] * is_lost and (said in judged.remarks) is not is_lost


# -- the preview's steps, and nothing else ----------------------------------------------------------------------------
VFIO = driven("vfio-pci")
LINES = "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidiactl,mode=0666\ndev2: /dev/nvidia-uvm,mode=0666"
NODE_LINES = [line.partition(": ")[2] for line in LINES.splitlines()]
HAS_CARD = [conf("lxc", 901, f"hostname: p\n{LINES}"), OFF]
MAPPED = "rtx5090\n\tmap id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00\n"


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        # A container that has all by its owner's lines stays, and so does one that has what it was given.
        ({"guests": {**GUESTS, "configs": HAS_CARD}, **DRIVER}, {"containers": {"p": PHOENIX}, "gpus": LXC}),
        (
            {"guests": {**GUESTS, "configs": HAS_CARD}, **DRIVER, "ledger": container_note(901, GIVEN, *NODE_LINES)},
            {"containers": {"p": PHOENIX}, "gpus": LXC, "nvidia": {"driver": "580"}},
        ),
        # Numbers are those of NVIDIA's driver: other makers' cards stay away.
        (
            {"guests": {**GUESTS, "configs": HAS_CARD}, **DRIVER},
            {
                "containers": {"p": {"host": "pve", "ctid": 901, "gpuAssignment": "all"}},
                "gpus": {"igpu": {"match": "1002:164e", "use": "lxc"}, **LXC},
            },
        ),
        # The host has it already.
        ({"guests": GUESTS}, {"gpus": {"rtx5090": {"match": "10de:2b85", "use": "host"}}}),
        # A gate is closed, or a guest isn't there: nothing comes.
        ({"guests": GUESTS, "framebuffers": {"0000:01:00.0": ["BOOTFB"]}}, {"vms": {"sandbox": VM}}),
        ({"guests": {**GUESTS, "configs": []}}, {"vms": {"sandbox": VM}}),
        ({"guests": {**GUESTS, "configs": []}, **DRIVER}, {"containers": {"p": PHOENIX}, "gpus": LXC}),
        # Its owner has it migrate.
        ({"guests": {"configs": [], "mappings": MAPPED + "\tlive-migration-capable 1\n"}, "devices": VFIO}, {}),
    ],
)
def test_what_the_next_up_leaves_alone_has_no_sign(show: Any, facts: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert signs(show(desktop(**facts), **wanted)) == []


def test_a_container_keeps_its_card_when_another_one_gets_it(show: Any) -> None:
    facts = desktop(guests={**GUESTS, "configs": [OFF, WITHOUT_CARD, SHARED]}, **DRIVER)
    for wanted in (PHOENIX, {"host": "pve", "ctid": 901, "gpuAssignment": "0"}):
        shown = show(facts, containers={"phoenix": wanted}, gpus=LXC)
        guests = [one.line for one in shown.walk() if one.kind == "guest"]
        assert guests == ["+ container 901 (p)", "container 950 (old)"]


@pytest.mark.parametrize("owner", ["p/s/old", "p/other/old"])
def test_a_container_that_leaves_the_settings_loses_its_card(show: Any, owner: str) -> None:
    ledger = container_note(950, GIVEN, "/dev/nvidia0,mode=0666", owner=owner)
    facts = desktop(guests={**GUESTS, "configs": [OFF, WITHOUT_CARD, SHARED]}, **DRIVER, ledger=ledger)
    is_own = owner.startswith("p/s/")
    assert signs(show(facts, gpus=LXC)) == ["- container 950 (old)"] * is_own
    seen = {"host": "pve", "ctid": 950, "name": "old", "addresses": ["0000:01:00.0"], "cards": {}}
    outputs = {"hosts": {"pve": {"gpus": {"rtx5090": GPU}}}, "containers": {"old": seen}}
    now, then = of_outputs(outputs, "pve"), reading.wanted_of_outputs(outputs, "pve", settings(LXC), {}, {})
    assert lines(tree.of_host("pve", now, then))[3] == "guest: - container 950 (old)"


def test_a_container_loses_the_card_that_the_settings_take_from_it(show: Any) -> None:
    ledger = container_note(901, GIVEN, "/dev/nvidia0,mode=0666")
    facts = desktop(guests={**GUESTS, "configs": HAS_CARD}, **DRIVER, ledger=ledger)
    assert signs(show(facts, containers={"p": {**PHOENIX, "gpus": []}}, gpus=LXC)) == ["- container 901 (p)"]


def test_a_card_moves_from_one_vm_of_the_stack_to_another_or_from_one_that_left(show: Any) -> None:
    given = "machine: q35\nname: first\nhostpci0: mapping=rtx5090,pcie=1"
    guests = {**GUESTS, "configs": [OFF, WITHOUT_CARD, conf("vm", 104, given)]}
    # Without its mapping it gives nobody the card; its option goes all the same.
    for mappings, sign in (("", "~"), (MAPPED, "-")):
        noted = vm_note(104, given, "hostpci0")
        facts = desktop(guests={**guests, "mappings": mappings}, devices=VFIO, ledger=noted)
        for others in ({}, {"first": {"host": "pve", "vmid": 104, "gpus": []}}):
            assert signs(show(facts, {"sandbox": VM, **others})) == ["+ VM 103 (sandbox)", f"{sign} VM 104 (first)"]


def test_a_guest_that_is_made_comes(show: Any) -> None:
    vm = {**VM, "create": {"scsi0": "local:8"}}
    container = {**PHOENIX, "create": {"ostemplate": "local:vztmpl/a.tar.zst"}}
    nothing = {**GUESTS, "configs": []}
    assert signs(show(desktop(guests=nothing), {"sandbox": vm})) == ["+ VM 103 (sandbox)"]
    assert signs(show(desktop(guests=nothing, **DRIVER), containers={"p": container}, gpus=LXC)) == [
        "+ container 901 (p)"
    ]


def test_a_card_goes_back_to_the_hosts_driver_with_what_has_it(show: Any) -> None:
    word = "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8"
    found = desktop(guests=GUESTS, devices=VFIO, cmdline=cmdline(word, others="", generated=word))
    shown = show(found, gpus={"rtx5090": {"match": "10de:2b85", "use": "host"}})
    assert lines(shown)[lines(shown).index("group: IOMMU group 16") + 1 :] == [
        "card: ~ RTX 5090 [10de:2b85] at 0000:01:00, vfio-pci → the host's driver",
        "guest: + the host itself",
    ]


def test_what_shares_the_group_is_shown_beside_the_card() -> None:
    usb = device("0000:03:00.0", "1022:43ee", "0c0330", 16, driver="xhci_hcd")
    cards = reading.of_reading(desktop(usb), settings())
    shown = tree.of_host("pve", cards, cards)
    assert any(one.kind == "other" and "USB controller" in one.text for one in shown.walk())


def test_what_the_settings_want_is_shown_without_the_host() -> None:
    after = reading.wanted_of_outputs({}, "pve", settings(), {"sandbox": Vm.model_validate(VM)}, {})
    shown = lines(tree.of_host("pve", [], after))
    assert "card: + RTX 5090 [10de:2b85] at gpus.rtx5090" in shown and "guest: + VM 103 (sandbox)" in shown
    assert "group: IOMMU group not read" in shown


def test_a_card_that_leaves_its_guest_is_marked_as_gone() -> None:
    had, has = (
        ShownCard("0000:01:00", "RTX 5090", "IOMMU group 1", (), "vfio-pci", (guest,))
        for guest in (ShownGuest("VM", 1), ShownGuest("VM", 2))
    )
    shown = tree.of_host("pve", [had], [has])
    assert lines(shown)[2:] == ["card: ~ RTX 5090, vfio-pci", "guest: - VM 1", "guest: + VM 2"]


def test_without_a_host_the_settings_change_what_the_stack_put_out() -> None:
    """Its VM's options, and what isn't known, such as the slot of /dev/nvidiaN, have no sign."""
    virtual = {**GPU, "slot": "0000:03:00.4", "functions": [{**FUNCTION, "driver": ""}]}
    outputs = {**OUTPUTS, "hosts": {"pve": {"gpus": {"rtx5090": GPU, "vf": virtual}}}}
    host = settings({"rtx5090": {"match": "10de:2b85", "use": "lxc"}, "vf": {"address": "0000:03:00.4"}})
    containers = {"p": Container.model_validate(PHOENIX)}
    now, then = of_outputs(outputs, "pve"), reading.wanted_of_outputs(outputs, "pve", host, {}, containers)
    assert [line for line in lines(tree.of_host("pve", now, then)) if "group" not in line][1:] == [
        "card: ~ RTX 5090 [10de:2b85] at 0000:01:00, vfio-pci → the host's driver",
        "guest: - VM 103 (Sandbox)",
        "guest: + container 901 (p)",
        "card: RTX 5090 [10de:2b85] at 0000:03:00.4, no driver",
        "other: nobody has it",
    ]


# -- what is set of it ---------------------------------------------------------------------------------------------
def asleep(allowed: str = "1", control: str = "auto", reset: str = "flr bus", **had: Any) -> dict[str, dict[str, Any]]:
    state = {"reset_method": reset, "d3cold_allowed": allowed, "control": control, **had}
    return dict.fromkeys(("0000:01:00.0", "0000:01:00.1"), state)


@pytest.mark.parametrize(
    ("gpu", "vm", "before", "expected"),
    [
        ({}, {}, {}, ["reset: flr, bus", "VM 103 (Sandbox)"]),
        ({"keepAwake": True}, {}, {"card_states": asleep("0", "on")}, ["reset: flr, bus", "sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({"keepAwake": True}, {}, {"card_states": asleep("0")}, ["reset: flr, bus", "VM 103 (Sandbox)"]),
        ({}, {}, {"card_states": asleep("0", "on", "bus")}, ["reset: bus", "sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({}, {"romfile": "card.rom"}, {}, ["reset: flr, bus", "~ VM 103 (Sandbox)", "~ hostpci0: mapping=rtx5090,pcie=1 -> mapping=rtx5090,pcie=1,romfile=card.rom"]),
        ({}, {}, {"hostpci": "hostpci0: mapping=rtx5090,pcie=1,romfile=old.rom"}, ["reset: flr, bus", "~ VM 103 (Sandbox)", "romfile: old.rom", "~ hostpci0: mapping=rtx5090,pcie=1,romfile=old.rom -> mapping=rtx5090,pcie=1"]),
        ({}, {}, {"hostpci": "hostpci0: mapping=rtx5090,pcie=1,romfile=old.rom", "originals": {}}, ["reset: flr, bus", "VM 103 (Sandbox)", "romfile: old.rom"]),  # refused
        ({}, {"takeOver": True}, {"hostpci": "hostpci0: mapping=rtx5090,romfile=old.rom,x-vga=1", "originals": {}}, ["reset: flr, bus", "VM 103 (Sandbox)", "romfile: old.rom", "x-vga: 1"]),
        # Options at Proxmox VE's defaults aren't shown.
        ({}, {"takeOver": True}, {"hostpci": "hostpci0: mapping=rtx5090,pcie=1,driver=vfio,rombar=1,x-vga=0", "originals": {}}, ["reset: flr, bus", "VM 103 (Sandbox)"]),
        # Of two options with a file each both are shown.
        ({}, {"takeOver": True}, {"hostpci": "hostpci0: mapping=rtx5090,romfile=a.rom\nhostpci1: 01:00.1,romfile=b.rom", "originals": {}}, ["reset: flr, bus", "VM 103 (Sandbox)", "romfile: a.rom", "romfile: b.rom"]),
        ({}, {}, {"card_states": {}}, ["VM 103 (Sandbox)"]),  # a kernel that doesn't say
        # Functions that are reset in different ways are named.
        ({}, {}, {"card_states": {**asleep(), "0000:01:00.1": {"reset_method": ""}}}, ["reset: 0000:01:00.0 by flr, bus; 0000:01:00.1 by none", "VM 103 (Sandbox)"]),
    ],
)  # fmt: skip
def test_a_cards_reset_sleep_and_options_are_shown_and_a_vms_steps_marked(
    show: Any, gpu: dict[str, Any], vm: dict[str, Any], before: dict[str, Any], expected: list[str]
) -> None:
    """``before``: `hostpci`, as VM 103 has the card now; `originals`, what it had without this program, {}: the same."""
    originals = before.get("originals", {"hostpci0": None})
    hostpci = before.get("hostpci", "hostpci0: mapping=rtx5090,pcie=1")
    text = f"name: Sandbox\nmachine: q35\nsmbios1: uuid=1\n{hostpci}"
    entry = "rtx5090\n\tmap id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00,subsystem-id=1043:88e2\n"
    guests = {**GUESTS, "mappings": entry, "configs": [conf("vm", 103, text)]}
    noted = vm_note(103, text, "hostpci0", originals=originals) if originals else {}
    states = before.get("card_states", asleep())
    facts = desktop(card_states=states, guests=guests, ledger=noted, devices=VFIO)
    vms = {"sandbox": {**VM, "gpus": [{"gpu": "rtx5090", **vm}]}}
    shown = of_card(show(facts, vms, gpus={"rtx5090": {"match": "10de:2b85", **gpu}}))
    assert [line.partition(": ")[2] for line in shown[1:]] == expected


def test_a_mapping_that_lets_a_running_vm_migrate_says_so(show: Any) -> None:
    vf, allowed = {"address": "0000:41:00.1"}, "setting: live migration: allowed by its mapping"
    mapped = {**GUESTS, "mappings": "vf\n\tmap node=pve,path=0000:41:00.1\n\tlive-migration-capable 1\n"}
    for guests, gpu, is_allowed in (
        (GUESTS, {**vf, "liveMigration": True}, False),
        (mapped, {**vf, "liveMigration": True}, True),
        (mapped, vf, True),  # perhaps its owner's, which stays
    ):
        facts = replace(split(NEW), guests=desktop(guests=guests).guests)
        assert (allowed in lines(show(facts, gpus={"vf": gpu}))) is is_allowed


def test_of_a_card_that_containers_share_neither_reset_nor_sleep_is_shown(show: Any) -> None:
    shown = show(desktop(card_states=asleep(), **DRIVER), gpus=LXC)
    assert not [line for line in of_card(shown) if line.startswith("setting")]


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ("quiet amd_iommu=on iommu=pt", []),
        ("quiet pcie_acs_override=downstream", ["pcie_acs_override: downstream"]),
        ("quiet initcall_blacklist=sysfb_init", ["initcall_blacklist: sysfb_init"]),
        ("intel_iommu=on,relax_rmrr", ["intel_iommu: on,relax_rmrr"]),
        ("vfio_iommu_type1.allow_unsafe_interrupts=1", ["vfio_iommu_type1.allow_unsafe_interrupts: 1"]),
    ],
)
def test_what_the_kernel_is_told_beside_the_usual_is_shown_of_the_host(
    show: Any, running: str, expected: list[str]
) -> None:
    words = dict.fromkeys(("configured", "others", "generated"), "quiet")
    shown = show(desktop(cmdline={"running": running, **words}))
    assert [one.line for one in shown.children if one.kind == "setting" and one.mark == "stays"] == expected


def test_what_cant_be_read_is_said_where_it_may_hide_a_guest(show: Any) -> None:
    """Nothing stands for "nobody has it"."""
    unread = ["/etc/pve/lxc/901.conf: Input/output error", "/var/lib/homelab/handover/rtx5090.state: it is no file"]
    told = f"can't be read, so who has a card may be missing here: {'; '.join(unread)}"
    assert told in [one.line for one in show(desktop(unreadable=unread)).children]
    shared = settings({"rtx5090": {"match": "10de:2b85", "use": "shared"}}, nvidia={"driver": "580"})
    (card,) = reading.of_reading(desktop(unreadable=unread), shared)
    assert card.traits == (("in turn", f"not known: its state can't be read ({unread[1]})"),)


# -- drawn ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_keeps_to_its_width_and_needs_no_colours(width: int) -> None:
    text = terminal.text([DRAWN], width=width, colours=False)
    assert max(map(len, text.splitlines())) <= width and "\x1b" not in text
    assert "├" in text or "└" in text
    assert "+ VM 103 (sandbox)" in text


# -- the result ----------------------------------------------------------------------------------------------------
FUNCTION = {"address": "0000:01:00.0", "id": "10de:2b85", "class": "030000", "driver": "vfio-pci"}
GPU = {
    "name": "",
    "slot": "0000:01:00",
    "use": "vm",
    "functions": [FUNCTION],
    "iommuGroup": 14,
    "test": {"kernel": "6.17"},
}
VERIFIED = dict.fromkeys(("program", "container", "uvm"), True)
STACK = {"driver": "580.95.05", "flavour": "open", "cuda": "12.8", **VERIFIED}
OUTPUTS: dict[str, Any] = {
    "hosts": {"pve": {"kernel": "6.17.2-1-pve", "iommu": {"groups": 17}, "gpus": {"rtx5090": GPU}}},
    "vms": {"sandbox": {"host": "pve", "vmid": 103, "name": "Sandbox", "gpus": ["rtx5090"], "nvidia": STACK}},
}
WORDS = {"pve": "amd_iommu=on iommu=pt homelab.vfio=0000:01:00.0=10de:2b85"}


def test_the_result_names_guests_checks_changes_and_the_way_back() -> None:
    assert result.lines(OUTPUTS, WORDS, ["vms.sandbox"]) == [
        "RTX 5090 [10de:2b85] at 0000:01:00 → VM 103 (Sandbox)",
        "  RTX 5090: a test VM has seen it, with its memory ranges",
        "  VM 103 (Sandbox): NVIDIA driver 580.95.05 (open modules)",
        "    CUDA 12.8, container toolkit",
        "    verified inside by nvidia-smi, a CUDA program, a container, an ordinary user",
        "pve: kernel 6.17.2-1-pve, 17 IOMMU groups",
        "  changed there: kernel command line (iommu, vfio-pci), initramfs",
        '  to boot once without passthrough: pick "without GPU passthrough" in the boot menu',
        "To undo it: `pulumi destroy` gives back every file, VM and container as it was",
        "  `homelab show --undo` lists what it undoes",
        '  "delete" there undoes a change: no guest is deleted but those that homelab made',
        "  running guests with a card restart; the host doesn't: its next boot is as before",
        "  NVIDIA's software stays in vms.sandbox, unless nvidia.onDestroy is purge there",
    ]


def test_the_result_does_not_depend_on_the_order_of_outputs() -> None:
    second = {**GPU, "slot": "0000:02:00"}
    orders = ({"a": GPU, "b": second}, {"b": second, "a": GPU})
    host = OUTPUTS["hosts"]["pve"]
    first, other = ({**OUTPUTS, "hosts": {"pve": {**host, "gpus": gpus}}} for gpus in orders)
    assert result.lines(first, WORDS) == result.lines(other, WORDS)


def test_each_line_of_the_result_fits_a_display_of_100_columns() -> None:
    assert max(map(len, result.lines(OUTPUTS, WORDS))) <= 100 - len('        [10]: ""')


def test_the_result_of_a_free_card_and_of_an_unchanged_boot() -> None:
    found = result.lines({**OUTPUTS, "vms": {}}, {"pve": " "})
    assert found[0].endswith("→ nobody yet")
    assert any("nothing of its boot is changed" in line for line in found)


def test_words_that_may_be_the_owners_are_not_told_as_a_change() -> None:
    found = result.lines(OUTPUTS, {"pve": "amd_iommu=on iommu=pt"})
    assert "  on its kernel command line, by homelab if not by you: amd_iommu=on iommu=pt" in found
    assert not any("changed there" in line or "boot menu" in line for line in found)


def test_a_container_that_is_off_has_its_own_card_of_four_identical_ones() -> None:
    slots = ["0000:01:00", "0000:02:00", "0000:03:00", "0000:04:00"]
    cards = {
        slot: {**GPU, "use": "lxc", "slot": slot, "functions": [{**FUNCTION, "address": f"{slot}.0"}]} for slot in slots
    }
    off = {"host": "pve", "ctid": 306, "name": "ai", "state": "stopped", "gpus": [1], "addresses": ["0000:02:00.0"]}
    found = of_outputs({"hosts": {"pve": {"gpus": cards}}, "containers": {"ai": off}}, "pve")
    assert [card.guests for card in found] == [(), (ShownGuest("container", 306),), (), ()]
