"""homelab/show: who has which card, as it is, as the settings want it, and what changes; drawn for a terminal, as a picture, for Markdown."""

from __future__ import annotations

import re
from typing import Any

import pytest

from homelab.settings import Container, Host, Vm
from homelab.show import mermaid, reading, result, terminal, tree
from homelab.show.cards import ShownCard, ShownGuest, of_outputs
from tests.unit.hosts import desktop, settings

VM = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["rtx5090"]})
LXC = {"rtx5090": {"match": "10de:2b85", "use": "lxc"}}
SHARED = [{"kind": "lxc", "id": 950, "lines": "hostname: old\ndev0: /dev/nvidia0,mode=0666"}]


def trees(
    now: bool, planned: bool, host: Host | None = None, containers: dict[str, Container] | None = None, **facts: Any
) -> tree.TreeNode:
    host, found = host or settings(), desktop(**facts)
    before = reading.of_reading(found, host, "pve")
    vms = {} if containers else {"sandbox": VM}
    after = reading.wanted(host, vms, containers or {}, before, found)
    return tree.of_host("pve", before if now else None, after if planned else None)


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


def test_a_container_that_has_the_card_already_keeps_it_and_another_one_comes() -> None:
    container = Container.model_validate({"host": "pve", "ctid": 901, "gpuAssignment": "0"})
    guests = {"running": [], "configs": SHARED, "mappings": "", "reservations": ""}
    shown = trees(True, True, settings(LXC), {"phoenix": container}, guests=guests, nvidia_minors={"0000:01:00.0": 0})
    assert lines(shown)[3:] == ["guest: + container 901 (phoenix)", "guest: container 950 (old)"]


def test_what_shares_the_group_is_shown_beside_the_card() -> None:
    gpu = next(one for one in desktop().devices if one.address == "0000:01:00.0").model_dump(by_alias=True)
    usb = {
        **gpu,
        "address": "0000:03:00.0",
        "vendor": "1022",
        "device": "43ee",
        "class": "0c0330",
        "driver": "xhci_hcd",
    }
    found = desktop(devices=[one.model_dump(by_alias=True) for one in desktop().devices] + [usb])
    shown = tree.of_host("pve", reading.of_reading(found, settings(), "pve"), None)
    assert any(one.kind == "other" and "USB controller" in one.text for one in shown.walk())


def test_nobody_needs_the_host_to_see_what_the_settings_want() -> None:
    after = reading.wanted(settings(), {"sandbox": VM}, {}, [])
    shown = lines(tree.of_host("pve", [], after))
    assert "card: + RTX 5090 [10de:2b85] at gpus.rtx5090, vfio-pci" in shown and "guest: + VM 103 (sandbox)" in shown


def test_a_card_that_leaves_its_guest_is_marked_as_gone() -> None:
    had, has = (
        ShownCard("0000:01:00", "RTX 5090", "IOMMU group 1", (), "vfio-pci", (guest,))
        for guest in (ShownGuest("VM", 1), ShownGuest("VM", 2))
    )
    shown = tree.of_host("pve", [had], [has])
    assert lines(shown)[2:] == ["card: ~ RTX 5090, vfio-pci", "guest: - VM 1", "guest: + VM 2"]
    assert tree.counts([shown]) == {"changes": 1, "gone": 1, "new": 1}


# -- drawn ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_keeps_to_its_width_and_needs_no_colours(width: int) -> None:
    text = terminal.text([trees(now=True, planned=True)], width=width, colours=False)
    assert max(map(len, text.splitlines())) <= width and "\x1b" not in text
    assert "├" in text or "└" in text
    assert "+ VM 103 (sandbox)" in text


@pytest.mark.parametrize("form", ["svg", "html"])
def test_a_picture_is_a_file_that_loads_nothing_from_elsewhere(form: str) -> None:
    text = terminal.picture([trees(now=True, planned=True)], "pve", form)
    assert re.search("<svg" if form == "svg" else "<html", text)
    assert (
        "RTX" in text
        and "src=" not in text
        and "url(http" not in text
        and "url(&quot;http" not in text
        and "@import" not in text
    )


