"""homelab/facts/names.py: a card has a name for people wherever it is spoken of, from the host's pci.ids or a small table."""

from __future__ import annotations

from homelab.facts import names
from homelab.host import plan
from tests.rows import rows
from tests.unit.hosts import desktop, settings

# What the host's lspci prints after the class -> what a person calls the card.


@rows(
    ("text", "expected"),
    {
        "NVIDIA Corporation AD102 [GeForce RTX 4090]": "RTX 4090",
        "NVIDIA Corporation GA102GL [RTX A6000]": "RTX A6000",
        "NVIDIA Corporation TU106 [GeForce RTX 2060 Rev. A]": "RTX 2060 Rev. A",
        "NVIDIA Corporation GH100 [H100 PCIe]": "H100 PCIe",
        "NVIDIA Corporation GK208B [GeForce GT 710]": "GT 710",
        "NVIDIA Corporation Device": "",
        "Advanced Micro Devices, Inc. [AMD/ATI] Navi 10 [Radeon RX 5600 OEM/5600 XT / 5700/5700 XT]": "Radeon RX 5600 OEM/5600 XT / 5700/5700 XT",
        "Advanced Micro Devices, Inc. [AMD/ATI] Raphael": "Raphael",
        "Advanced Micro Devices, Inc. [AMD/ATI] Device": "",
        "Intel Corporation AlderLake-S GT1 [UHD Graphics 770]": "UHD Graphics 770",
        "Matrox Electronics Systems Ltd. G200eR2": "Matrox Electronics Systems Ltd. G200eR2",
        "ASPEED Technology, Inc. ASPEED Graphics Family": "ASPEED Technology, Inc. ASPEED Graphics Family",
        "Somebody " + "x" * 80: "Somebody " + "x" * 38 + "…",
    }.items(),
)
def test_a_name_of_pci_ids_is_what_people_call_the_card(text: str, expected: str) -> None:
    line = f"0000:01:00.0 VGA compatible controller [0300]: {text} [10de:2684] (rev a1)"
    assert names.of_lspci(line) == ({"0000:01:00.0": expected} if expected else {})


def test_a_card_unknown_to_pci_ids_is_named_by_the_table_or_its_kind() -> None:
    assert names.card("10de:2b85", "0000:01:00") == "RTX 5090 [10de:2b85] at 0000:01:00"
    assert names.card("10de:ffff", "0000:01:00") == "graphics card [10de:ffff] at 0000:01:00"


def test_what_the_host_calls_a_card_counts_before_the_table() -> None:
    named = "0000:01:00.0 VGA compatible controller [0300]: NVIDIA Corporation GB202 [GeForce RTX 5090 X] [10de:2b85] (rev a1)"
    facts = desktop(lspci=named)
    assert facts.card("0000:01:00") == "RTX 5090 X [10de:2b85] at 0000:01:00"
    want = plan.wanted(facts, settings())
    assert want.gpus["rtx5090"]["name"] == "RTX 5090 X"
    assert names.of_output(want.gpus["rtx5090"]) == facts.card("0000:01:00")


def test_an_output_that_the_host_knew_no_name_for_has_the_tables() -> None:
    found = {
        "name": "",
        "slot": "0000:01:00",
        "functions": [{"id": "10de:22e8", "class": "040300"}, {"id": "10de:2b85", "class": "030000"}],
    }
    assert names.of_output(found) == "RTX 5090 [10de:2b85] at 0000:01:00"


def test_plan_and_refusals_call_a_card_the_same() -> None:
    facts = desktop()
    want = plan.wanted(facts, settings())
    text = plan.describe("pve", facts, settings(), want, plan.PlannedReboot("no", "1"))
    assert "rtx5090: RTX 5090 [10de:2b85] at 0000:01:00, for vm:" in text
    assert "RTX 5090, 10de:2b85" in facts.describe(facts.by_address["0000:01:00.0"])
