"""homelab/show: who has which card, as it is, as the settings want it, and what changes; drawn for a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from homelab.settings import Container, Host, NewVm, Vm
from homelab.show import reading, result, terminal, traits, tree
from homelab.show.cards import ShownCard, ShownGuest, of_outputs
from remote_scripts.shared.container_note import Cards
from tests.unit.hosts import container_note, desktop, settings, vm_note

VM = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["rtx5090"]})
LXC = {"rtx5090": {"match": "10de:2b85", "use": "lxc"}}
SHARED = [{"kind": "lxc", "id": 950, "lines": "hostname: old\ndev0: /dev/nvidia0,mode=0666"}]
WITHOUT_CARD = [{"kind": "vm", "id": 103, "lines": "name: sandbox"}, {"kind": "lxc", "id": 901, "lines": "hostname: p"}]
GUESTS = {"running": [], "configs": WITHOUT_CARD, "mappings": "", "reservations": ""}


def trees(
    now: bool, planned: bool, host: Host | None = None, containers: dict[str, Container] | None = None, **facts: Any
) -> tree.TreeNode:
    host, found = host or settings(), desktop(**{"guests": GUESTS, **facts})
    before = reading.of_reading(found, host, "pve")
    vms = {} if containers else {"sandbox": VM}
    after = reading.wanted(host, vms, containers or {}, before, found)
    return tree.of_host("pve", before if now else after, after if planned else before)


def lines(node: tree.TreeNode) -> list[str]:
    return [f"{one.kind}: {one.line}" for one in node.walk()]


def test_host_group_card_and_guest_with_what_changes() -> None:
    assert lines(trees(now=True, planned=True)) == [
        "host: pve",
        "group: IOMMU group 16",
        "card: ~ RTX 5090 [10de:2b85] at 0000:01:00, nouveau → vfio-pci",
        "guest: + VM 103 (sandbox)",
    ]


def test_as_it_is_and_as_it_is_to_be_have_no_marks() -> None:
    assert lines(trees(now=True, planned=False))[2:] == [
        "card: RTX 5090 [10de:2b85] at 0000:01:00, nouveau",
        "other: nobody has it",
    ]
    assert lines(trees(now=False, planned=True))[2:] == [
        "card: RTX 5090 [10de:2b85] at 0000:01:00, vfio-pci",
        "guest: VM 103 (sandbox)",
    ]


def test_a_container_keeps_its_card_when_another_one_gets_it() -> None:
    container = Container.model_validate({"host": "pve", "ctid": 901, "gpuAssignment": "0"})
    guests = {**GUESTS, "configs": [*WITHOUT_CARD, *SHARED]}
    shown = trees(True, True, settings(LXC), {"phoenix": container}, guests=guests, nvidia_minors={"0000:01:00.0": 0})
    assert lines(shown)[3:] == ["guest: + container 901 (phoenix)", "guest: container 950 (old)"]


@pytest.mark.parametrize("owner", ["p/s/old", "p/other/old"])
def test_a_container_that_leaves_the_settings_loses_its_card(owner: str) -> None:
    note = container_note(950, Cards(minors=(0,)), "/dev/nvidia0,mode=0666", owner=owner)
    guests, minors = {**GUESTS, "configs": [*WITHOUT_CARD, *SHARED]}, {"0000:01:00.0": 0}
    found, host = desktop(guests=guests, nvidia_minors=minors, ledger=note), settings(LXC)
    now = reading.of_reading(found, host, "pve")
    shown = tree.of_host("pve", now, reading.wanted(host, {}, {}, now, found, "p/s"))
    is_own = owner.startswith("p/s/")
    assert lines(shown)[3] == ("guest: - container 950 (old)" if is_own else "guest: container 950 (old)")
    outputs = {"hosts": {"pve": {"gpus": {"rtx5090": GPU}}}, "containers": {"old": SEEN}}
    before = of_outputs(outputs, "pve")
    shown = tree.of_host("pve", before, reading.wanted_of_outputs(outputs, "pve", host, {}, {}, before))
    assert lines(shown)[3] == "guest: - container 950 (old)"


def test_a_guest_that_is_to_be_adopted_and_isnt_there_is_said_to_be_missing() -> None:
    nothing, container = {**GUESTS, "configs": []}, {"host": "pve", "ctid": 901, "gpuAssignment": "0"}
    assert lines(trees(True, True, guests=nothing))[3:] == ["guest: + VM 103 (sandbox: not on this host)"]
    new = {"sandbox": VM.model_copy(update={"create": NewVm.model_validate({"disk": {"storage": "local", "size": 8}})})}
    made = reading.wanted(settings(), new, {}, [], desktop(guests=nothing))
    assert [str(guest) for card in made for guest in card.guests] == ["VM 103 (sandbox)"]
    phoenix = {"phoenix": Container.model_validate(container)}
    shown = trees(True, True, settings(LXC), phoenix, guests=nothing, nvidia_minors={"0000:01:00.0": 0})
    assert lines(shown)[3:] == ["guest: + container 901 (phoenix: not on this host)"]


def test_of_a_card_that_is_taken_over_its_owners_options_stay_and_those_of_older_settings_go() -> None:
    line = "name: Sandbox\nhostpci0: mapping=rtx5090,romfile=old.rom,x-vga=1"
    note = vm_note(103, line, "hostpci0", originals={"hostpci0": "mapping=rtx5090,romfile=old.rom"})
    shown = set_of({}, {"takeOver": True}, ",romfile=old.rom,x-vga=1", ledger=note)
    assert shown == ["reset: flr, bus", "~ VM 103 (Sandbox)", "romfile: old.rom", "- x-vga: on"]


def test_what_shares_the_group_is_shown_beside_the_card() -> None:
    gpu = asdict(next(one for one in desktop().devices if one.address == "0000:01:00.0"))
    usb = {
        **gpu,
        "address": "0000:03:00.0",
        "vendor": "1022",
        "device": "43ee",
        "class_code": "0c0330",
        "driver": "xhci_hcd",
    }
    found = desktop(devices=[asdict(one) for one in desktop().devices] + [usb])
    cards = reading.of_reading(found, settings(), "pve")
    shown = tree.of_host("pve", cards, cards)
    assert any(one.kind == "other" and "USB controller" in one.text for one in shown.walk())


def test_what_the_settings_want_is_shown_without_the_host() -> None:
    after = reading.wanted(settings(), {"sandbox": VM}, {}, [])
    shown = lines(tree.of_host("pve", [], after))
    assert "card: + RTX 5090 [10de:2b85] at gpus.rtx5090" in shown and "guest: + VM 103 (sandbox)" in shown


def test_a_card_that_leaves_its_guest_is_marked_as_gone() -> None:
    had, has = (
        ShownCard("0000:01:00", "RTX 5090", "IOMMU group 1", (), "vfio-pci", (guest,))
        for guest in (ShownGuest("VM", 1), ShownGuest("VM", 2))
    )
    shown = tree.of_host("pve", [had], [has])
    assert lines(shown)[2:] == ["card: ~ RTX 5090, vfio-pci", "guest: - VM 1", "guest: + VM 2"]


# -- what is set of it ---------------------------------------------------------------------------------------------
MAPPED = "rtx5090\n\tmap id=10de:2b85,iommugroup=16,node=pve,path=0000:01:00\n"
WITH_VM = {"running": [], "mappings": MAPPED, "reservations": ""}


OURS = {"reset_method": "flr bus", "d3cold_allowed": "1", "control": "auto"}


def asleep(allowed: str = "1", control: str = "auto", reset: str = "flr bus", **had: Any) -> dict[str, dict[str, Any]]:
    state = {"reset_method": reset, "d3cold_allowed": allowed, "control": control, **had}
    return {"0000:01:00.0": state, "0000:01:00.1": {**state, "reset_method": reset}}


def set_of(
    gpu: dict[str, Any], vm: dict[str, Any] | None = None, hostpci: str = "", when: str = "both", **facts: Any
) -> list[str]:
    """The lines of what is set, with those of the guest; ``hostpci``: as VM 103 has the card now."""
    host = settings({"rtx5090": {"match": "10de:2b85", **gpu}})
    lines_of_it = f"name: Sandbox\nhostpci0: mapping=rtx5090{hostpci}"
    configs = [{"kind": "vm", "id": 103, "lines": lines_of_it}]
    found = desktop(**{"card_states": asleep(), "guests": {**WITH_VM, "configs": configs}, **facts})
    now = reading.of_reading(found, host, "pve")
    given = {"host": "pve", "vmid": 103, "gpus": [{"gpu": "rtx5090", **(vm or {})}]}
    vms = {"sandbox": Vm.model_validate(given | ({"display": "none"} if "legacyIgd" in (vm or {}) else {}))}
    planned = reading.wanted(host, vms, {}, now, found)
    shown = tree.of_host("pve", now if when != "planned" else planned, planned if when != "now" else now)
    return [one.line for one in shown.walk() if one.kind in ("setting", "guest")]


@pytest.mark.parametrize(
    ("gpu", "vm", "before", "expected"),
    [
        ({}, {}, {}, ["reset: flr, bus", "VM 103 (Sandbox)"]),
        ({"reset": "bus"}, {}, {}, ["~ reset: flr, bus → bus", "VM 103 (Sandbox)"]),
        ({"keepAwake": True}, {}, {}, ["reset: flr, bus", "+ sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({"keepAwake": True}, {}, {"card_states": asleep("0", "on")}, ["reset: flr, bus", "sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({"keepAwake": True}, {}, {"card_states": asleep("0")}, ["reset: flr, bus", "+ sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        # What the settings said before: it gets back what it had; what somebody else has set, stays.
        ({}, {}, {"card_states": asleep("0", "on", "bus", had=OURS)}, ["~ reset: bus → flr, bus", "- sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({"reset": "bus"}, {}, {"card_states": asleep("0", "on", "bus", had=OURS)}, ["reset: bus", "- sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({"keepAwake": True}, {}, {"card_states": asleep("0", "on", "bus", had=OURS)}, ["~ reset: bus → flr, bus", "sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({}, {}, {"card_states": asleep("0", "on", "bus")}, ["reset: bus", "sleep: kept awake (no D3cold)", "VM 103 (Sandbox)"]),
        ({}, {"romfile": "card.rom"}, {}, ["reset: flr, bus", "~ VM 103 (Sandbox)", "+ romfile: card.rom"]),
        ({}, {}, {"hostpci": ",romfile=old.rom"}, ["reset: flr, bus", "~ VM 103 (Sandbox)", "- romfile: old.rom"]),
        ({}, {"takeOver": True}, {"hostpci": ",romfile=old.rom,x-vga=1"}, ["reset: flr, bus", "VM 103 (Sandbox)", "romfile: old.rom", "x-vga: on"]),
        ({}, {"romfile": "new.rom"}, {"hostpci": ",romfile=old.rom"}, ["reset: flr, bus", "~ VM 103 (Sandbox)", "~ romfile: old.rom → new.rom"]),
        ({}, {"driver": "keep"}, {"hostpci": ",driver=keep"}, ["reset: flr, bus", "VM 103 (Sandbox)", "driver: keep"]),
        ({}, {"xVga": True, "rombar": False}, {}, ["reset: flr, bus", "~ VM 103 (Sandbox)", "+ rombar: off", "+ x-vga: on"]),
        ({}, {"legacyIgd": True, "pcie": False}, {"hostpci": ",legacy-igd=1"}, ["reset: flr, bus", "VM 103 (Sandbox)", "legacy-igd: on"]),
        ({}, {}, {"hostpci": ",pcie=1,driver=vfio,rombar=1,x-vga=0"}, ["reset: flr, bus", "VM 103 (Sandbox)"]),
        ({}, {}, {"card_states": {}}, ["VM 103 (Sandbox)"]),  # a kernel that doesn't say
    ],
)  # fmt: skip
def test_changes_of_a_cards_reset_sleep_and_options_are_marked(
    gpu: dict[str, Any], vm: dict[str, Any], before: dict[str, Any], expected: list[str]
) -> None:
    assert set_of(gpu, vm, **before) == expected


def test_functions_that_are_reset_in_different_ways_are_named() -> None:
    states = {**asleep(), "0000:01:00.1": {"reset_method": ""}}
    assert set_of({}, card_states=states)[0] == "reset: 0000:01:00.0 by flr, bus; 0000:01:00.1 by none"
    # A companion that the kernel can't reset so is left as it is.
    assert set_of({"reset": "bus"}, card_states=states, when="planned")[0] == (
        "reset: 0000:01:00.0 by bus; 0000:01:00.1 by none"
    )


def test_a_mapping_that_lets_a_running_vm_migrate_says_so() -> None:
    migrates = {"mappings": MAPPED + "\tlive-migration-capable 1\n", "running": [], "reservations": "", "configs": []}
    assert set_of({"liveMigration": True})[1] == "+ live migration: allowed by its mapping"
    assert set_of({"liveMigration": True}, guests=migrates)[1] == "live migration: allowed by its mapping"
    assert set_of({}, guests=migrates)[1] == "- live migration: allowed by its mapping"


def test_of_a_card_that_containers_share_neither_reset_nor_sleep_is_shown() -> None:
    host, found = settings(LXC), desktop(card_states=asleep())
    now = reading.of_reading(found, host, "pve")
    shown = tree.of_host("pve", now, reading.wanted(host, {}, {}, now, found))
    assert not [one for one in shown.walk() if one.kind == "setting"]


def test_a_card_whose_driver_is_kept_does_not_go_to_vfio() -> None:
    vm = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": [{"gpu": "rtx5090", "driver": "keep"}]})
    now = reading.of_reading(desktop(), settings(), "pve")
    (card,) = reading.wanted(settings(), {"sandbox": vm}, {}, now, desktop())
    assert card.driver == "nouveau"


def of_kernel(running: str, others: str = "quiet", found: dict[str, Any] | None = None, **host: Any) -> list[str]:
    words = {"running": running, "configured": others, "others": others, "generated": others}
    facts = desktop(**{"cmdline": words, **(found or {})})
    wanted = settings(**host)
    about = traits.of_host(facts), traits.wanted_of_host(facts, wanted)
    return [one.line for one in tree.of_host("pve", [], [], about).walk() if one.kind == "setting"]


@pytest.mark.parametrize(
    ("running", "host", "others", "expected"),
    [
        ("quiet amd_iommu=on iommu=pt", {}, "quiet", []),
        ("quiet", {"iommu": {"acsOverride": "downstream"}}, "quiet", ["+ ACS override: downstream"]),
        ("quiet pcie_acs_override=downstream", {"iommu": {"acsOverride": "downstream,multifunction"}}, "quiet", ["~ ACS override: downstream → downstream,multifunction"]),
        ("quiet pcie_acs_override=downstream", {}, "quiet", ["- ACS override: downstream"]),
        ("quiet pcie_acs_override=downstream", {}, "quiet pcie_acs_override=downstream", ["ACS override: downstream"]),  # somebody else's
        ("quiet initcall_blacklist=sysfb_init", {}, "quiet", ["- the firmware's picture: not shown (initcall_blacklist=sysfb_init)"]),
        ("intel_iommu=on,relax_rmrr", {}, "quiet", ["- reserved memory (RMRR): relaxed"]),
        ("vfio_iommu_type1.allow_unsafe_interrupts=1", {}, "quiet", ["- unsafe interrupts: allowed"]),
    ],
)  # fmt: skip
def test_what_the_kernel_is_told_beside_the_usual_is_shown_of_the_host(
    running: str, host: dict[str, Any], others: str, expected: list[str]
) -> None:
    assert of_kernel(running, others, **host) == expected


def test_the_firmwares_picture_that_is_to_go_is_shown_of_the_host() -> None:
    drawn_on = {"framebuffers": {"0000:01:00.0": ["BOOTFB"]}}
    assert of_kernel("quiet", found=drawn_on, bootFramebuffer="off") == [
        "+ the firmware's picture: not shown (initcall_blacklist=sysfb_init)"
    ]
    assert of_kernel("quiet", bootFramebuffer="off") == []  # without effect


def test_what_cant_be_read_is_said_where_it_may_hide_a_guest() -> None:
    """Nothing stands for "nobody has it"."""
    unread = ["/etc/pve/lxc/901.conf: Input/output error", "/var/lib/homelab/handover/rtx5090.state: it is no file"]
    assert of_kernel("quiet", found={"unreadable": unread}) == [
        f"can't be read, so who has a card may be missing here: {'; '.join(unread)}"
    ]
    shared = settings({"rtx5090": {"match": "10de:2b85", "use": "shared"}}, nvidia={"driver": "580"})
    shown = [one.text for one in trees(True, False, shared, unreadable=unread).walk() if one.kind == "setting"]
    assert shown == [f"in turn: not known: its state can't be read ({unread[1]})"]


def test_options_have_no_mark_where_the_host_was_not_read() -> None:
    host = settings({"rtx5090": {"match": "10de:2b85", "reset": "bus", "keepAwake": True}})
    vm = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": [{"gpu": "rtx5090", "romfile": "card.rom"}]})
    now = of_outputs(OUTPUTS, "pve")
    planned = reading.wanted_of_outputs(OUTPUTS, "pve", host, {"sandbox": vm}, {}, now)
    assert [one.line for one in tree.of_host("pve", now, planned).walk() if one.kind == "setting"] == [
        "reset: bus",
        "sleep: kept awake (no D3cold)",
        "romfile: card.rom",
    ]


# -- drawn ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_keeps_to_its_width_and_needs_no_colours(width: int) -> None:
    text = terminal.text([trees(now=True, planned=True)], width=width, colours=False)
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
STACK = {
    "driver": "580.95.05",
    "flavour": "open",
    "gpus": [],
    "cuda": "12.8",
    "program": True,
    "container": True,
    "uvm": True,
}
SEEN = {"host": "pve", "ctid": 950, "name": "old", "addresses": ["0000:01:00.0"], "cards": {}}
OUTPUTS: dict[str, Any] = {
    "hosts": {"pve": {"kernel": "6.17.2-1-pve", "iommu": {"groups": 17}, "gpus": {"rtx5090": GPU}}},
    "vms": {"sandbox": {"host": "pve", "vmid": 103, "name": "Sandbox", "gpus": ["rtx5090"], "nvidia": STACK}},
    "containers": {},
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


def test_a_container_that_is_off_has_its_own_card_of_four_identical_ones() -> None:
    slots = ["0000:01:00", "0000:02:00", "0000:03:00", "0000:04:00"]
    cards = {
        slot: {**GPU, "use": "lxc", "slot": slot, "functions": [{**FUNCTION, "address": f"{slot}.0"}]} for slot in slots
    }
    off = {"host": "pve", "ctid": 306, "name": "ai", "state": "stopped", "gpus": [1], "addresses": ["0000:02:00.0"]}
    found = of_outputs({"hosts": {"pve": {"gpus": cards}}, "containers": {"ai": off}}, "pve")
    assert [card.guests for card in found] == [(), (ShownGuest("container", 306),), (), ()]