def test_mermaid_marks_what_changes_and_a_guests_name_is_no_markup() -> None:
    evil = ShownGuest("VM", 1, 'a"]; click n0 "javascript:alert(1)" <b>`')
    node = tree.of_host("pve", [], [ShownCard("0000:01:00", "RTX 5090", "IOMMU group 1", (), "vfio-pci", (evil,))])
    text = mermaid.text([node])
    assert text.startswith("flowchart LR\n")
    line = next(one for one in text.splitlines() if "VM 1" in one)
    assert line.count('"') == 2 and "<" not in line and "`" not in line
    assert "class n2,n3 new" in text


# -- the result ----------------------------------------------------------------------------------------------------
FUNCTION = {"address": "0000:01:00.0", "id": "10de:2b85", "class": "030000", "driver": "vfio-pci"}
GPU = {"slot": "0000:01:00", "use": "vm", "functions": [FUNCTION], "iommuGroup": 14, "test": {"kernel": "6.17"}}
STACK = {
    "driver": "580.95.05",
    "flavour": "open",
    "gpus": [],
    "cuda": "12.8",
    "program": True,
    "container": True,
    "uvm": True,
}
OUTPUTS: dict[str, Any] = {
    "hosts": {"pve": {"kernel": "6.17.2-1-pve", "iommu": {"groups": 17}, "gpus": {"rtx5090": GPU}}},
    "vms": {"sandbox": {"host": "pve", "vmid": 103, "name": "Sandbox", "gpus": ["rtx5090"], "nvidia": STACK}},
    "containers": {},
}
WORDS = {"pve": "amd_iommu=on iommu=pt homelab.vfio=0000:01:00.0=10de:2b85"}


def test_the_result_says_who_has_the_card_what_was_verified_what_changed_and_how_to_undo_it() -> None:
    assert result.lines(OUTPUTS, WORDS, ["vms.sandbox"]) == [
        "RTX 5090 [10de:2b85] at 0000:01:00 → VM 103 (Sandbox)",
        "  RTX 5090: a test VM has seen it, with its memory ranges",
        "  VM 103 (Sandbox): NVIDIA driver 580.95.05 (open modules)",
        "    CUDA 12.8, container toolkit",
        "    verified inside by nvidia-smi, a CUDA program, a container, an ordinary user",
        "pve: kernel 6.17.2-1-pve, 17 IOMMU groups",
        "  changed there: kernel command line (iommu, vfio-pci), initramfs",
        '  without it for one boot: the boot entry "without GPU passthrough"',
        "Undo it: pulumi destroy gives back every file, VM and container as it was",
        "  but for NVIDIA's stack, which stays unless onDestroy is purge: vms.sandbox",
    ]


def test_each_line_of_the_result_fits_a_display_of_100_columns() -> None:
    assert max(map(len, result.lines(OUTPUTS, WORDS))) <= 100 - len('        [10]: ""')


def test_the_result_of_a_card_that_nobody_has_and_of_a_host_whose_boot_is_untouched() -> None:
    found = result.lines({**OUTPUTS, "vms": {}}, {"pve": " "})
    assert found[0].endswith("→ nobody yet")
    assert any("nothing of its boot is changed" in line for line in found)


def test_a_containers_cards_are_those_that_it_saw() -> None:
    two = {
        name: {**GPU, "use": "lxc", "slot": slot, "functions": [{**FUNCTION, "address": f"{slot}.0"}]}
        for name, slot in (("a", "0000:01:00"), ("b", "0000:02:00"))
    }
    one = {"host": "pve", "ctid": 901, "name": "ai", "nvidia": {"gpus": [{"address": "0000:02:00.0"}]}}
    found = of_outputs({"hosts": {"pve": {"gpus": two}}, "containers": {"ai": one}}, "pve")
    assert [card.guests for card in found] == [(), (ShownGuest("container", 901),)]
